"""The circuit breaker: while the database is unavailable, requests are refused at once.

The shards report how their operations end. The pool checks the breaker before it accepts a request,
and probes the database while the breaker is open.
"""

import asyncio
import math

import structlog

from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.loop_lag import LoopLag, Mark
from workers.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

#: After this many consecutive operations without an answer the database counts as unavailable.
FAILURES = 3


class CircuitBreaker:
    """Closed while the database answers. Opens by itself; `workers.maintenance` closes it."""

    def __init__(self, metrics: WorkerMetrics, lag: LoopLag) -> None:
        self._metrics = metrics
        #: Distinguishes a database that does not answer from a blocked event loop.
        self.lag = lag
        self._failures = 0
        self.is_open = False
        #: Set while it is open.
        self.opened = asyncio.Event()

    def observe(self, outcome: ServiceError | None, mark: Mark) -> None:
        """Record how an operation ended that began at `mark`. None means that it succeeded."""
        if isinstance(outcome, IndexMissing):
            # The database answers, and other operations do not need this index.
            return
        if not isinstance(outcome, StoreUnavailable | OutcomeUnknown):
            self._failures = 0
            return
        if self.lag.was_blocked_since(mark):
            log.warning(
                "an operation timed out: the event loop was blocked", reason=str(outcome)[:200]
            )
            return
        self._failures += 1
        is_unavailable = isinstance(outcome, StoreUnavailable) and outcome.is_unavailable
        if not self.is_open and (is_unavailable or self._failures >= FAILURES):
            self.is_open = True
            self.opened.set()
            self._metrics.database_away.set(1)
            # The last count says nothing about what the database holds now.
            self._metrics.pending.set(math.nan)
            log.error(
                "requests are refused: the database is unavailable", reason=str(outcome)[:200]
            )

    def refuse_if_open(self) -> None:
        """Raise `StoreUnavailable` while the breaker is open."""
        if self.is_open:
            raise StoreUnavailable("the database is unavailable")

    def close(self) -> None:
        """Accept requests again, since the database answers."""
        self._failures = 0
        self.is_open = False
        self.opened.clear()
        self._metrics.database_away.set(0)
        log.info("the database is available again")
