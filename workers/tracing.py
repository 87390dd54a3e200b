"""What the engine tells of a traced request: its wait, its batch, and the database's part in it.

The pool takes up `current` with each request that it is handed; the shards and the store tell
their tracer what they do. There is one tracer that makes something of it, `chat_service.otlp`;
without it nothing is traced.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from workers.work_item import WorkItem

#: The trace of the request that is being handed over, or None. Only a tracer looks into it.
current: ContextVar[object] = ContextVar("current", default=None)


class Tracer(Protocol):
    """Told of what the engine does, as contexts around it. Raises nothing."""

    def batch(self, items: Sequence[WorkItem]) -> AbstractContextManager[None]:
        """A batch of these requests is carried out."""
        ...

    def operation(self, name: str) -> AbstractContextManager[None]:
        """The database carries out an operation, repeats included."""
        ...


class _Untraced:
    def batch(self, items: Sequence[WorkItem]) -> AbstractContextManager[None]:
        return nullcontext()

    def operation(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


UNTRACED: Tracer = _Untraced()
