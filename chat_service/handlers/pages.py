"""The web pages and their files: small, static, and without third-party code.

They are in `chat_service/web` and are read once, at startup. The pages use the API like any other
client.
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
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
#: Nothing from other sites, nothing inline, and no frames, so that a message cannot run code.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCUMENT = "openapi.json"
#: The service worker. It is for all pages, which are one level above it, also below a proxy's path.
_WORKER = "worker.js"
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    # Over plain HTTP, the service recognizes the requests of its own pages by their Referer.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_NONE: Mapping[str, str] = {}


#: A link to another page in the header. A link around more than a word keeps its text.
_LINK = rb' ?<a href="(?:\.\./)?%b">[^<]*</a>| href="(?:\.\./)?%b"'


class _File(NamedTuple):
    body: bytes
    zipped: bytes
    headers: Mapping[str, str]


class PageHandlers:
    """The handlers of the pages and of the files that they load."""

    def __init__(self, absent: Collection[bytes] = ()) -> None:
        """Load all files, and remove links to the pages in `absent`, which are not served here."""
        self._files = {
            path.name: _load(path, absent) for path in WEB.iterdir() if path.suffix in _TYPES
        }

    async def inbox(self, request: Request) -> Response:
        """GET /: the web page for sending and reading messages."""
        return self._answer(request, "inbox.html")

    async def dashboard(self, request: Request) -> Response:
        """GET /ops: the dashboard."""
        return self._answer(request, "ops.html")

    async def runbook(self, request: Request) -> Response:
        """GET /ops/runbook: what operators do about each symptom."""
        return self._answer(request, "runbook.html")

    async def docs(self, request: Request) -> Response:
        """GET /docs: the interactive API reference."""
        return self._answer(request, "docs.html")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: the OpenAPI document."""
        return self._answer(request, _DOCUMENT)

    def publish(self, document: bytes) -> None:
        """Serve this OpenAPI document. It is built from the routes, after their handlers exist."""
        self._files[_DOCUMENT] = _file(document, "application/json")

    @property
    def document(self) -> bytes:
        """Return the OpenAPI document."""
        return self._files[_DOCUMENT].body

    async def asset(self, request: Request) -> Response:
        """GET /assets/:file: a file that a page loads."""
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
    more = {"Service-Worker-Allowed": "../"} if path.name == _WORKER else {}
    return _file(body, _TYPES[path.suffix], more)


def _file(body: bytes, content_type: str, more: Mapping[str, str] = _NONE) -> _File:
    # A weak tag, because it is the same for both encodings of the body.
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {**_HEADERS, **more, "Content-Type": content_type, "ETag": tag}
    return _File(body, gzip.compress(body, 9, mtime=0), headers)
