"""OpenTelemetry: sends traces of requests, and the metrics of `/metrics`, to a collector over OTLP.

Needs the extra `otel`. It is off unless the setting `telemetry` is `otlp`; `chat_service.service`
creates it. The SDK reads all other options from OpenTelemetry's environment variables:
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and so on.
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

#: Time to send the last traces and metrics when the service stops, in seconds.
_STOP_S = 3.0
#: The span of a batch links to all its requests.
_LIMITS = SpanLimits(max_links=5000)


class Telemetry:
    """Sends the telemetry of this process. If the collector is unavailable, only data is lost."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Send the metrics in `registry`, which are those of this process."""
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
        """Start to send metrics. Traces are sent even without this."""
        self._task = asyncio.create_task(self._metrics.run(), name="otlp-metrics")

    async def stop(self) -> None:
        """Send what is left, for at most 3 s. May be called twice."""
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
