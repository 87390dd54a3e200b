"""Records an operation of the store: its duration, its trace, and an index that it misses.

`workers.store.connection` does so for all parts of the store. Within the operation,
`workers.store.driver_errors` knows whether a command may have been sent.
"""

import time
from contextlib import AbstractContextManager
from types import TracebackType

from workers.errors import IndexMissing
from workers.metrics import WorkerMetrics
from workers.store.driver import tracked
from workers.store.index_keeper import IndexKeeper


class ObservedOperation(AbstractContextManager[float]):
    """See `Connection._observed`. A class, since a generator costs twice as many calls."""

    __slots__ = ("_began", "_indexes", "_metrics", "_name", "_timeout_s", "_tracing", "_tracking")

    def __init__(
        self,
        name: str,
        timeout_s: float,
        metrics: WorkerMetrics,
        indexes: IndexKeeper,
        tracing: AbstractContextManager[None],
    ) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._indexes = indexes
        self._tracing = tracing
        self._tracking = tracked()

    def __enter__(self) -> float:
        self._began = began = time.monotonic()
        self._tracing.__enter__()
        self._tracking.__enter__()
        return began + self._timeout_s

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tracking.__exit__(kind, error, traceback)
        try:
            self._tracing.__exit__(kind, error, traceback)
            if isinstance(error, IndexMissing):
                self._indexes.report(str(error))
        finally:
            self._metrics.operation_took(self._name, time.monotonic() - self._began)
