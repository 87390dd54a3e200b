"""A look into a service that runs in this process: what it counted, what it still holds open.

Its own answer to that, /metrics, may be a second old.
"""

from collections.abc import Mapping

from chat_service.service import Service


def requests_counted(service: Service) -> Mapping[str, float]:
    """How many requests were answered, by method, route and status, but those for /livez."""
    return {
        " ".join(sample.labels[name] for name in ("method", "route", "code")): sample.value
        for family in service._registry.collect()
        for sample in family.samples
        if sample.name == "chat_http_requests_total" and sample.labels["route"] != "/livez"
    }


def held_open(service: Service) -> Mapping[str, int]:
    """What of requests and connections is not over."""
    held = {
        "requests open": service._tracker.open_requests,
        "connections open": service._tracker.connections.open,
    }
    return {what: count for what, count in held.items() if count}
