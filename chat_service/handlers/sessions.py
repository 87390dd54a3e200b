"""The session of a browser: a token in a cookie that no script can read.

The cookie holds the token itself. Processes and nodes share nothing but the database and the access
file, so none of them could keep a session or the key of one. A page cannot read the cookie, and the
browser sends it to this service only; `chat_service.access.credentials` has the rules.
"""

import time
from datetime import UTC, datetime
from typing import cast

import msgspec
from tornado.httputil import HTTPHeaders

from chat_service.access.audit import AuditLog
from chat_service.access.credentials import (
    bearer_of,
    kept_cookie,
    kept_until_of,
    no_cookie,
    session_cookie,
)
from chat_service.access.gate import Gate
from chat_service.api.identity import Identity
from chat_service.api.problems import bad_request, unauthorized
from chat_service.api.request_policy import reject_other_pages
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response
from chat_service.api.validation import keeps_session

#: Browsers drop a longer cookie: 4096 bytes with its name.
_COOKIE_MAX = 4000
#: How long a browser that was closed keeps a session, in seconds, if it is asked to and the token
#: lasts as long: 30 days, after which NIST SP 800-63B wants people to sign in again.
KEPT_MAX_S = 30 * 86_400


class SessionHandlers:
    """The handlers of `/session`."""

    def __init__(self, gate: Gate, audit: AuditLog) -> None:
        self._gate = gate
        self._audit = audit

    async def show(self, request: Request) -> Response:
        """GET /session: who sends the request, and what they may do."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        identity = await self._gate.identify_patiently(headers)
        return self._show(identity, kept_until_of(headers) if identity.subject else None)

    async def begin(self, request: Request) -> Response:
        """POST /session: turn the token in `Authorization` into a cookie."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        is_kept = keeps_session(request.body)
        if self._gate.access == "off":
            return self._show(await self._gate.identify_patiently(headers))
        token = bearer_of(headers)
        if token is None:
            raise unauthorized()
        identity = await self._gate.identify_patiently(headers)
        if len(token) > _COOKIE_MAX:
            raise bad_request(f"a session's token may have at most {_COOKIE_MAX} characters")
        self._audit.login(request.id, identity.subject, request.client.key.removeprefix("ip:"))
        if not is_kept:
            return self._show(identity, cookie=session_cookie(headers, token))
        now = int(time.time())
        kept_until = min(now + KEPT_MAX_S, int(identity.until or now + KEPT_MAX_S))
        cookie = kept_cookie(headers, token, kept_until, max(kept_until - now, 1))
        return self._show(identity, kept_until, cookie)

    async def end(self, request: Request) -> Response:
        """DELETE /session: make the browser forget the token, valid or not."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        said = {"Cache-Control": "no-store", "Set-Cookie": no_cookie(headers)}
        return Response(204, said, BodyChunk(b"", 0))

    def _show(
        self, identity: Identity, kept_until: int | None = None, cookie: str = ""
    ) -> Response:
        rights = identity.rights
        document = {
            "access": self._gate.access,
            "subject": identity.subject or None,
            "send": rights.send,
            "read": rights.read,
            "ops": rights.ops,
            "until": _time(identity.until),
            "kept_until": _time(kept_until),
        }
        headers = {**JSON_HEADERS, "Set-Cookie": cookie} if cookie else JSON_HEADERS
        return Response(200, headers, BodyChunk(msgspec.json.encode(document), 0))


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _headers_of(request: Request) -> HTTPHeaders:
    return cast(HTTPHeaders, request.headers)
