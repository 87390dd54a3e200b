"""Refuses requests that no person or program meant to make, before anything is touched.

Three kinds look like any other request and are refused here:

- a browser's prefetch, which says so;
- a request that a page of another site makes a browser send;
- a request for another host's name, by which such a page gets around its own origin.

Browsers send `Sec-Fetch-Site` only to HTTPS and loopback addresses. Elsewhere `Origin` and
`Referer` tell where a request is from. A page can suppress both for a GET, so a browser that
sends none of the three is refused as well.
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


_NONE: frozenset[str] = frozenset()


class HostRule(NamedTuple):
    """The hosts that a port answers for: the names in `allowed_hosts`, and more.

    On a loopback address (`is_loopback`) these are IP addresses and localhost, where no other
    site's name can lead, and no others. Elsewhere every host is answered unless names are given.
    With `has_addresses`, IP addresses and localhost are answered beside the names.
    """

    names: frozenset[str] = _NONE
    is_loopback: bool = False
    has_addresses: bool = False


def host_rule(
    names: tuple[str, ...], addresses: list[str], *, has_addresses: bool = False
) -> HostRule:
    """Return the rule for a port that listens on these addresses."""
    is_loopback = bool(addresses) and all(is_loopback_address(each) for each in addresses)
    return HostRule(frozenset(_plain(name) for name in names), is_loopback, has_addresses)


def is_loopback_address(address: str) -> bool:
    """Return whether only this machine can connect to the address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def refuse_prefetches(headers: Mapping[str, str]) -> None:
    """Raise a 403 problem for a request that a browser makes in advance."""
    for name in _PREFETCH_HEADERS:
        announced = headers.get(name, "").lower()
        if "prefetch" in announced or "preview" in announced:
            raise speculative("a prefetch reads nothing here; ask again when it is wanted")


def refuse_other_pages(headers: Mapping[str, str], allowed: frozenset[str] = _NONE) -> None:
    """Raise a 403 problem for a request that a page of another origin makes a browser send.

    Pages of an origin in `allowed` may send it.
    """
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if origin is not None and origin in allowed:
        return
    if site is not None:
        site = site.strip().lower()
        if site == "same-origin":
            # The browser has compared the origins itself, whatever a proxy did to the Host.
            return
        if site != "none":
            raise cross_origin("a page of another origin reads and writes nothing here")
    host = headers.get("Host", "")
    if origin is not None:
        if not _is_at(origin, host):
            raise cross_origin(f"pages of {origin[:128]!a} read and write nothing here")
    elif site is None:
        _refuse_other_referrers(headers, host)


def _refuse_other_referrers(headers: Mapping[str, str], host: str) -> None:
    referrer = headers.get("Referer")
    if referrer is not None:
        if not _is_at(referrer, host):
            raise cross_origin("a page of another origin reads and writes nothing here")
    elif _is_browser(headers):
        raise cross_origin(
            "a browser that does not say which page a request is from reads and writes nothing "
            "here; use the page at / or a program, or serve over HTTPS"
        )


def _is_browser(headers: Mapping[str, str]) -> bool:
    """Return whether a browser sends this, as far as a page in it cannot hide that.

    Every browser sends `User-Agent` and `Accept-Language`, and no page can take them away.
    Programs that call themselves Mozilla, such as PowerShell, do not send the second.
    """
    if headers.get("Accept", "").startswith("image/"):
        return True
    return "Accept-Language" in headers and headers.get("User-Agent", "").startswith("Mozilla/")


def _is_at(url: str, host: str) -> bool:
    """Return whether an `Origin` or a `Referer` is of the host that was asked."""
    found = _URL.match(url)
    if found is None:
        return False
    port = _DEFAULT_PORTS[found[1].lower()]
    return found[2].lower().removesuffix(port) == host.lower().removesuffix(port)


def refuse_malformed_hosts(host: str) -> None:
    """Raise a 400 problem for what is no host."""
    if not _HOST.fullmatch(host):
        raise bad_request("the Host is not one host's name")


def reject_other_hosts(host: str, rule: HostRule) -> None:
    """Raise a 421 problem for a host that the rule does not answer for."""
    if not rule.names and not rule.is_loopback:
        return
    name = _plain(_PORT.sub("", host))
    if name in rule.names and name:
        return
    if not ((rule.is_loopback or rule.has_addresses) and _is_local(name)):
        raise wrong_host(rule.is_loopback)


def _plain(name: str) -> str:
    """A host's name in the one form that is compared."""
    return name.lower().removesuffix(".")


def _is_local(name: str) -> bool:
    """Return whether no name server decides where this host is (RFC 6761, 6.3).

    True as well for no host at all: browsers always send one.
    """
    if not name or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
