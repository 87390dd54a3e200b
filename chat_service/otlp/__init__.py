"""OpenTelemetry: traces of requests, and what `/metrics` counts, sent to a collector over OTLP.

An extra (`otel`) that is off unless the setting `telemetry` says `otlp`; made by
`chat_service.service`. Everything else is said by OpenTelemetry's own variables in the environment,
which its SDK reads: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, ...
"""

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry

from chat_service import __version__
from chat_service.otlp.daemon_thread import on_daemon_thread
from chat_service.otlp.metrics import MetricsExport
from chat_service.otlp.tracing import RequestTracer

#: How long the last traces and counts may take on their way when the service stops, in seconds.
_STOP_S = 3.0
#: A batch links to all its requests.
_LIMITS = SpanLimits(max_links=5000)


class Telemetry:
    """Sends what this process does. A collector that is away costs nothing but its data."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """`registry` holds what this process counts."""
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "chat-inbox"),
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()}/{os.getpid()}",
            }
        )
        self._provider = TracerProvider(
            resource=resource, span_limits=_LIMITS, shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = RequestTracer(self._provider.get_tracer("chat_service", __version__))
        self._metrics = MetricsExport(registry, resource)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send counts; traces are sent as they come."""
        self._task = asyncio.create_task(self._metrics.run(), name="otlp-metrics")

    async def stop(self) -> None:
        """Send what is left, for a few seconds at most. Safe twice."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        last = self._metrics.collect()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(
                    on_daemon_thread(partial(self._metrics.send, last)),
                    on_daemon_thread(self._provider.shutdown),
                )
        self._metrics.close()
