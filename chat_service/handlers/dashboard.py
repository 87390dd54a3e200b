"""The data of the dashboard at `/ops`."""

import time
from typing import Protocol

from chat_service.api.request_options import history_range, takes_gzip
from chat_service.api.shared_answers import Pace
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response

#: The shortest time between two compressed answers, in seconds.
ZIPPED_EVERY_S = 0.5
#: Answers that are sent immediately in each second. Every other one is delayed by a second.
HISTORY_AT_ONCE, PACE_S = 20, 1.0
#: The same for answers with a day. Each costs ten times as much.
DAYS_AT_ONCE = 2
#: A part of a day that is no longer than this is small, in seconds.
SMALL_S = 3600


class Document(Protocol):
    """Returns samples as JSON; see `chat_service.metrics.history.History.document`."""

    async def __call__(self, since: float, now: float, *, is_day: bool, zipped: bool) -> bytes:
        """Return the samples after a time."""
        ...


class DashboardHandlers:
    """The handler of `/ops/history`."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._zip_again_at = 0.0
        self._pace = Pace(HISTORY_AT_ONCE, PACE_S)
        self._day_pace = Pace(DAYS_AT_ONCE, PACE_S)

    async def history(self, request: Request) -> Response:
        """GET /ops/history: the state of the node, and the counters of all processes over the last
        quarter of an hour, or with `?range=day` those of the node over the last day.
        """
        since_s, is_day = history_range(request.query)
        is_large = is_day and since_s < time.time() - SMALL_S
        await (self._day_pace if is_large else self._pace).turn()
        now = time.monotonic()
        # Compression costs more than the rest of the answer, and is optional. A day is too large
        # to go without.
        if zipped := (is_large or now >= self._zip_again_at) and takes_gzip(request.headers):
            self._zip_again_at = now + ZIPPED_EVERY_S
        body = await self._document(since_s, time.time(), is_day=is_day, zipped=zipped)
        headers = {
            **JSON_HEADERS,
            "Vary": "Accept-Encoding",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return Response(200, headers, BodyChunk(body, 0))
