"""Refuses posts before the database's disk is full, so that reads can go on and free it.

A claim, an acknowledgement and a purge are writes, too: a full disk would stop them with the posts.
`workers.maintenance` measures, `workers.pool` asks before it takes a post.
"""

import asyncio
from contextlib import suppress
from typing import NamedTuple

import structlog

from workers.errors import StorageFull
from workers.metrics import WorkerMetrics
from workers.store.base import Storage

log = structlog.get_logger(__name__)

#: How often the disk is measured at most and at least, in seconds.
MEASURE_EVERY_S = (0.1, 2.0)
#: A text is written to the journal, the oplog and the collection; a message has so much besides.
_COPIES, _OVERHEAD_BYTES = 3, 1024
#: So much of the reserve, a quarter, must be free on the disk itself. The rest of it may be room
#: inside the database's files: what was deleted there is used again, but seldom given back.
_ON_DISK = 4


class StorageLimits(NamedTuple):
    """The bytes to keep free, 0 for none, and the share of the disk that this is at most."""

    free_min_bytes: int = 0
    share_max: float = 1.0

    def reserve_of(self, total: int) -> int:
        """Say how many bytes of a disk of `total` bytes are kept free."""
        return min(self.free_min_bytes, int(total * self.share_max))


class StorageReserve:
    """Keeps part of the disk for claims. Posts are taken as long as it is whole."""

    def __init__(self, limits: StorageLimits, metrics: WorkerMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        # Bytes that may still be written before the disk has to be measured again, or None where
        # nobody knows.
        self._left: int | None = None
        self._spent = 0
        self._is_due = asyncio.Event()
        #: Whether posts are refused.
        self.is_full = False

    @property
    def is_on(self) -> bool:
        """Whether there is anything to keep."""
        return self._limits.free_min_bytes > 0

    @property
    def is_due(self) -> bool:
        """Whether so much was posted that the disk has to be measured again."""
        return self._is_due.is_set()

    def admit(self, size: int) -> None:
        """Take note of a post of `size` bytes. Raises `StorageFull` where it would not fit."""
        if self._left is None:
            return
        self._spent += _COPIES * size + _OVERHEAD_BYTES
        if self._spent * 2 > self._left:
            self._is_due.set()
            if self.is_full or self._spent > self._left:
                self._metrics.refused.labels("storage-full").inc()
                raise StorageFull("the database's disk has no more room for messages")

    def observe(self, storage: Storage | None) -> None:
        """Take note of a measurement; None where the database does not say."""
        self._spent = 0
        self._is_due.clear()
        if storage is None:
            self._left = None
            self._set_full(False, None)
            return
        self._metrics.storage_free.set(storage.free)
        self._metrics.storage_reusable.set(storage.reusable)
        if not self.is_on:
            return
        reserve = self._limits.reserve_of(storage.total)
        # Once it is full, a little more has to be free: else it would be full in turns.
        needed = reserve + reserve // 10 if self.is_full else reserve
        left = min(storage.free + storage.reusable - needed, storage.free - needed // _ON_DISK)
        self._left = max(left, 0)
        self._set_full(left <= 0, storage)

    async def wait_until_due(self) -> None:
        """Return when the disk has to be measured again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MEASURE_EVERY_S[1]):
                await self._is_due.wait()

    def _set_full(self, is_full: bool, storage: Storage | None) -> None:
        if is_full == self.is_full:
            return
        self.is_full = is_full
        self._metrics.storage_full.set(is_full)
        free = storage._asdict() if storage is not None else {}
        if is_full:
            log.error("the database's disk is nearly full; posts are refused", **free)
        else:
            log.info("the database's disk has room again; posts are taken", **free)
