"""Follows the schema version, and restores indexes that an operator drops or changes.

`Connection` reports operations that miss an index, and `workers.maintenance` calls `check`
periodically. An index may be missing because the schema version changed: then this node works by
the new one from the check on. The periodic check is needed because no operation fails without some
of the indexes, such as those that free space.
"""

import time

import pymongo
import structlog
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from workers.metrics import WorkerMetrics
from workers.store.driver import Document
from workers.store.guard import ensure_guard
from workers.store.layout import NEWEST, Layout
from workers.store.schema import (
    COLLECTION,
    READS,
    IndexMismatch,
    create_indexes,
    drop_obsolete,
    list_indexes,
)
from workers.store.schema_version import UnknownSchema, settle_layout

log = structlog.get_logger(__name__)

#: How often the indexes are listed, in seconds. An index that no operation needs can be missing for
#: this long before it is noticed.
CHECK_EVERY_S = 5.0
#: How often the schema version is read, with a check of the indexes, in seconds.
READ_VERSION_EVERY_S = 10.0
#: How often those of all collections are listed, in seconds. An index of `reads` only frees space.
CHECK_ALL_EVERY_S = 30.0
#: Indexes of earlier versions are dropped this many seconds after a start. By then a rolling update
#: has replaced the nodes that need them.
OBSOLETE_AFTER_S = 900.0


class IndexKeeper:
    """Checks whether the indexes exist, and creates those that are missing."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._opened = time.monotonic()
        self._check_at = self._opened + CHECK_EVERY_S
        self._check_all_at = self._read_version_at = 0.0
        #: The layout of the database, by the last look at its schema version.
        self.layout: Layout = NEWEST
        #: What is wrong with the indexes, or None. While it is set, no post with a key is stored.
        self.fault: str | None = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for a check."""
        return time.monotonic() >= self._check_at

    def report(self, fault: str) -> None:
        """Report a missing index. The next check creates it."""
        if self.fault is None:
            self.check_soon()
        self._set_fault(fault)

    def check_soon(self) -> None:
        """Make the next check due at once, and have it look at all there is."""
        self._check_at = self._check_all_at = self._read_version_at = 0.0

    async def check(self, database: AsyncDatabase[Document], within_s: float) -> None:
        """List the indexes within so many seconds, and read the schema version if it is time for
        that. Then create the indexes that are missing.

        Creating them may take minutes if there are many messages, and has no time limit. An index
        that differs, or that cannot be created, remains a fault, and every check tries again.
        Raises `pymongo.errors.PyMongoError` if the database does not answer.
        """
        now = time.monotonic()
        self._check_at = now + CHECK_EVERY_S
        is_all = now >= self._check_all_at or self.fault is not None
        reads_version = now >= self._read_version_at or self.fault is not None
        with pymongo.timeout(within_s):
            try:
                if reads_version:
                    await self.follow(database)
            except UnknownSchema as unknown:
                # The indexes are no longer this node's business.
                self._set_fault(str(unknown))
                return
            collections = (COLLECTION, READS) if is_all else (COLLECTION,)
            listing = await list_indexes(database, self.layout, collections)
        if is_all:
            self._check_all_at = now + CHECK_ALL_EVERY_S
        if (listing.missing or listing.different) and not reads_version:
            # They may be gone because the schema has changed.
            self.check_soon()
            return
        if listing.missing or listing.different:
            names = ", ".join(listing.missing + listing.different)
            if self.fault is None:
                self._set_fault(f"indexes are missing or differ: {names}")
        if self.fault is not None:
            try:
                await create_indexes(database, self.layout, listing)
            except IndexMismatch as mismatch:
                self._set_fault(str(mismatch))
                return
            await self.guard(database)
            self._set_fault(None)
        if time.monotonic() >= self._opened + OBSOLETE_AFTER_S:
            await drop_obsolete(database, listing.there)

    async def follow(self, database: AsyncDatabase[Document]) -> None:
        """Read the schema version. From then on, `layout` is that of the database.

        Raises `UnknownSchema`, or `pymongo.errors.PyMongoError` if the database does not answer.
        """
        # If everything was dropped, nodes of earlier versions may still be running beside this one:
        # so the database keeps the layout that they know.
        layout = await settle_layout(database, self.layout)
        self._read_version_at = time.monotonic() + READ_VERSION_EVERY_S
        if layout is not self.layout:
            log.info("the schema version of the database", version=layout.version)
            self.layout = layout

    async def guard(self, database: AsyncDatabase[Document]) -> None:
        """Have the database refuse messages without a route, if its layout needs that. If it does
        not let this node do so, log how to, since the service works without.

        Raises `pymongo.errors.PyMongoError` if the database does not answer.
        """
        reason = "this user may not"
        try:
            if await ensure_guard(database, self.layout):
                return
        except OperationFailure as error:
            # Such as an index that an operator is building.
            reason = str(error.code)
        log.warning(
            "a node of an earlier version could store messages that no node finds; run "
            "`chat migrate --apply` as a user with the role dbAdmin",
            reason=reason,
        )

    def _set_fault(self, fault: str | None) -> None:
        if fault == self.fault:
            return
        # The reason varies with the operation that misses the index: log only one of them.
        if fault is None:
            log.info("the indexes are complete again")
        elif self.fault is None or not fault.startswith("an operation"):
            log.error("indexes are not as they must be; posts with a key are refused", reason=fault)
        self.fault = fault
        self._metrics.indexes_missing.set(fault is not None)
