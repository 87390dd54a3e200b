"""Refuses posts before the database's disk is full, so that reads can continue and free space.

Posts are also refused while the database uses more space than a limit allows.

Claims, acknowledgements and purges are writes, too, so a full disk would stop them with the posts.
`workers.maintenance` measures the disk; `workers.pool` checks before it accepts a post.
"""

import asyncio
from contextlib import suppress
from typing import NamedTuple

import structlog

from workers.errors import StorageFull
from workers.metrics import WorkerMetrics
from workers.store.base import Storage

log = structlog.get_logger(__name__)

#: The shortest and the longest time between two measurements of the disk, in seconds.
MEASURE_EVERY_S = (0.1, 2.0)
#: The time between two measurements while there are no posts, in seconds.
IDLE_EVERY_S = 10.0
#: A text is written three times: to the journal, the oplog and the collection. Each message needs
#: this many bytes besides.
_COPIES, _OVERHEAD_BYTES = 3, 1024
#: A quarter of the reserve must be free on the disk itself. The rest may be free space inside the
#: database's files, which is used again but seldom returned to the disk.
_ON_DISK = 4


class StorageLimits(NamedTuple):
    """The number of bytes to keep free (0 for none), limited to a share of the disk.

    `used_max_bytes` is the most that the database may use, or 0 for no limit.
    """

    free_min_bytes: int = 0
    share_max: float = 1.0
    used_max_bytes: int = 0

    def reserve_of(self, total: int) -> int:
        """Return how many bytes of a disk of `total` bytes are kept free."""
        return min(self.free_min_bytes, int(total * self.share_max))


class StorageReserve:
    """The part of the disk that is reserved for claims. While it is intact, posts are accepted."""

    def __init__(self, limits: StorageLimits, metrics: WorkerMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        # Bytes that posts may still use, or None while the size of the disk is unknown.
        self._left: int | None = None
        self._spent = 0
        self._is_due = asyncio.Event()
        # Whether there was no post for a while. The next one makes a measurement due.
        self._is_idle = False
        #: Whether posts are refused.
        self.is_full = False
        #: The last measurement, or None without any.
        self.seen: Storage | None = None

    @property
    def limits(self) -> StorageLimits:
        """What is kept free."""
        return self._limits

    @property
    def is_due(self) -> bool:
        """Whether posts have used so much that the disk must be measured again."""
        return self._is_due.is_set()

    def admit(self, size: int) -> None:
        """Count a post of `size` bytes. Raises `StorageFull` if it does not fit."""
        if self._left is None:
            return
        self._spent += _COPIES * size + _OVERHEAD_BYTES
        if self._is_idle:
            self._is_due.set()
        if self._spent * 2 > self._left:
            self._is_due.set()
            if self.is_full or self._spent > self._left:
                self._metrics.refused.labels("storage-full").inc()
                raise StorageFull("the database has no room for more messages")

    def observe(self, storage: Storage | None) -> None:
        """Record a measurement, or None if the database does not report one."""
        self._spent = 0
        self._is_due.clear()
        self.seen = storage
        if storage is None:
            self._left = None
            self._set_full(False, None)
            return
        self._metrics.storage_used.set(storage.used)
        self._metrics.storage_reusable.set(storage.reusable)
        limits, left = self._limits, []
        # Once it is full, require 10% more free space, so that the state does not flap.
        margin = 10 if self.is_full else 1 << 62
        if storage.total:
            self._metrics.storage_free.set(storage.free)
        if storage.total and limits.free_min_bytes:
            reserve = limits.reserve_of(storage.total)
            needed = reserve + reserve // margin
            left += [storage.free + storage.reusable - needed, storage.free - needed // _ON_DISK]
        if limits.used_max_bytes:
            left.append(limits.used_max_bytes - limits.used_max_bytes // margin - storage.used)
        self._left = max(min(left), 0) if left else None
        self._set_full(self._left == 0, storage)

    async def wait_until_due(self) -> None:
        """Return when the next measurement is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MEASURE_EVERY_S[1]):
                await self._is_due.wait()
        # While posts are refused, room must be noticed soon.
        if self._is_due.is_set() or self._spent or self.is_full:
            return
        self._is_idle = True
        try:
            async with asyncio.timeout(IDLE_EVERY_S - MEASURE_EVERY_S[1]):
                await self._is_due.wait()
        except TimeoutError:
            pass
        finally:
            self._is_idle = False

    def _set_full(self, is_full: bool, storage: Storage | None) -> None:
        if is_full == self.is_full:
            return
        self.is_full = is_full
        self._metrics.storage_full.set(is_full)
        free = storage._asdict() if storage is not None else {}
        if is_full:
            is_over = 0 < self._limits.used_max_bytes <= (storage.used if storage else 0)
            if is_over:
                log.error("posts are refused: the database uses all the space that it may", **free)
            else:
                log.error("posts are refused: the database's disk is nearly full", **free)
        else:
            log.info("posts are accepted again: the database has room", **free)
