"""The interface between the engine and a tracer: queue wait, batch, and database operations.

The pool stores the value of `current` with each request. Shards and the store report what they do
to their tracer. `chat_service.otlp` has the only real tracer; without it nothing is traced.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from workers.work_item import WorkItem

#: The trace of the request that is being submitted, or None. Only a tracer inspects it.
current: ContextVar[object] = ContextVar("current", default=None)


class Tracer(Protocol):
    """Receives what the engine does, as context managers around it. Must not raise."""

    def batch(self, items: Sequence[WorkItem]) -> AbstractContextManager[None]:
        """Surround the processing of a batch of these requests."""
        ...

    def operation(self, name: str) -> AbstractContextManager[None]:
        """Surround a database operation, including its retries."""
        ...


class _Untraced:
    def batch(self, items: Sequence[WorkItem]) -> AbstractContextManager[None]:
        return nullcontext()

    def operation(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


UNTRACED: Tracer = _Untraced()
