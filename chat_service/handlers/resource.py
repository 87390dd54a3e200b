"""Says which issuer's tokens the service takes (RFC 9728), so that clients can find it."""

from typing import NamedTuple

import msgspec

from chat_service.api.problems import not_found
from chat_service.api.types import BodyChunk, Request, Response

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "max-age=3600"}


class ProtectedResource(NamedTuple):
    """The issuer of JSON Web Tokens, or '' if none are taken, and the URL of the service.

    Without a URL, `scheme` and the requested host stand for it.
    """

    issuer: str = ""
    url: str = ""
    scheme: str = "http"


class ResourceHandlers:
    """The handler of `/.well-known/oauth-protected-resource`."""

    def __init__(self, resource: ProtectedResource) -> None:
        self._resource = resource

    async def metadata(self, request: Request) -> Response:
        """GET /.well-known/oauth-protected-resource: the issuer of the tokens that are taken."""
        issuer, url, scheme = self._resource
        if not issuer:
            raise not_found()
        document = {
            "resource": url.rstrip("/") or f"{scheme}://{request.headers.get('Host', '')}",
            "authorization_servers": [issuer],
            "bearer_methods_supported": ["header"],
        }
        return Response(200, _HEADERS, BodyChunk(msgspec.json.encode(document), 0))
