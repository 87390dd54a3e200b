"""The pool: hands each request to the shard of its inbox, and keeps the shards alive.

The front end calls `post`, `read` and `count`, which answer at once with a future or refuse;
everything after that happens in the shards. The pool owns every task of the engine.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar, cast

import structlog

from workers.breaker import Breaker
from workers.clock import DatabaseClock
from workers.commands import Command, Count, Outcome, Post, Read, Slice
from workers.errors import Draining, NotExecuted, Overloaded, ServiceError, StoreUnavailable
from workers.ids import IdSource
from workers.metrics import WorkerMetrics
from workers.queue import QueueLimits, ShardQueue
from workers.releases import Releases
from workers.routing import shard_of
from workers.shard import Shard, ShardLimits
from workers.store.base import Store
from workers.ticket import Ticket

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=Outcome)

#: How often requests past their deadline are looked for, in seconds; the most they overstay.
WATCH_EVERY_S = 0.05
#: How often expired messages are marked, and the database's clock is compared, in seconds.
EXPIRE_EVERY_S = 2.0
CLOCK_EVERY_S = 10.0
#: How often a database that is away is asked for, and claims that came to nobody are given
#: back, in seconds.
PROBE_EVERY_S = 0.2
RELEASE_EVERY_S = 0.25
#: Pause before a dead worker is started again, in seconds: doubled each time up to the last.
RESTART_AFTER_S = (0.05, 2.0)


_REASONS: Mapping[type[NotExecuted], str] = {
    Overloaded: "overloaded",
    Draining: "draining",
    StoreUnavailable: "unavailable",
}


class PoolLimits(NamedTuple):
    """Shards in the pool, the bounds of each one's queue and batches, seconds for a request."""

    shards: int
    queue: QueueLimits
    batch: ShardLimits
    deadline_s: float


class WorkerPool:
    """Shard workers, their queues and their supervision, over one store."""

    def __init__(
        self,
        store: Store,
        clock: DatabaseClock,
        limits: PoolLimits,
        metrics: WorkerMetrics,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._ids = IdSource()
        self._breaker = Breaker(metrics)
        self._releases = Releases(store, clock, metrics)
        self._queues = [ShardQueue(limits.queue) for _ in range(limits.shards)]
        self._shards = [
            Shard(queue, store, clock, limits.batch, metrics, self._breaker, self._releases)
            for queue in self._queues
        ]
        self._workers: list[asyncio.Task[None]] = []
        self._chores: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the workers. The store must be open."""
        self._loop = asyncio.get_running_loop()
        self._workers = [
            asyncio.create_task(self._supervise(shard), name=f"shard-{number}")
            for number, shard in enumerate(self._shards)
        ]
        self._chores = [
            asyncio.create_task(self._every(WATCH_EVERY_S, self._watch), name="watch"),
            asyncio.create_task(self._every(EXPIRE_EVERY_S, self._expire), name="expire"),
            asyncio.create_task(self._every(PROBE_EVERY_S, self._probe), name="probe"),
            asyncio.create_task(
                self._every(RELEASE_EVERY_S, self._releases.carry_out), name="release"
            ),
            asyncio.create_task(self._every(CLOCK_EVERY_S, self._follow_clock), name="clock"),
        ]

    @property
    def is_alive(self) -> bool:
        """Whether every worker is running."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    def post(self, username: str, text: str, size: int, timeout_s: int) -> asyncio.Future[str]:
        """Store a message of `size` bytes for `timeout_s` seconds from now.

        The future gives its id once it is durable on a majority, or raises a `ServiceError`.
        Raises `Overloaded`, `Draining` or `StoreUnavailable` at once. Cancelling the future
        before its turn has come leaves nothing behind.
        """
        now_ms = self._clock.now_ms()
        message_id = self._ids.next(now_ms)
        expires_ms = now_ms + timeout_s * 1000
        return self._submit(Post(message_id, username, text, size, now_ms, expires_ms))

    def read(
        self, username: str, limit: int | None = None, upto: str | None = None
    ) -> asyncio.Future[Slice]:
        """Claim an inbox's unread messages, as `workers.commands.Read` says.

        Raises `Overloaded`, `Draining` or `StoreUnavailable` at once. Cancelling the future
        before the claim has been sent claims nothing; what was claimed by then is given back.
        """
        return self._submit(Read(username, limit, upto))

    def count(self, username: str) -> asyncio.Future[int]:
        """Count an inbox's unread messages. Raises as `read` does."""
        return self._submit(Count(username))

    def sample(self) -> None:
        """Set the gauges of the queues and the clock."""
        for number, queue in enumerate(self._queues):
            self._metrics.queued.labels(str(number)).set(queue.qsize())
            self._metrics.queued_bytes.labels(str(number)).set(queue.waiting_bytes())
        self._metrics.clock_offset.set(self._clock.offset_ms / 1000)

    def now_ms(self) -> int:
        """The database's time, as messages are stamped and expired with."""
        return self._clock.now_ms()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new and finish what waits; False where that took too long."""
        for queue in self._queues:
            queue.close()
        if not self._workers:
            return True
        deadline = self._loop.time() + timeout_s
        _, left = await asyncio.wait(self._workers, timeout=timeout_s)
        is_released = await self._releases.drain(max(deadline - self._loop.time(), 0))
        return not left and is_released

    async def stop(self) -> None:
        """End every task, answering what is still open. Complete on return; safe twice."""
        tasks = {*self._chores, *self._workers}
        while tasks:
            # Asked again and again: a driver may turn a cancellation into an error of its own,
            # which a chore or a shard takes for one of the database's and survives.
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.2)
        self._workers, self._chores = [], []
        for queue in self._queues:
            queue.close()
            for ticket in queue.take_nowait(queue.maxsize, 1 << 62):
                ticket.fail(Draining("the service stopped"))

    def _submit(self, command: Command) -> asyncio.Future[T]:
        now = self._loop.time()
        future: asyncio.Future[Outcome] = self._loop.create_future()
        queue = self._queues[shard_of(command.username, len(self._queues))]
        try:
            self._breaker.refuse_if_open()
            queue.put_or_refuse(Ticket(command, now, now + self._limits.deadline_s, future))
        except NotExecuted as refusal:
            self._metrics.refused.labels(_REASONS[type(refusal)]).inc()
            raise
        return cast(asyncio.Future[T], future)

    async def _supervise(self, shard: Shard) -> None:
        """Run a worker until its queue has ended, starting it again whenever it dies."""
        pause, longest = RESTART_AFTER_S
        while True:
            try:
                return await shard.run()
            except BaseException:
                # A cancellation that nobody asked this task for came out of a library.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                self._metrics.restarts.inc()
                log.exception("a shard worker died; it is started again", pause_s=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        """Do a chore now and then. It may fail: the next time comes."""
        while True:
            try:
                await chore()
            except ServiceError as error:
                log.debug("a chore was put off", chore=chore.__name__, reason=str(error))
            except BaseException:
                # As in `_supervise`.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                log.exception("a chore failed", chore=chore.__name__)
            await asyncio.sleep(seconds)

    async def _watch(self) -> None:
        now = self._loop.time()
        for shard in self._shards:
            shard.expire(now)

    async def _probe(self) -> None:
        if self._breaker.is_open:
            await self._store.ping()
            self._breaker.close()

    async def _expire(self) -> None:
        self._metrics.expired.inc(await self._store.expire(self._clock.now_ms()))

    async def _follow_clock(self) -> None:
        await self._store.measure_clock()
