"""Finds the token of a request: in its `Authorization`, in a WebSocket's subprotocol, or a cookie.

`chat_service.access.gate` decides what the token permits. No problem raised here has the token.
"""

import re
from base64 import urlsafe_b64decode
from urllib.parse import unquote

from tornado.httputil import HTTPHeaders

from chat_service.api.problems import bad_request, cross_origin, unauthorized
from chat_service.api.request_policy import is_from_own_page, is_local_host

#: The longest token, in characters.
TOKEN_MAX = 4096
#: The cookie that holds a browser's token. A browser takes the first one only over HTTPS, and no
#: other host can set it. The other one serves browsers on this machine that use plain HTTP.
SECURE_COOKIE, LOCAL_COOKIE = "__Host-chat", "chat"
#: The prefix of the subprotocol that carries a WebSocket's token.
_TOKEN_PROTOCOL = "chat.bearer."
#: Separates the token in a cookie that outlasts the browser from the end of the cookie, in seconds
#: since 1970. No token has it. A page cannot read the cookie, so the service has to tell the end.
_KEPT_UNTIL = ":"

#: RFC 6750, 2.1.
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,10}")


def has_token(query: str) -> bool:
    """Return whether a query seems to have a token, which would end up in logs and histories."""
    query = unquote(query) if "%" in query else query
    return "token=" in query.lower() or "=cht_" in query or "=eyJ" in query


def reject_misplaced(headers: HTTPHeaders, query: str) -> None:
    """Raise a 400 problem for a token in the query, or for several `Authorization` headers."""
    if query and has_token(query):
        raise bad_request("a token must not be in the URL; send it as Authorization: Bearer TOKEN")
    if len(headers.get_list("Authorization")) > 1:
        raise bad_request("there are several Authorization headers")


def find_token(headers: HTTPHeaders, own_origins: frozenset[str]) -> str | None:
    """Return the token of a request, or None if it has none. `own_origins` are the service's.

    `Authorization` counts before the cookie, which a browser adds by itself. Raises a problem: 400
    for two tokens, 401 for another scheme or a malformed token, and 403 for a cookie that a page of
    another origin may have made the browser send.
    """
    given = headers.get("Authorization")
    if headers.get("Upgrade", "").lower() == "websocket":
        carried = _in_subprotocol(headers.get("Sec-WebSocket-Protocol", ""))
        if carried is not None:
            if given is not None:
                raise bad_request("there are two tokens, in Authorization and in a subprotocol")
            return carried
    if given is None:
        return _in_cookie(headers, own_origins)
    return bearer_of(headers)


def bearer_of(headers: HTTPHeaders) -> str | None:
    """Return the token in `Authorization`, if there is this header. Raises a 401 problem."""
    given = headers.get("Authorization")
    if given is None:
        return None
    bearer = _BEARER.fullmatch(given)
    if bearer is None:
        raise unauthorized("use Authorization: Bearer TOKEN", is_invalid=True)
    return bearer[1]


def session_cookie(headers: HTTPHeaders, token: str) -> str:
    """Return the `Set-Cookie` that makes a browser send a token until the browser ends."""
    return _set_cookie(headers, token)


def kept_cookie(headers: HTTPHeaders, token: str, kept_until: int, max_age_s: int) -> str:
    """Return the `Set-Cookie` that makes a browser send a token for some seconds.

    `kept_until` is the end, in seconds since 1970. `kept_until_of` finds it in the cookie.
    """
    return _set_cookie(headers, f"{token}{_KEPT_UNTIL}{kept_until}", f"; Max-Age={max_age_s}")


def no_cookie(headers: HTTPHeaders) -> str:
    """Return the `Set-Cookie` that makes a browser forget its token at once."""
    return _set_cookie(headers, "", "; Max-Age=0")


def kept_until_of(headers: HTTPHeaders) -> int | None:
    """Return when the browser forgets the token that it sent, in seconds since 1970.

    None if it forgets the token when it ends, or if it sent none in a cookie.
    """
    cookie = None if "Authorization" in headers else _cookie_of(headers)
    end = (cookie or "").partition(_KEPT_UNTIL)[2]
    return int(end) if _SECONDS.fullmatch(end) else None


def _set_cookie(headers: HTTPHeaders, value: str, age: str = "") -> str:
    is_local = is_plain_local(headers)
    name, secure = (LOCAL_COOKIE, "") if is_local else (SECURE_COOKIE, "; Secure")
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{age}"


def is_plain_local(headers: HTTPHeaders) -> bool:
    """Return whether a browser on this machine sent a request without TLS."""
    origin = headers.get("Origin", "http:")
    return origin.startswith("http:") and is_local_host(headers.get("Host", ""))


def _in_cookie(headers: HTTPHeaders, own_origins: frozenset[str]) -> str | None:
    cookie = _cookie_of(headers)
    if cookie is None:
        return None
    if not is_from_own_page(headers, own_origins):
        raise cross_origin("the session of a browser is for the pages of this service only")
    return cookie.partition(_KEPT_UNTIL)[0]


def _cookie_of(headers: HTTPHeaders) -> str | None:
    """Return the value of the session's cookie, or None if there is none."""
    cookie = None
    # Other services of this site may have cookies with any value, such as one with a comma and our
    # name in it. Only a semicolon separates cookies. Only spaces and tabs surround them: a browser
    # lets a neighbor of this host set a cookie whose name is some other space and our name.
    for pair in ";".join(headers.get_list("Cookie")).split(";"):
        name, _, value = pair.strip(" \t").partition("=")
        if name == SECURE_COOKIE:
            return value
        if name == LOCAL_COOKIE and is_local_host(headers.get("Host", "")):
            cookie = value
    return cookie


def _in_subprotocol(protocols: str) -> str | None:
    """Return the token among the subprotocols that a client offers. Raises a 400 or 401 problem."""
    carried = [
        each.strip()[len(_TOKEN_PROTOCOL) :]
        for each in protocols.split(",")
        if each.strip().startswith(_TOKEN_PROTOCOL)
    ]
    if not carried:
        return None
    if len(carried) > 1:
        raise bad_request("there are several tokens in the subprotocols")
    try:
        encoded = carried[0].rstrip("=")
        return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
    except ValueError:
        raise unauthorized(
            "the token in the subprotocol is not base64url", is_invalid=True
        ) from None
