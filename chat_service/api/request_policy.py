"""Rejects requests that nobody intended, before they reach a handler.

Three kinds of request look normal and are rejected here:

- a prefetch, which a browser announces in a header
- a request that a page of another site makes a browser send
- a request for another host name, which a page can use to bypass the same-origin policy

Browsers send `Sec-Fetch-Site` only to HTTPS and loopback addresses. Elsewhere, `Origin` and
`Referer` tell the origin of a request. A page can suppress both for a GET, so a browser that sends
none of the three headers is rejected as well.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from chat_service.api.problems import bad_request, cross_origin, speculative, wrong_host

_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")
_PORT = re.compile(r":\d*$")
_URL = re.compile(r"(https?)://([^/?#]*)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PREFETCH_HEADERS = ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose")
#: The details of the two problems that every route for clients can answer with.
PREFETCH_DETAIL = "a prefetch changes nothing; repeat the request when its result is needed"
OTHER_ORIGIN_DETAIL = "pages of another origin may not read or write messages"
_NONE: frozenset[str] = frozenset()


class HostRule(NamedTuple):
    """The hosts that a port answers for. It always answers for `names`.

    On a loopback address (`is_loopback`) it also answers for IP addresses and localhost, because
    the name of another site cannot stand for these. On other addresses it answers for every host
    if `names` is empty. With `has_addresses`, it answers for IP addresses and localhost as well.
    """

    names: frozenset[str] = _NONE
    is_loopback: bool = False
    has_addresses: bool = False


def host_rule(
    names: tuple[str, ...], addresses: list[str], *, has_addresses: bool = False
) -> HostRule:
    """Return the rule for a port that listens on these addresses."""
    is_loopback = bool(addresses) and all(is_loopback_address(each) for each in addresses)
    return HostRule(frozenset(_normalized(name) for name in names), is_loopback, has_addresses)


def is_loopback_address(address: str) -> bool:
    """Return whether only programs on this machine can connect to the address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def reject_prefetches(headers: Mapping[str, str]) -> None:
    """Raise a 403 problem for a request that a browser sends in advance."""
    for name in _PREFETCH_HEADERS:
        announced = headers.get(name, "").lower()
        if "prefetch" in announced or "preview" in announced:
            raise speculative(PREFETCH_DETAIL)


def reject_other_pages(headers: Mapping[str, str], allowed: frozenset[str] = _NONE) -> None:
    """Raise a 403 problem for a request that a page of another origin made a browser send.

    Requests of pages whose origin is in `allowed` pass.
    """
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if origin is not None and origin in allowed:
        return
    if site is not None:
        site = site.strip().lower()
        if site == "same-origin":
            # The browser has compared the origins itself, so a Host that a proxy changed is fine.
            return
        if site != "none":
            raise cross_origin(OTHER_ORIGIN_DETAIL)
    host = headers.get("Host", "")
    if origin is not None:
        if not _is_at(origin, host):
            raise cross_origin(f"pages of {origin[:128]!a} may not read or write messages")
    elif site is None:
        _reject_other_referrers(headers, host)


def _reject_other_referrers(headers: Mapping[str, str], host: str) -> None:
    referrer = headers.get("Referer")
    if referrer is not None:
        if not _is_at(referrer, host):
            raise cross_origin(OTHER_ORIGIN_DETAIL)
    elif _is_browser(headers):
        raise cross_origin(
            "a browser must say which page sent a request to read or write messages; use the "
            "web UI at /, use another program, or serve over HTTPS"
        )


def _is_browser(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sent the request, judged by headers that a page cannot remove.

    Every browser sends `User-Agent` and `Accept-Language`. Programs that call themselves Mozilla,
    such as PowerShell, do not send `Accept-Language`.
    """
    if headers.get("Accept", "").startswith("image/"):
        return True
    return "Accept-Language" in headers and headers.get("User-Agent", "").startswith("Mozilla/")


def origin_of(url: str) -> str:
    """Return the origin of a URL as a browser writes it, or '' for anything else."""
    found = _URL.match(url)
    if found is None:
        return ""
    scheme = found[1].lower()
    return f"{scheme}://{found[2].lower().removesuffix(_DEFAULT_PORTS[scheme])}"


def is_from_own_page(headers: Mapping[str, str], own_origins: frozenset[str] = _NONE) -> bool:
    """Return whether a browser says that a page of this service sent the request.

    Requests with a session's cookie must say so, reads as well. `own_origins` has the origin of the
    service if a proxy changes its `Host`.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site.strip().lower() != "same-origin":
        return False
    if site is not None:
        # The browser has compared the origins itself, so a Host that a proxy changed is fine.
        return True
    origin = headers.get("Origin")
    if origin is None:
        return False
    return origin in own_origins or _is_at(origin, headers.get("Host", ""))


def is_local_host(host: str) -> bool:
    """Return whether a `Host` names a loopback address of this machine, or localhost."""
    name = _normalized(_PORT.sub("", host))
    return (
        name == "localhost" or name.endswith(".localhost") or is_loopback_address(name.strip("[]"))
    )


def _is_at(url: str, host: str) -> bool:
    """Return whether an `Origin` or a `Referer` belongs to the requested host."""
    found = _URL.match(url)
    if found is None:
        return False
    port = _DEFAULT_PORTS[found[1].lower()]
    return found[2].lower().removesuffix(port) == host.lower().removesuffix(port)


def reject_malformed_hosts(host: str) -> None:
    """Raise a 400 problem for a `Host` that is not a host name."""
    if not _HOST.fullmatch(host):
        raise bad_request("the Host header must be one host name")


def reject_other_hosts(host: str, rule: HostRule) -> None:
    """Raise a 421 problem for a host that the rule does not allow."""
    if not rule.names and not rule.is_loopback:
        return
    name = _normalized(_PORT.sub("", host))
    if name in rule.names and name:
        return
    if not ((rule.is_loopback or rule.has_addresses) and _is_local(name)):
        raise wrong_host(rule.is_loopback)


def _normalized(name: str) -> str:
    """Return a host name in lowercase, without a final dot."""
    return name.lower().removesuffix(".")


def _is_local(name: str) -> bool:
    """Return whether the host is an IP address or localhost, so no name server resolves it.

    See RFC 6761, 6.3. An absent host counts as local, because browsers always send one.
    """
    if not name or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
