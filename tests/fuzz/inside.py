"""Internals of a service in this process: its counters, and what it still holds open.

The service's own answer, /metrics, may be a second old.
"""

from collections.abc import Collection, Mapping

from chat_service.service import Service


def requests_counted(service: Service) -> Mapping[str, float]:
    """Return the number of answered requests by method, route and status, except /livez."""
    return {
        " ".join(sample.labels[name] for name in ("method", "route", "code")): sample.value
        for family in service._registry.collect()
        for sample in family.samples
        if sample.name == "chat_http_requests_total" and sample.labels["route"] != "/livez"
    }


def held_open(service: Service) -> Mapping[str, int]:
    """Return the number of requests and connections that are still open."""
    held = {
        "requests open": service._tracker.open_requests,
        "connections open": service._tracker.connections.open,
    }
    return {what: count for what, count in held.items() if count}


def tokens_known(service: Service) -> Collection[bytes]:
    """Return the digests of the tokens in the version of the access file that is in effect."""
    return service._access.gate._grants.tokens
