"""Traces: a span for each request, its wait in the queue, its batch, and each database operation.

    POST /chat            the request, within the client's trace where it names one (traceparent)
     ├─ queue             from its acceptance to the start of its batch; links to the batch
     └─ batch             what was done for it and others at once; links to each of them
         ├─ insert        MongoDB, repeats included
         └─ find, claim

A batch is one piece of work of many traces: it lies in that of its oldest traced request.
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
#: The context of a request that belongs to no trace yet.
_ROOT = Context()


class RequestTracer:
    """Makes spans of what front end and engine tell it; a `workers.tracing.Tracer` to the latter.

    No span holds a username or a text.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, method: str, route: str, request_id: str, traceparent: str) -> Span | None:
        """The span of a request that has arrived; None where the sampler does not want it."""
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
        """The request was answered with this status, or its client has left (499)."""
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    @contextmanager
    def batch(self, items: Sequence[WorkItem]) -> Iterator[None]:
        """See `workers.tracing.Tracer.batch`."""
        # Many items can be of one request: the oldest counts.
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
        """See `workers.tracing.Tracer.operation`. What nobody asked for is not traced."""
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
    """What is done within is the span's. What an exception says is not recorded: it may hold a
    name or a text.
    """
    return use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
