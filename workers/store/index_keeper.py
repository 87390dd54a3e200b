"""Keeps the indexes as they must be while the store runs: an operator may drop or change them.

`Connection` reports each operation that misses an index; `workers.maintenance` calls `check` now and
then.
Some indexes are used by no operation that would miss them, such as those that free space.
"""

import time

import pymongo
import structlog
from pymongo.asynchronous.database import AsyncDatabase

from workers.metrics import WorkerMetrics
from workers.store.driver import Document
from workers.store.schema import IndexMismatch, drop_obsolete, ensure_indexes, list_indexes

log = structlog.get_logger(__name__)

#: How often the indexes are listed, in seconds: the longest time for which one that no operation
#: needs is missing unnoticed.
CHECK_EVERY_S = 5.0
#: Indexes of earlier versions are dropped this long after a start, in seconds. Until then a rolling
#: update replaces the nodes that still need them.
OBSOLETE_AFTER_S = 900.0


class IndexKeeper:
    """Knows whether the indexes are there, and makes those that are not."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._opened = time.monotonic()
        self._check_at = self._opened + CHECK_EVERY_S
        #: What is wrong with the indexes, or None. No post with a key is stored meanwhile.
        self.fault: str | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for a check."""
        return time.monotonic() >= self._check_at

    def report(self, fault: str) -> None:
        """Take note that an index is missing: the next check makes it again."""
        if self.fault is None:
            self._check_at = 0.0
        self._set_fault(fault)

    def check_soon(self) -> None:
        """Have the next check look at once."""
        self._check_at = 0.0

    async def check(self, database: AsyncDatabase[Document], within_s: float) -> None:
        """List the indexes in so many seconds, and make those that are missing.

        Making them may take minutes where there are many messages, and has no bound in time. An
        index that differs, or that cannot be made, stays a fault; every check tries again. Raises
        `pymongo.errors.PyMongoError` where the database does not answer.
        """
        self._check_at = time.monotonic() + CHECK_EVERY_S
        with pymongo.timeout(within_s):
            listing = await list_indexes(database)
        if listing.missing or listing.different:
            names = ", ".join(listing.missing + listing.different)
            if self.fault is None:
                self._set_fault(f"indexes are missing or differ: {names}")
        if self.fault is not None:
            try:
                await ensure_indexes(database)
            except IndexMismatch as mismatch:
                self._set_fault(str(mismatch))
                return
            self._set_fault(None)
        if time.monotonic() >= self._opened + OBSOLETE_AFTER_S:
            await drop_obsolete(database, listing.there)

    def _set_fault(self, fault: str | None) -> None:
        if fault == self.fault:
            return
        # Each operation that misses an index has words of its own: one line for all of them.
        if fault is None:
            log.info("the indexes are complete again")
        elif self.fault is None or not fault.startswith("an operation"):
            log.error("indexes are not as they must be; posts with a key are refused", reason=fault)
        self.fault = fault
        self._metrics.indexes_missing.set(fault is not None)
