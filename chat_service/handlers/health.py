"""Liveness, readiness and metrics, for monitoring."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from chat_service.api.shared_answers import Pace
from chat_service.api.types import JSON_HEADERS, BodyChunk, Request, Response

#: Answers of `/metrics` that are sent immediately in each second. Every other one is delayed by a
#: second.
METRICS_AT_ONCE, PACE_S = 20, 1.0


class Readiness(NamedTuple):
    """Whether each part of the service works."""

    database: bool
    indexes: bool
    workers: bool
    accepting: bool


class HealthHandlers:
    """The handlers of `/livez`, `/readyz` and `/metrics`."""

    def __init__(
        self,
        check: Callable[[], Awaitable[Readiness]],
        metrics_text: Callable[[], Awaitable[bytes]],
    ) -> None:
        self._check = check
        self._metrics_text = metrics_text
        self._metrics_pace = Pace(METRICS_AT_ONCE, PACE_S)

    async def live(self, request: Request) -> Response:
        """GET /livez: check that the process is alive."""
        return Response(200, JSON_HEADERS, BodyChunk(b'{"status":"ok"}', 0))

    async def ready(self, request: Request) -> Response:
        """GET /readyz: check that the service can serve requests."""
        readiness = await self._check()
        is_ready = all(readiness)
        document = {"status": "ok" if is_ready else "unavailable", **readiness._asdict()}
        return Response(
            200 if is_ready else 503, JSON_HEADERS, BodyChunk(msgspec.json.encode(document), 0)
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: the metrics of all processes, for Prometheus."""
        await self._metrics_pace.turn()
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
        return Response(200, headers, BodyChunk(await self._metrics_text(), 0))
