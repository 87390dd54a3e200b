"""An OTLP receiver like a collector's: it receives traces and metrics over HTTP, in protobuf."""

import gzip
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler


class Collector:
    """Listens on a free port, and keeps what it receives. Use as an async context."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        #: Metrics by name, for each export.
        self.metrics: list[dict[str, Any]] = []
        self.resources: list[Mapping[str, str]] = []
        self.requests: list[HTTPServerRequest] = []
        sock, port = bind_unused_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server = HTTPServer(
            Application([("/v1/(traces|metrics)", _Receive, {"collector": self})])
        )
        self._server.add_socket(sock)

    async def __aenter__(self) -> "Collector":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop()
        await self._server.close_all_connections()

    def named(self, name: str) -> list[Any]:
        """Return the spans with this name, in order of arrival."""
        return [span for span in self.spans if span.name == name]


def attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """Return attributes as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class _Receive(RequestHandler):
    def initialize(self, collector: Collector) -> None:
        self._collector = collector

    def post(self, kind: str) -> None:
        body = self.request.body
        if self.request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self._collector.requests.append(self.request)
        if kind == "traces":
            self._take_traces(ExportTraceServiceRequest.FromString(body))
        else:
            self._take_metrics(ExportMetricsServiceRequest.FromString(body))
        self.set_header("Content-Type", "application/x-protobuf")

    def _take_traces(self, request: Any) -> None:
        for resource in request.resource_spans:
            self._collector.resources.append(attributes(resource.resource.attributes))
            for scope in resource.scope_spans:
                self._collector.spans += scope.spans

    def _take_metrics(self, request: Any) -> None:
        for resource in request.resource_metrics:
            self._collector.resources.append(attributes(resource.resource.attributes))
            for scope in resource.scope_metrics:
                self._collector.metrics.append({metric.name: metric for metric in scope.metrics})
