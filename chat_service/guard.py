"""Keeps requests from consuming or writing that no person or program meant to make.

A browser's prefetch, and a request that some other site's page made a browser send, look like
any GET. They say what they are, and are refused before anything is touched. So is a request that
was meant for another host.
"""

import re
from collections.abc import Mapping

from chat_service.problems import bad_request, refused_origin, wrong_host

_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")
_PORT = re.compile(r":\d*$")
#: The one route that speaks WebSocket.
STREAM = "/chat/:username/stream"
_PREFETCH_HEADERS = ("Sec-Purpose", "Purpose", "X-Moz", "X-Purpose")


_NONE: frozenset[str] = frozenset()


def refuse_the_unasked(headers: Mapping[str, str], allowed: frozenset[str] = _NONE) -> None:
    """Raise a 403 problem for a prefetch or a cross-site browser request.

    Pages of an origin that is `allowed` may send the latter.
    """
    is_cross_site = headers.get("Sec-Fetch-Site", "").strip().lower() == "cross-site"
    if is_cross_site and headers.get("Origin") not in allowed:
        raise refused_origin("a cross-site browser request reads and writes nothing here")
    for name in _PREFETCH_HEADERS:
        announced = headers.get(name, "").lower()
        if "prefetch" in announced or "preview" in announced:
            raise refused_origin("a prefetch reads nothing here; ask again when it is wanted")


def refuse_upgrades_but_to(stream: str, route: str) -> None:
    """Raise a 400 problem for a WebSocket that is opened elsewhere: nobody would see the answer."""
    if route != stream:
        raise bad_request(f"a WebSocket is opened at {stream}")


def refuse_other_origins(headers: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Raise a 403 problem for a request of a page that is neither ours nor named as allowed.

    Browsers name the page's origin, and open a WebSocket wherever a page asks them to.
    """
    origin = headers.get("Origin")
    if origin is None or origin in allowed:
        return
    if origin.partition("://")[2] != headers.get("Host", ""):
        raise refused_origin(f"pages of {origin[:128]!a} read nothing here")


def refuse_other_hosts(host: str, allowed: frozenset[str]) -> None:
    """Raise a 400 problem for what is no host, a 421 for one that is not allowed.

    With no host named as allowed, all are.
    """
    if not _HOST.fullmatch(host):
        raise bad_request("the Host is not one host's name")
    if allowed and _PORT.sub("", host).lower() not in allowed:
        raise wrong_host()
