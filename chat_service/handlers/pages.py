"""The pages for people, and the files that they are made of: small, static, and all our own.

They lie in `chat_service/web` and are read once, at start. What they show they ask the API for,
like any other client of it.
"""

import gzip
import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from chat_service.api.problems import not_found
from chat_service.api.request_options import takes_gzip
from chat_service.api.types import BodyChunk, Request, Response

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
_DOCUMENT = "openapi.json"
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    # Over plain HTTP it is how the service knows the requests of its own pages.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


#: A link to another page, in the header; one that holds more than a word stays, and leads nowhere.
_LINK = rb' ?<a href="%b">[^<]*</a>| href="%b"'


class _File(NamedTuple):
    body: bytes
    zipped: bytes
    headers: Mapping[str, str]


class PageHandlers:
    """The handlers of pages, and of the files that they load."""

    def __init__(self, absent: Collection[bytes] = ()) -> None:
        """`absent` are the links to pages that are not served beside these: none links there."""
        self._files = {
            path.name: _load(path, absent) for path in WEB.iterdir() if path.suffix in _TYPES
        }

    async def inbox(self, request: Request) -> Response:
        """GET /: the page to send and to read."""
        return self._answer(request, "inbox.html")

    async def dashboard(self, request: Request) -> Response:
        """GET /ops: what happens now."""
        return self._answer(request, "ops.html")

    async def docs(self, request: Request) -> Response:
        """GET /docs: the reference, to read and to try."""
        return self._answer(request, "docs.html")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: this API, for programs."""
        return self._answer(request, _DOCUMENT)

    def publish(self, document: bytes) -> None:
        """Serve this OpenAPI document: it is made of the routes, hence after their handlers."""
        self._files[_DOCUMENT] = _file(document, "application/json")

    @property
    def document(self) -> bytes:
        """The OpenAPI document."""
        return self._files[_DOCUMENT].body

    async def asset(self, request: Request) -> Response:
        """GET /assets/:file: what a page loads. 404 for pages themselves, and all else."""
        if request.parameter.endswith((".html", _DOCUMENT)):
            raise not_found()
        return self._answer(request, request.parameter)

    def _answer(self, request: Request, name: str) -> Response:
        file = self._files.get(name)
        if file is None:
            raise not_found()
        if file.headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(304, file.headers, BodyChunk(b"", 0))
        if takes_gzip(request.headers):
            return Response(
                200, {**file.headers, "Content-Encoding": "gzip"}, BodyChunk(file.zipped, 0)
            )
        return Response(200, file.headers, BodyChunk(file.body, 0))


def _load(path: Path, absent: Collection[bytes]) -> _File:
    body = path.read_bytes()
    if path.suffix == ".html":
        for page in absent:
            body = re.sub(_LINK % (page, page), b"", body)
    return _file(body, _TYPES[path.suffix])


def _file(body: bytes, content_type: str) -> _File:
    # Weak: the same for both encodings of the body.
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {**_HEADERS, "Content-Type": content_type, "ETag": tag}
    return _File(body, gzip.compress(body, 9, mtime=0), headers)
