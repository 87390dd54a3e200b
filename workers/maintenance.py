"""The periodic work of a pool, beside serving requests.

It enforces deadlines, marks expired messages, ends leases, rolls back claims, counts what
unanswered writes did, listens for arrivals, and watches the database's clock, disk and indexes.
`workers.pool` creates, starts and stops it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from workers import arrival_listener
from workers.arrival_listener import ArrivalListener
from workers.engine import Engine
from workers.errors import ServiceError
from workers.shard import Shard
from workers.storage import MEASURE_EVERY_S, StorageReserve

log = structlog.get_logger(__name__)

#: How often deadlines are checked, in seconds. Requests exceed theirs by no more than this.
WATCH_EVERY_S = 0.05
#: How often expired messages are marked, the text of kept messages is removed, and the clocks are
#: compared, in seconds.
EXPIRE_EVERY_S = 2.0
RETIRE_EVERY_S = 20.0
CLOCK_EVERY_S = 10.0
#: The shortest time between two comparisons of the clocks, in seconds.
CLOCK_PAUSE_S = 0.5
#: How often an unavailable database is probed, and how often claims are rolled back, in seconds.
PROBE_EVERY_S = 0.2
RELEASE_EVERY_S = 0.25
#: How often expired leases are ended, and how often unanswered writes are counted, in seconds.
LEASES_EVERY_S = 0.25
COUNT_RESOLVED_EVERY_S = 1.0
#: How often `Store.keep_indexes` is called, in seconds. It asks the database less often.
INDEXES_EVERY_S = 0.25
#: The shortest time between two counts of the pending messages, in seconds.
PENDING_EVERY_S = 10.0


class Maintenance:
    """The jobs of one pool. Each runs in a task of its own."""

    def __init__(
        self,
        engine: Engine,
        shards: Sequence[Shard],
        reserve: StorageReserve,
    ) -> None:
        self._store = engine.store
        self._clock = engine.clock
        self._metrics = engine.metrics
        self._breaker = engine.breaker
        self._rollback = engine.rollback
        self._waiters = engine.waiters
        self._shards = shards
        self._reserve = reserve
        self._arrivals = ArrivalListener(engine)
        #: The running jobs. The pool cancels them when it stops.
        self.tasks: list[asyncio.Task[None]] = []
        self._clock_is_doubtful = asyncio.Event()
        # Requests a count of the pending messages at once; and how long the last count took.
        self._recount = asyncio.Event()
        self._counted_in_s = math.inf
        #: Set once the pending messages have been counted.
        self.has_counted = asyncio.Event()

    def start(self) -> None:
        """Start all jobs."""
        self._loop = asyncio.get_running_loop()
        jobs: dict[str, tuple[float, Callable[[], Awaitable[None]]]] = {
            "watch": (WATCH_EVERY_S, self._watch),
            "expire": (EXPIRE_EVERY_S, self._expire),
            "retire": (RETIRE_EVERY_S, self._retire),
            "leases": (LEASES_EVERY_S, self._end_leases),
            "release": (RELEASE_EVERY_S, self._rollback.carry_out),
            "count_resolved": (COUNT_RESOLVED_EVERY_S, self._count_resolved),
            "pending": (PROBE_EVERY_S, self._count_pending),
            "listen": (PROBE_EVERY_S, self._arrivals.listen),
            "look": (arrival_listener.SEARCH_EVERY_S[1], self._arrivals.search),
            "probe": (PROBE_EVERY_S, self._probe),
            "indexes": (INDEXES_EVERY_S, self._store.keep_indexes),
            "clock": (CLOCK_PAUSE_S, self._follow_clock),
            "storage": (MEASURE_EVERY_S[0], self._measure_storage),
        }
        self.tasks = [
            asyncio.create_task(self._every(seconds, job), name=name)
            for name, (seconds, job) in jobs.items()
        ]

    async def _every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job repeatedly, with a pause of so many seconds. A failed job runs again."""
        while True:
            try:
                await job()
            except ServiceError as error:
                log.debug(
                    "a maintenance job failed and will run again",
                    job=job.__name__,
                    reason=str(error),
                )
            except BaseException:
                # A cancellation that this task did not receive came out of a library.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                log.exception("a maintenance job failed unexpectedly", job=job.__name__)
            await asyncio.sleep(seconds)

    async def _watch(self) -> None:
        self._breaker.lag.tick()
        now = self._loop.time()
        for shard in self._shards:
            shard.expire(now)
        if self._clock.is_doubtful:
            self._clock_is_doubtful.set()

    async def _probe(self) -> None:
        if self._breaker.is_open:
            await self._store.ping()
            self._breaker.close()
            self._recount.set()

    async def _expire(self) -> None:
        self._metrics.expired.inc(await self._store.expire(self._clock.now_ms()))

    async def _retire(self) -> None:
        await self._store.retire(self._clock.now_ms())

    async def _end_leases(self) -> None:
        ended = await self._store.end_leases(self._clock.now_ms())
        self._metrics.lease_ends.labels("expired").inc(ended.returned + ended.expired)
        self._metrics.expired.inc(ended.expired)
        self._waiters.wake(ended.usernames)

    async def _count_resolved(self) -> None:
        """Count what unanswered writes did."""
        for event, messages in (await self._store.count_resolved()).items():
            self._metrics.lifecycle[event].inc(messages)

    async def _count_pending(self) -> None:
        """Count the pending messages, then pause: not as long if the database comes back."""
        self._recount.clear()
        pause_s = PENDING_EVERY_S
        with suppress(ServiceError):
            pause_s = max(await self._count_once(), PENDING_EVERY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._recount.wait()

    async def _count_once(self) -> float:
        """Count the pending messages. Returns the pause until the next count, in seconds.

        A count that began before the database was unavailable is cancelled, since its connection
        may be dead.
        """
        began = self._loop.time()
        counting = asyncio.create_task(self._store.count_pending())
        recounting = asyncio.create_task(self._recount.wait())
        try:
            await asyncio.wait((counting, recounting), return_when=asyncio.FIRST_COMPLETED)
            if not counting.done():
                return 0.0
            pending = counting.result()
        except ServiceError:
            self._metrics.pending.set(math.nan)
            raise
        finally:
            counting.cancel()
            recounting.cancel()
            await asyncio.gather(counting, recounting, return_exceptions=True)
        if not self._breaker.is_open:
            self._metrics.pending.set(pending)
        self.has_counted.set()
        # Use the faster of the last two counts: a single stall says nothing about the next one.
        took_s = self._loop.time() - began
        quicker_s, self._counted_in_s = min(took_s, self._counted_in_s), took_s
        return pause_after_count(quicker_s)

    async def _follow_clock(self) -> None:
        self._clock_is_doubtful.clear()
        await self._store.measure_clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_EVERY_S - CLOCK_PAUSE_S):
                await self._clock_is_doubtful.wait()

    async def _measure_storage(self) -> None:
        try:
            self._reserve.observe(await self._store.measure_storage())
        finally:
            # Also if the database did not answer: then the last measurement stays valid.
            await self._reserve.wait_until_due()


def pause_after_count(seconds: float) -> float:
    """Return the pause after a count that took so many seconds, in seconds.

    Counting may take 1% of the time. If the figure would then be more than a minute old, it may
    take 10%, so that one stalled count does not leave an old figure for long.
    """
    return max(min(100 * seconds, 60.0), 10 * seconds)
