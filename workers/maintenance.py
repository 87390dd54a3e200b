"""What a pool does beside serving requests: now and then, or whenever it is told to.

Deadlines, what has expired, leases that are over, what is to be given back or reckoned up, and for
those who wait: being told by the database what arrives elsewhere. Made, started and stopped by
`workers.pool`.
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

#: How often requests past their deadline are looked for, in seconds; the most they overstay.
WATCH_EVERY_S = 0.05
#: How often expired messages are marked, the dead lose their text, and the database's clock is
#: compared, in seconds.
EXPIRE_EVERY_S = 2.0
RETIRE_EVERY_S = 20.0
CLOCK_EVERY_S = 10.0
#: The least time between two comparisons of the clocks, in seconds.
CLOCK_PAUSE_S = 0.5
#: How often a database that is away is asked for, and claims that came to nobody are given
#: back, in seconds.
PROBE_EVERY_S = 0.2
RELEASE_EVERY_S = 0.25
#: How often leases that ran out are looked for, and what became of writes that were not answered,
#: in seconds.
LEASES_EVERY_S = 0.25
COUNT_RESOLVED_EVERY_S = 1.0
#: How often the store is asked whether an index was missed, in seconds. It looks less often.
INDEXES_EVERY_S = 0.25
#: Pending messages are counted so often at most, in seconds.
PENDING_EVERY_S = 10.0


class Maintenance:
    """The jobs of one pool, each a task of its own."""

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
        #: Started, and to be cancelled by who stops the pool.
        self.tasks: list[asyncio.Task[None]] = []
        self._clock_is_doubtful = asyncio.Event()
        # That the pending messages are to be counted at once, and how long it took last.
        self._recount = asyncio.Event()
        self._counted_in_s = math.inf
        #: Set once the pending messages are known.
        self.has_counted = asyncio.Event()

    def start(self) -> None:
        """Begin all of them."""
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
        """Do a job now and then. It may fail: the next time comes."""
        while True:
            try:
                await job()
            except ServiceError as error:
                log.debug("a job was put off", job=job.__name__, reason=str(error))
            except BaseException:
                # A cancellation that nobody asked this task for came out of a library.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                log.exception("a job failed", job=job.__name__)
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
        """Count what was done and could not be told."""
        for event, messages in (await self._store.count_resolved()).items():
            self._metrics.lifecycle[event].inc(messages)

    async def _count_pending(self) -> None:
        """Count what is pending, and pause; sooner again once the database is back."""
        self._recount.clear()
        pause_s = PENDING_EVERY_S
        with suppress(ServiceError):
            pause_s = max(await self._count_once(), PENDING_EVERY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._recount.wait()

    async def _count_once(self) -> float:
        """Count what is pending; for how many seconds not to count again.

        A count from before the database was away is given up: its connection may be dead.
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
        # Of two counts the quicker one: a single stall says nothing about the next.
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
            # Also where the database did not answer: what was known last holds.
            await self._reserve.wait_until_due()


def pause_after_count(seconds: float) -> float:
    """How long the pending are not counted again, after a count that took so long: in seconds.

    Counting is to take a hundredth of the time; or a tenth, where else the figure was over a minute
    old. One count that a stall held up must not leave it old for long.
    """
    return max(min(100 * seconds, 60.0), 10 * seconds)
