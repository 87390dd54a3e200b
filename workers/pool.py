"""The pool: passes each request to the shard of its inbox, and keeps the shards running.

The front end calls `post`, `read`, `count` and `submit`. They return a future at once, or refuse;
everything else happens in the shards. The pool owns all tasks of the engine. Each request names its
client, since clients take turns.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import structlog
from msgspec.structs import replace

from workers.backoff import Backoff
from workers.batch_pacing import BatchPacing
from workers.cancellation import end_tasks
from workers.circuit_breaker import CircuitBreaker
from workers.claim_rollback import ClaimRollback
from workers.clock import DatabaseClock
from workers.commands import Command, Count, Key, Lease, Post, R, Read, Slice, Stored
from workers.engine import Engine
from workers.errors import (
    Draining,
    Expired,
    InboxFull,
    IndexMissing,
    KeyInFlight,
    NotExecuted,
    Overloaded,
    ServiceError,
    StoreUnavailable,
)
from workers.ids import IdSource
from workers.inbox_quotas import InboxQuotas, QuotaLimits
from workers.loop_lag import LoopLag
from workers.maintenance import WATCH_EVERY_S, Maintenance
from workers.metrics import WorkerMetrics
from workers.queue import QueueLimits, ShardQueue
from workers.routing import route_of, shard_of
from workers.shard import Shard, ShardLimits
from workers.storage import StorageLimits, StorageReserve
from workers.store.base import Store
from workers.tracing import UNTRACED, Tracer, current
from workers.waiters import Waiters
from workers.work_item import WorkItem

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: The first and the longest pause before a dead shard is restarted, in seconds.
RESTART_AFTER_S = (0.05, 2.0)
_FIRST_COUNT_S = 1.0
#: Most attempts to find out whether the database answers.
_ASK_TIMES = 3

_REASONS: Mapping[type[NotExecuted], str] = {
    Overloaded: "overloaded",
    Draining: "draining",
    Expired: "expired",
    StoreUnavailable: "unavailable",
    IndexMissing: "unavailable",
}


class PoolLimits(NamedTuple):
    """The number of shards, the bounds of each shard's queue and batches, the seconds for a
    request, the number of reads that may wait for a message, the disk space to keep free, the
    quota of an inbox, and the longest interval between two batches of a lane.
    """

    shards: int
    queue: QueueLimits
    batch: ShardLimits
    deadline_s: float
    waiters: int
    storage: StorageLimits = StorageLimits()
    quotas: QuotaLimits = QuotaLimits()
    batch_interval_s: float = 0.0


class WorkerPool:
    """All shards of a process, their queues and their supervision, over one store."""

    def __init__(
        self,
        store: Store,
        clock: DatabaseClock,
        limits: PoolLimits,
        metrics: WorkerMetrics,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._ids = IdSource()
        self._breaker = CircuitBreaker(metrics, LoopLag(WATCH_EVERY_S))
        self._waiters = Waiters(limits.waiters, self._readmit)
        self._reserve = StorageReserve(limits.storage, metrics)
        self._quotas = (
            InboxQuotas(store, clock, limits.quotas, self._count_refusal)
            if any(limits.quotas)
            else None
        )
        self._rollback = ClaimRollback(store, metrics, self._waiters)
        engine = Engine(
            store=store,
            clock=clock,
            metrics=metrics,
            breaker=self._breaker,
            rollback=self._rollback,
            waiters=self._waiters,
            tracer=tracer,
        )
        on_displaced = metrics.refused.labels(_REASONS[Overloaded]).inc
        pacing = BatchPacing(limits.batch_interval_s, self._count_open)
        self._queues = [
            ShardQueue(limits.queue, on_displaced, pacing.arrived) for _ in range(limits.shards)
        ]
        self._shards = [Shard(queue, engine, limits.batch, pacing) for queue in self._queues]
        # The inboxes and hashed idempotency keys of requests that are being processed.
        self._keys: set[tuple[str, str]] = set()
        self._maintenance = Maintenance(engine, self._shards, self._reserve)
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the shards and the maintenance. The store must be open.

        Returns once the pending messages have been counted or another node leads, or after one
        second, so that the first scrape of the metrics has their number.
        """
        self._loop = asyncio.get_running_loop()
        self._workers = [
            asyncio.create_task(self._supervise(shard), name=f"shard-{number}")
            for number, shard in enumerate(self._shards)
        ]
        self._maintenance.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_COUNT_S):
                await self._maintenance.pending.is_settled.wait()

    @property
    def is_alive(self) -> bool:
        """Whether all shards are running."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    async def database_answers(self) -> bool:
        """Return whether a write would find a primary with a majority.

        Asks again if the event loop was blocked meanwhile, which says nothing about the database.
        """
        with self._maintenance.watching():
            for _ in range(_ASK_TIMES):
                mark = self._breaker.lag.mark()
                try:
                    await self._store.ping()
                    return True
                except ServiceError:
                    if not self._breaker.lag.was_blocked_since(mark):
                        break
        return False

    @property
    def is_ending(self) -> bool:
        """Whether waiting has ended because the service is stopping."""
        return self._waiters.is_ending

    def refuse_wait_if_full(self) -> None:
        """Raise `Overloaded` if no further read may wait for a message."""
        self._waiters.refuse_if_full()

    def post(
        self,
        username: str,
        text: str,
        size: int,
        timeout_s: int,
        receipt: str = "",
        *,
        client: str = "",
        delay_s: float = 0.0,
    ) -> asyncio.Future[str]:
        """Store a message of `size` bytes for `timeout_s` seconds from now.

        With a delay, it is scheduled: readable in `delay_s` seconds, and `timeout_s` counts from
        then. The future returns the message's id once it is durable on a majority, or raises a
        `ServiceError`. Raises `Overloaded`, `Draining`, `StoreUnavailable`, `StorageFull` or
        `InboxFull` at once. If the future is cancelled while the post waits in its queue, nothing
        is stored. `receipt` is the hash of the sender's receipt, or empty.
        """
        post = self._new_post(username, text, size, timeout_s, None, receipt, delay_s)
        return self._enqueue(post, client) if self._quotas is None else self._admit(post, client)

    def post_keyed(
        self,
        username: str,
        text: str,
        size: int,
        timeout_s: int,
        key: Key,
        receipt: str = "",
        *,
        client: str = "",
        delay_s: float = 0.0,
    ) -> asyncio.Future[Stored]:
        """Store a message as `post` does, but only once for all posts with this key.

        This holds for all processes. Raises `KeyInFlight` at once while this process is processing
        another request with the key. The future raises `KeyReused` if the key was used for a
        different message before.
        """
        post = self._new_post(username, text, size, timeout_s, key, receipt, delay_s)
        submit = self._enqueue if self._quotas is None else self._admit
        return self._one_at_a_time((username, key.hash), lambda: submit(post, client))

    def _new_post(
        self,
        username: str,
        text: str,
        size: int,
        timeout_s: int,
        key: Key | None,
        receipt: str,
        delay_s: float,
    ) -> Post:
        """Return the command that stores a message. Raises `StorageFull`."""
        self._reserve.admit(size)
        now_ms, due_ms = self._clock.now_ms(), 0
        if delay_s:
            due_ms = now_ms + math.ceil(delay_s * 1000)
            message_id = self._ids.scheduled(due_ms, route_of(username))
        else:
            message_id = self._ids.next(now_ms, route_of(username))
        expires_ms = (due_ms or now_ms) + timeout_s * 1000
        return Post(
            *(message_id, username, text, size, now_ms, expires_ms, key, receipt), due_ms=due_ms
        )

    def read(
        self,
        username: str,
        limit: int | None = None,
        upto: str | None = None,
        wait_s: float = 0.0,
        lease: Lease | None = None,
        *,
        client: str = "",
    ) -> asyncio.Future[Slice]:
        """Claim an inbox's unread messages; see `workers.commands.Read`.

        Raises `Overloaded`, `Draining` or `StoreUnavailable` at once. If the future is cancelled
        before the claim is sent, nothing is claimed; a claim sent earlier is rolled back.
        """
        return self._enqueue(Read(username, limit, upto, wait_s, lease), client, wait_s)

    def read_keyed(
        self,
        username: str,
        key: str,
        limit: int | None = None,
        wait_s: float = 0.0,
        *,
        client: str = "",
    ) -> asyncio.Future[Slice]:
        """Read as `read` does, but return the same messages again for a repeat with this key.

        `key` is a hash. Raises `KeyInFlight` at once while this process is processing another
        request with the key.
        Claims for a key are never rolled back.
        """
        read = Read(username, limit, None, wait_s, None, key)
        return self._one_at_a_time((username, key), lambda: self._enqueue(read, client, wait_s))

    def count(self, username: str, *, client: str = "") -> asyncio.Future[int]:
        """Count an inbox's unread messages. Raises the same errors as `read`."""
        return self._enqueue(Count(username), client)

    def submit(self, command: Command[R], *, client: str = "") -> asyncio.Future[R]:
        """Carry out a command, and return a future of its result; see `workers.commands`.

        For commands that are a single call of the store: acknowledgements, releases, extensions,
        receipts and the like. Raises the same errors as `read`.
        """
        return self._enqueue(command, client)

    def sample(self) -> None:
        """Set the gauges of the queues, the clock, the waiters and the leader."""
        for number, queue in enumerate(self._queues):
            self._metrics.queued.labels(str(number)).set(queue.qsize())
            self._metrics.queued_bytes.labels(str(number)).set(queue.waiting_bytes())
        self._metrics.clock_offset.set(self._clock.offset_ms / 1000)
        self._metrics.waiters.set(self._waiters.count)
        self._metrics.leader.set(self._maintenance.leadership.leads)

    @property
    def reserve(self) -> StorageReserve:
        """The last measurement of the database's disk, and what is kept free."""
        return self._reserve

    @property
    def is_database_available(self) -> bool:
        """Whether requests are accepted, as far as the database is concerned."""
        return not self._breaker.is_open

    @property
    def leader(self) -> str:
        """The name of the node that leads the fleet, or an empty string if that is unknown."""
        return self._maintenance.leadership.leader

    def now_ms(self) -> int:
        """Return the database's time, in milliseconds since 1970."""
        return self._clock.now_ms()

    def end_waits(self) -> None:
        """Answer all waiting reads with an empty result. From now on no read can wait."""
        self._waiters.end()

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing new, and finish all accepted requests. Returns False on timeout."""
        self.end_waits()
        for queue in self._queues:
            queue.close()
        if not self._workers:
            return True
        deadline = self._loop.time() + timeout_s
        _, left = await asyncio.wait(self._workers, timeout=timeout_s)
        is_released = await self._rollback.drain(max(deadline - self._loop.time(), 0))
        return not left and is_released

    async def stop(self) -> None:
        """End all tasks and answer all open requests. Complete on return. Safe to call twice."""
        await end_tasks([*self._maintenance.tasks, *self._workers])
        self._workers = []
        # If the database does not answer, the lease ends by itself.
        with suppress(ServiceError):
            await self._maintenance.leadership.resign()
        if self._quotas is not None:
            await self._quotas.close()
        self.end_waits()
        for queue in self._queues:
            queue.close()
            for item in queue.take_all():
                item.fail(Draining("the service stopped"))

    def _admit(self, post: Post, client: str) -> asyncio.Future[Any]:
        """Submit a post if its inbox has room. A full inbox only gets repeats of earlier posts."""
        assert self._quotas is not None
        deadline = self._loop.time() + self._limits.deadline_s

        def if_full() -> asyncio.Future[Any]:
            if post.key is None:
                self._metrics.refused.labels("inbox-full").inc()
                raise InboxFull
            return self._enqueue(replace(post, is_for_full_inbox=True), client, deadline=deadline)

        return self._quotas.submit(
            *(post.username, post.size, deadline),
            lambda: self._enqueue(post, client, deadline=deadline),
            if_full,
        )

    def _enqueue(
        self,
        command: Command[Any],
        client: str,
        wait_s: float = 0.0,
        deadline: float | None = None,
    ) -> asyncio.Future[Any]:
        now = self._loop.time()
        future: asyncio.Future[Any] = self._loop.create_future()
        queue = self._queues[shard_of(command.username, len(self._queues))]
        wait_until = now + wait_s if wait_s else 0.0
        if deadline is None:
            deadline = now + self._limits.deadline_s
        try:
            self._breaker.refuse_if_open()
            queue.put_or_refuse(
                WorkItem(command, now, deadline, future, wait_until, current.get(), client)
            )
        except NotExecuted as refusal:
            self._count_refusal(refusal)
            raise
        if self._maintenance.rests:
            self._maintenance.watch()
        return future

    def _count_open(self) -> int:
        return sum([shard.count_open() for shard in self._shards])

    def _count_refusal(self, refusal: NotExecuted) -> None:
        self._metrics.refused.labels(_REASONS[type(refusal)]).inc()

    def _readmit(self, item: WorkItem) -> None:
        """Put a long poll that was woken back into its queue."""
        item.entered = self._loop.time()
        item.deadline = item.entered + self._limits.deadline_s
        self._queues[shard_of(item.command.username, len(self._queues))].readmit(item)
        self._maintenance.watch()

    def _one_at_a_time(
        self, key: tuple[str, str], submit: Callable[[], asyncio.Future[T]]
    ) -> asyncio.Future[T]:
        """Submit a request unless this process is already processing one with the same inbox and
        key.
        """
        if key in self._keys:
            raise KeyInFlight("a request with this key is still being processed")
        future = submit()
        self._keys.add(key)
        future.add_done_callback(lambda _: self._keys.discard(key))
        return future

    async def _supervise(self, shard: Shard) -> None:
        """Run a shard until its queue is closed and empty, and restart it if it dies."""
        backoff = Backoff(*RESTART_AFTER_S)
        while True:
            try:
                return await shard.run()
            except BaseException:
                # A cancellation that this task did not receive came out of a library.
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                self._metrics.restarts.inc()
                log.exception(
                    "a shard died unexpectedly; it will be restarted", pause_s=backoff.pause_s
                )
            await backoff.wait()
