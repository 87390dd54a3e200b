"""What the board at `/ops` is drawn from."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from chat_service.message import JSON_HEADERS, Part, Request, Response
from chat_service.parameters import since, takes_gzip

#: Gives the samples after a time, as JSON: the time, what time it is now, and whether zipped.
Document: TypeAlias = Callable[[float, float, bool], Awaitable[bytes]]


class BoardHandlers:
    """The handler of the history."""

    def __init__(self, document: Document) -> None:
        self._document = document

    async def history(self, request: Request) -> Response:
        """GET /ops/history: raw counters of all processes, those after `?since=` only."""
        zipped = takes_gzip(request.headers)
        body = await self._document(since(request.query), time.time(), zipped)
        headers = {
            **JSON_HEADERS,
            "Vary": "Accept-Encoding",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return Response(200, headers, Part(body, 0))
