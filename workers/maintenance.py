"""The periodic work of a pool, beside serving requests.

It enforces deadlines, rolls back claims, counts what unanswered writes did, listens for arrivals,
and watches the database's clock, disk and indexes. If this process leads the fleet
(`workers.leadership`), it also marks expired messages, ends leases and delays, removes the text of
kept messages, and counts the pending ones, for the whole database. `workers.pool` creates, starts
and stops it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from workers import arrival_listener
from workers.arrival_listener import ArrivalListener
from workers.engine import Engine
from workers.errors import ServiceError
from workers.leadership import LOOK_PAUSE_S, Leadership
from workers.pending import PendingCounter
from workers.shard import Shard
from workers.storage import MEASURE_EVERY_S, StorageReserve
from workers.store.base import Ended
from workers.ticks import until_next

log = structlog.get_logger(__name__)

#: How often a process that has the database alone sweeps while it serves no requests, in seconds.
QUIET_EVERY_S = 5.0
#: How often deadlines are checked, in seconds. Requests exceed theirs by no more than this.
WATCH_EVERY_S = 0.05
#: How often the local clock is checked while no request is open, in seconds.
_REST_S = 1.0
#: Pauses of at least so many seconds end at multiples of their length; see `workers.ticks`.
_COMMON_FROM_S = 0.25
#: How often expired messages are marked, the text of kept messages is removed, and the clocks are
#: compared, in seconds.
EXPIRE_EVERY_S = 2.0
RETIRE_EVERY_S = 20.0
CLOCK_EVERY_S = 10.0
#: The shortest time between two comparisons of the clocks, in seconds.
CLOCK_PAUSE_S = 0.5
#: How often an unavailable database is probed, and the pause between two rollbacks of claims, in
#: seconds.
PROBE_EVERY_S = 0.2
RELEASE_EVERY_S = 0.25
#: The shortest and the longest time between two looks for leases and delays that are over, in
#: seconds. In between, the leader waits for the end of the first one.
LEASES_EVERY_S = (0.1, 0.5)
#: How often unanswered writes are counted, in seconds.
COUNT_RESOLVED_EVERY_S = 1.0
#: How often the leader deletes old documents of nodes, in seconds.
FORGET_EVERY_S = 600.0
#: How often `Store.keep_indexes` is called, in seconds. It asks the database less often.
INDEXES_EVERY_S = 1.0


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
        #: Whether deadlines are not checked, because no request is open.
        self.rests = False
        self._has_work = asyncio.Event()
        # How often `watch` was called.
        self._woken = 0
        # How many operations need the watch, beside those of requests.
        self._watched = 0
        self.leadership = Leadership(engine)
        self.pending = PendingCounter(engine, self.leadership)

    def start(self) -> None:
        """Start all jobs."""
        self._loop = asyncio.get_running_loop()
        jobs: dict[str, tuple[float, Callable[[], Awaitable[float | None]]]] = {
            "watch": (WATCH_EVERY_S, self._watch),
            "expire": (EXPIRE_EVERY_S, self._expire),
            "retire": (RETIRE_EVERY_S, self._retire),
            "lead": (LOOK_PAUSE_S, self._lead),
            "leases": (LEASES_EVERY_S[0], self._end_leases),
            "forget": (FORGET_EVERY_S, self._forget_nodes),
            "release": (RELEASE_EVERY_S, self._release),
            "count_resolved": (COUNT_RESOLVED_EVERY_S, self._count_resolved),
            "pending": (PROBE_EVERY_S, self.pending.count),
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

    async def _every(self, seconds: float, job: Callable[[], Awaitable[float | None]]) -> None:
        """Run a job repeatedly, with a pause of about so many seconds. A failed job runs again.

        A job may return another pause.
        """
        while True:
            pause_s: float | None = None
            try:
                pause_s = await job()
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
            if pause_s is None:
                pause_s = until_next(seconds) if seconds >= _COMMON_FROM_S else seconds
            await asyncio.sleep(pause_s)

    def watch(self) -> None:
        """Check deadlines again. Call it when a request arrives while `rests` is set."""
        self._woken += 1
        self._has_work.set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the event loop for as long as the block runs, although no request is open."""
        self._watched += 1
        self.watch()
        try:
            yield
        finally:
            self._watched -= 1

    async def _watch(self) -> None:
        """Check what is open, and return; or wait, as long as nothing is."""
        self._check()
        while not (self._watched or self._breaker.is_open) and all(
            shard.is_idle for shard in self._shards
        ):
            self._breaker.lag.rest()
            self._has_work.clear()
            self.rests = True
            try:
                async with asyncio.timeout(until_next(_REST_S)):
                    await self._has_work.wait()
            except TimeoutError:
                pass
            finally:
                self.rests = False
            self._check()

    def _check(self) -> None:
        self._breaker.lag.tick()
        now = self._loop.time()
        for shard in self._shards:
            shard.expire(now)
        self.pending.watch()
        if self._clock.is_doubtful:
            self._clock_is_doubtful.set()

    async def _probe(self) -> None:
        await self._breaker.opened.wait()
        await self._store.ping()
        self._breaker.close()
        self.pending.recount()

    async def _lead(self) -> None:
        try:
            if await self.leadership.look():
                self.pending.recount()
        finally:
            # Also if the database did not answer: the last count may have become too old.
            self.pending.report()
        await self.leadership.wait_until_due()

    async def _expire(self) -> float | None:
        quiet = self._quiet()
        leads = self.leadership.leads
        self._metrics.expired.inc(await self._store.expire(self._clock.now_ms(), leads=leads))
        return 0.0 if await self._stays(quiet, until_next(QUIET_EVERY_S)) else None

    def _quiet(self) -> int | None:
        """Return a mark for `_stays` if no request is open and no other process uses the database.

        Then nothing changes in it before the next request. Otherwise return None.
        """
        is_quiet = self.rests and self.leadership.is_sole and not self._has_work.is_set()
        return self._woken if is_quiet else None

    async def _stays(self, quiet: int | None, seconds: float) -> bool:
        """Pause so many seconds, and return True if there was no request since the mark was made.

        Returns False at the next request, or at once if it was not quiet.
        """
        if quiet != self._woken:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_work.wait()
        return quiet == self._woken

    async def _retire(self) -> None:
        await self.leadership.has_lease.wait()
        if self.leadership.leads:
            await self._store.retire(self._clock.now_ms())

    async def _forget_nodes(self) -> None:
        await self.leadership.has_lease.wait()
        if self.leadership.leads:
            await self._store.forget_nodes(self._clock.now_ms())

    async def _end_leases(self) -> float | None:
        """End the leases and delays that are over. Returns the pause before the next look."""
        await self.leadership.has_lease.wait()
        if not self.leadership.leads:
            return None
        quiet = self._quiet()
        while True:
            now_ms = self._clock.now_ms()
            ended = await self._store.end_leases(now_ms)
            self._record(ended)
            # Sweeps that follow one another may take longer than the leader lease.
            if not ended.more or not self.leadership.leads:
                break
        shortest_s, longest_s = LEASES_EVERY_S

        def pause_s(most_s: float) -> float:
            # A lease is over one millisecond after its end.
            left_ms = (
                math.inf if ended.first_ms is None else ended.first_ms + 1 - self._clock.now_ms()
            )
            return max(min(left_ms / 1000, until_next(most_s)), shortest_s)

        return 0.0 if await self._stays(quiet, pause_s(QUIET_EVERY_S)) else pause_s(longest_s)

    def _record(self, ended: Ended) -> None:
        """Count what a sweep ended, and wake those who wait for it."""
        self._waiters.wake(ended.usernames)
        ran_out = ended.returned + ended.expired + ended.dead_ran_out
        self._metrics.lease_ends.labels("expired").inc(ran_out)
        self._metrics.expired.inc(ended.expired)
        self._metrics.moved(ended.dead)
        if ended.due_ms:
            self._metrics.released_due(self._clock.now_ms(), ended.due_ms)

    async def _release(self) -> None:
        await self._rollback.wait()
        await self._rollback.carry_out()

    async def _count_resolved(self) -> None:
        """Count what unanswered writes did."""
        for event, messages in (await self._store.count_resolved()).items():
            if event == "dead":
                self._metrics.moved(messages)
            else:
                self._metrics.lifecycle[event].inc(messages)

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
