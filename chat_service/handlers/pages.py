"""The pages for people, and the files that they are made of: small, static, and all our own.

They lie in `chat_service/web` and are read once, at start. What they show they ask the API for,
like any other client of it.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from chat_service.message import Part, Request, Response
from chat_service.problems import not_found

WEB = Path(__file__).parents[1] / "web"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Nothing from anywhere else, nothing inline, no frames: a text that is shown can do nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


#: What makes links of the names of the other pages.
_LINKS = re.compile(rb' href="/(docs)?"')


class _File(NamedTuple):
    body: bytes
    zipped: bytes
    headers: Mapping[str, str]


class PageHandlers:
    """The handlers of pages, and of the files that they load."""

    def __init__(self) -> None:
        self._files = {
            path.name: _file(path.read_bytes(), path.suffix)
            for path in WEB.iterdir()
            if path.suffix in _TYPES
        }
        lone_board = _LINKS.sub(b"", (WEB / "ops.html").read_bytes())
        self._files["lone-ops.html"] = _file(lone_board, ".html")

    async def inbox(self, request: Request) -> Response:
        """GET /: the page to send and to read."""
        return self._answer(request, "inbox.html")

    async def board(self, request: Request) -> Response:
        """GET /ops: what happens now."""
        return self._answer(request, "ops.html")

    async def lone_board(self, request: Request) -> Response:
        """GET /ops, on a port that has no other page."""
        return self._answer(request, "lone-ops.html")

    async def asset(self, request: Request) -> Response:
        """GET /assets/:file: what a page loads. 404 for pages themselves, and all else."""
        if request.parameter.endswith(".html"):
            raise not_found()
        return self._answer(request, request.parameter)

    def _answer(self, request: Request, name: str) -> Response:
        file = self._files.get(name)
        if file is None:
            raise not_found()
        if file.headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(304, file.headers, Part(b"", 0))
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(200, {**file.headers, "Content-Encoding": "gzip"}, Part(file.zipped, 0))
        return Response(200, file.headers, Part(file.body, 0))


def _file(body: bytes, suffix: str) -> _File:
    # Weak: the same for both encodings of the body.
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {**_HEADERS, "Content-Type": _TYPES[suffix], "ETag": tag}
    return _File(body, gzip.compress(body, 9, mtime=0), headers)
