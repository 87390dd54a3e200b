"""The breaker: while the database is away, requests are refused at once instead of waiting.

The shards tell it how their operations end, the pool asks it before it takes a request, and
probes the database while it is open.
"""

import math

import structlog

from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.loop_lag import LoopLag, Mark
from workers.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

#: Operations in a row without an answer after which the database counts as away.
FAILURES = 3


class CircuitBreaker:
    """Closed while the database answers. Opens by itself; the pool closes it."""

    def __init__(self, metrics: WorkerMetrics, lag: LoopLag) -> None:
        self._metrics = metrics
        #: What tells a database that does not answer from a loop that does not listen.
        self.lag = lag
        self._failures = 0
        self.is_open = False

    def observe(self, outcome: ServiceError | None, mark: Mark) -> None:
        """Take note of how an operation ended; None for one that was answered."""
        if isinstance(outcome, IndexMissing):
            # It answers, and other operations need no index.
            return
        if not isinstance(outcome, StoreUnavailable | OutcomeUnknown):
            self._failures = 0
            return
        if self.lag.was_blocked_since(mark):
            log.warning(
                "the event loop was held up; an operation was given up", reason=str(outcome)[:200]
            )
            return
        self._failures += 1
        is_unavailable = isinstance(outcome, StoreUnavailable) and outcome.is_unavailable
        if not self.is_open and (is_unavailable or self._failures >= FAILURES):
            self.is_open = True
            self._metrics.database_away.set(1)
            # What was counted last says nothing of what the database holds by now.
            self._metrics.pending.set(math.nan)
            log.error("the database is away; requests are refused", reason=str(outcome)[:200])

    def refuse_if_open(self) -> None:
        """Raise `StoreUnavailable` while the database is away."""
        if self.is_open:
            raise StoreUnavailable("the database is away")

    def close(self) -> None:
        """The database answers again."""
        self._failures = 0
        self.is_open = False
        self._metrics.database_away.set(0)
        log.info("the database is back")
