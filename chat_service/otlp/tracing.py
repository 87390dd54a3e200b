"""Traces: a span for each request, its time in the queue, its batch, and each database operation.

    POST /chat            the request; part of the client's trace if it sends a traceparent
     ├─ queue             from acceptance to the start of its batch; links to the batch
     └─ batch             serves this request and others together; links to each of them
         ├─ insert        a MongoDB operation, including retries
         └─ find, claim

A batch serves requests of many traces. Its span belongs to the trace of its oldest traced request.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from workers.work_item import WorkItem

_propagator = TraceContextTextMapPropagator()
#: The context of a request that is not part of a trace.
_ROOT = Context()


class RequestTracer:
    """Creates the spans of requests, batches and database operations.

    Implements `workers.tracing.Tracer` for the engine. No span contains a username or a text.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, method: str, route: str, request_id: str, traceparent: str) -> Span | None:
        """Start the span of a request. Return None if the request is not sampled."""
        span = self._tracer.start_span(
            f"{method} {route}",
            _propagator.extract({"traceparent": traceparent}, _ROOT) if traceparent else _ROOT,
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": route,
                "chat.request.id": request_id,
            },
        )
        return span if span.is_recording() else None

    def end(self, span: Span, status: int) -> None:
        """End the span of a request. `status` is 499 if the client disconnected."""
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    @contextmanager
    def batch(self, items: Sequence[WorkItem]) -> Iterator[None]:
        """See `workers.tracing.Tracer.batch`."""
        # A request can have several items; its oldest one counts.
        entered: dict[Span, float] = {}
        for item in items:
            if isinstance(item.trace, Span):
                entered.setdefault(item.trace, item.entered)
        if not entered:
            yield
            return
        now_ns, loop_now = time.time_ns(), asyncio.get_running_loop().time()
        batch = self._tracer.start_span(
            "batch",
            set_span_in_context(next(iter(entered)), Context()),
            attributes={"chat.batch.requests": len(items)},
            links=[Link(span.get_span_context()) for span in entered],
            start_time=now_ns,
        )
        to_batch = [Link(batch.get_span_context())]
        for span, since in entered.items():
            self._tracer.start_span(
                "queue",
                set_span_in_context(span, Context()),
                links=to_batch,
                start_time=now_ns - int((loop_now - since) * 1e9),
            ).end(now_ns)
        with _within(batch):
            yield

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """See `workers.tracing.Tracer.operation`. Traces only operations of sampled requests."""
        if not get_current_span().is_recording():
            yield
            return
        attributes = {"db.system.name": "mongodb", "db.operation.name": name}
        span = self._tracer.start_span(name, None, SpanKind.CLIENT, attributes)
        with use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise


def _within(span: Span) -> AbstractContextManager[Span]:
    """Make a span current. Exceptions are not recorded, as they may contain a username or text."""
    return use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
