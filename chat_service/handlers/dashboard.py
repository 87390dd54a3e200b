"""The data of the dashboard at `/ops`."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from chat_service.api.request_options import since, takes_gzip
from chat_service.api.shared_answers import Pace
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response

#: The shortest time between two compressed answers, in seconds.
ZIPPED_EVERY_S = 0.5
#: Answers that are sent immediately in each second. Every other one is delayed by a second.
HISTORY_AT_ONCE, PACE_S = 20, 1.0
#: Returns the samples after a time as JSON. Arguments: the time, the current time, and whether to
#: compress.
Document: TypeAlias = Callable[[float, float, bool], Awaitable[bytes]]


class DashboardHandlers:
    """The handler of `/ops/history`."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._zip_again_at = 0.0
        self._pace = Pace(HISTORY_AT_ONCE, PACE_S)

    async def history(self, request: Request) -> Response:
        """GET /ops/history: the counters of all processes, over the last quarter of an hour."""
        since_s = since(request.query)
        await self._pace.turn()
        now = time.monotonic()
        # Compression costs more than the rest of the answer, and is optional.
        if zipped := now >= self._zip_again_at and takes_gzip(request.headers):
            self._zip_again_at = now + ZIPPED_EVERY_S
        body = await self._document(since_s, time.time(), zipped)
        headers = {
            **JSON_HEADERS,
            "Vary": "Accept-Encoding",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return Response(200, headers, BodyChunk(body, 0))
