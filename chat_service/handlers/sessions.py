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
from chat_service.access.credentials import bearer_of, session_cookie
from chat_service.access.gate import Gate
from chat_service.api.identity import Identity
from chat_service.api.problems import bad_request, unauthorized
from chat_service.api.request_policy import reject_other_pages
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response

#: Browsers drop a longer cookie: 4096 bytes with its name.
_COOKIE_MAX = 4000


class SessionHandlers:
    """The handlers of `/session`."""

    def __init__(self, gate: Gate, audit: AuditLog) -> None:
        self._gate = gate
        self._audit = audit

    async def show(self, request: Request) -> Response:
        """GET /session: who sends the request, and what they may do."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        return self._show(await self._gate.identify_patiently(headers))

    async def begin(self, request: Request) -> Response:
        """POST /session: turn the token in `Authorization` into a cookie."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        if self._gate.access == "off":
            return self._show(await self._gate.identify_patiently(headers))
        token = bearer_of(headers)
        if token is None:
            raise unauthorized()
        identity = await self._gate.identify_patiently(headers)
        if len(token) > _COOKIE_MAX:
            raise bad_request(f"a session's token may have at most {_COOKIE_MAX} characters")
        self._audit.login(request.id, identity.subject, request.client.key.removeprefix("ip:"))
        left_s = max(int(identity.until - time.time()), 1) if identity.until else None
        return self._show(identity, session_cookie(headers, token, left_s))

    async def end(self, request: Request) -> Response:
        """DELETE /session: make the browser forget the token, valid or not."""
        headers = _headers_of(request)
        reject_other_pages(headers, self._gate.own_origins)
        cookie = session_cookie(headers, "", 0)
        return Response(204, {"Cache-Control": "no-store", "Set-Cookie": cookie}, BodyChunk(b"", 0))

    def _show(self, identity: Identity, cookie: str = "") -> Response:
        until = datetime.fromtimestamp(identity.until, UTC) if identity.until else None
        rights = identity.rights
        document = {
            "access": self._gate.access,
            "subject": identity.subject or None,
            "send": rights.send,
            "read": rights.read,
            "ops": rights.ops,
            "until": until,
        }
        headers = {**JSON_HEADERS, "Set-Cookie": cookie} if cookie else JSON_HEADERS
        return Response(200, headers, BodyChunk(msgspec.json.encode(document), 0))


def _headers_of(request: Request) -> HTTPHeaders:
    return cast(HTTPHeaders, request.headers)
