"""A shard: the actor that serves the inboxes assigned to it, in two lanes.

One lane serves posts, the other one reads and all other commands. Each takes all items of its kind
from the queue, turns them into a few round trips to the store however many there are, and answers
each request once its result is durable. While a lane's batch is in flight its next one gathers, so
a busy shard has larger batches and each request costs less. `workers.pool` owns the queue and
restarts a shard that dies.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import NamedTuple, TypeVar

import structlog

from workers.batch import LookupLimits, Share, lookups, plan, share_out, sort
from workers.batch_pacing import BatchPacing
from workers.claims import Claims
from workers.commands import (
    Acknowledge,
    Extend,
    Finish,
    Finished,
    Held,
    Post,
    Release,
    Resume,
    Revoke,
    Slice,
    Stored,
    Track,
)
from workers.engine import Engine
from workers.errors import (
    Expired,
    InboxFull,
    OutcomeUnknown,
    Overloaded,
    ServiceError,
    StoreUnavailable,
)
from workers.queue import QueueLimits, ShardQueue
from workers.single_calls import SingleCalls
from workers.store.base import Settled
from workers.term_check import TermCheck
from workers.waiters import ANY_INBOX
from workers.work_item import WorkItem

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Inboxes with a search of their own in one round, which leaves connections for posts and claims;
#: and how many whole slices they may hold in memory together.
SINGLE_LOOKUPS, SLICES = 10, 4
#: Rounds of search and claim in one batch. Reads that need more come first in the next batch.
ROUNDS = 4
#: Counts that may wait in one shard, and the inboxes that one count operation covers.
COUNTS_MAX = 1024
COUNTED_INBOXES = 16


class ShardLimits(NamedTuple):
    """Bounds of one batch: its requests, its bytes of text, and the messages of one search.

    A claim can take effect for `claim_s` seconds.
    """

    requests: int
    bytes: int
    slice: int
    claim_s: float


class Shard:
    """Serves one queue until it is closed and empty."""

    def __init__(
        self,
        queue: ShardQueue,
        engine: Engine,
        limits: ShardLimits,
        pacing: BatchPacing,
    ) -> None:
        self._queue = queue
        self._pacing = pacing
        self._store = engine.store
        self._clock = engine.clock
        self._limits = limits
        self._metrics = engine.metrics
        self._breaker = engine.breaker
        self._waiters = engine.waiters
        self._tracer = engine.tracer
        self._claims = Claims(engine, limits.claim_s)
        # Every item that was taken from the queue is in one of these until it is answered. Those in
        # `_behind` are reads behind posts in flight, and those in `_deferred` need another round.
        self._in_flight: dict[WorkItem, None] = {}
        self._behind: list[WorkItem] = []
        self._deferred: list[WorkItem] = []
        self._single_calls = SingleCalls(self._run_single_call, engine.metrics)
        # Counts that wait, counts in flight, and the task that carries them out.
        self._counts = ShardQueue(
            QueueLimits(COUNTS_MAX, 1 << 62, COUNTS_MAX), self._count_overloaded
        )
        self._counts_in_flight: list[WorkItem] = []
        self._count_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve batches until the queue is closed and empty.

        However this ends, every item that it held gets an answer.
        """
        lanes = [asyncio.create_task(lane) for lane in (self._serve_posts(), self._serve_reads())]
        try:
            # If one of them dies, so does the shard.
            await asyncio.gather(*lanes)
            counting = () if self._count_task is None else (self._count_task,)
            await asyncio.gather(self._single_calls.finish(), *counting)
        finally:
            try:
                # A lane may take more from the queue until it has ended.
                await _end(lanes)
            finally:
                await _end(self._abandon())

    def expire(self, now: float) -> None:
        """Fail all items past their deadline. `now` is the time on the event loop's clock."""
        expired = self._queue.expire(now)
        expired += self._single_calls.expire(now) + self._counts.expire(now)
        for item in (*self._deferred, *self._behind):
            if item.deadline <= now:
                expired += item.fail(Expired("the request waited too long in its queue"))
        if expired:
            self._metrics.refused.labels("expired").inc(expired)
        for item in (*self._in_flight, *self._single_calls.in_flight, *self._counts_in_flight):
            if item.deadline <= now:
                self._fail(item, OutcomeUnknown("the database did not answer before the deadline"))

    @property
    def is_idle(self) -> bool:
        """Whether it has no item, answered or not."""
        return (
            not (
                self._in_flight
                or self._deferred
                or self._behind
                or self._counts_in_flight
                or self._queue.qsize()
                or self._counts.qsize()
            )
            and self._single_calls.is_idle
        )

    def count_open(self) -> int:
        """Return how many requests are in the queue or in flight."""
        # Items in flight may be answered already: then their clients may have sent the next ones.
        taken = (*self._in_flight, *self._deferred, *self._behind)
        return self._queue.qsize() + sum([item.is_open for item in taken])

    def _abandon(self) -> Collection[asyncio.Task[None]]:
        """Answer all items that were taken from the queue. Returns the tasks that are left."""
        unsent, tasks = self._single_calls.abandon()
        for item in (*self._in_flight, *tasks.values()):
            self._fail(item, OutcomeUnknown("the shard stopped"))
        counts = (*self._counts.take_all(), *self._counts_in_flight)
        for item in (*self._deferred, *self._behind, *unsent, *counts):
            item.fail(StoreUnavailable("the shard stopped"))
        self._in_flight, self._deferred, self._behind = {}, [], []
        self._counts_in_flight, self._queue.in_flight = [], frozenset()
        return [*tasks, *([] if self._count_task is None else [self._count_task])]

    async def _serve_posts(self) -> None:
        """Serve batches of posts, and let the reads behind them go to their own lane."""
        queue, limits, loop, began = self._queue, self._limits, asyncio.get_running_loop(), 0.0
        while await queue.posts.ready():
            await self._pacing.wait(began, queue.posts.qsize)
            # Until they are sorted, they are here, so that they are answered if this dies.
            self._behind = queue.posts.take_nowait(limits.requests, limits.bytes)
            began, batch = loop.time(), plan(self._behind)
            queue.move_to_reads(batch.free)
            self._behind = batch.behind
            queue.in_flight = batch.posted
            if batch.posts:
                self._observe(batch.posts)
                await self._serve(self._insert, batch.posts)
            queue.in_flight = frozenset()
            queue.move_to_reads(self._behind)
            self._behind = []
        # No read can come from here any more.
        queue.reads.close()

    async def _serve_reads(self) -> None:
        """Serve batches of reads. Other commands run beside them."""
        reads, limits, loop, began = (
            self._queue.reads,
            self._limits,
            asyncio.get_running_loop(),
            0.0,
        )
        while self._deferred or await reads.ready():
            await self._pacing.wait(began, self._count_reads)
            # Until they are sorted, they are here, so that they are answered if this dies.
            items = [*self._deferred, *reads.take_nowait(limits.requests, limits.bytes)]
            self._deferred = items
            began, batch = loop.time(), sort(items)
            self._deferred = []
            if items:
                self._observe(items)
            self._single_calls.submit(batch.single_calls)
            if batch.counts:
                self._start_counts(batch.counts)
            if batch.reads:
                await self._serve(self._read, batch.reads)

    def _count_reads(self) -> int:
        return len(self._deferred) + self._queue.reads.qsize()

    def _observe(self, items: Sequence[WorkItem]) -> None:
        now = asyncio.get_running_loop().time()
        self._metrics.queue_wait.observe(now - items[0].entered)
        self._metrics.batch_requests.observe(len(items))

    async def _serve(
        self,
        work: Callable[[list[WorkItem]], Awaitable[ServiceError | None]],
        items: list[WorkItem],
    ) -> None:
        """Carry out a batch. All its items are in flight until it ends."""
        self._in_flight |= dict.fromkeys(items)
        with self._tracer.batch(items):
            await self._guarded(work, items)
        for item in items:
            self._in_flight.pop(item, None)

    async def _guarded(
        self,
        work: Callable[[list[WorkItem]], Awaitable[ServiceError | None]],
        items: list[WorkItem],
    ) -> None:
        """Carry out some work. If it raises, all its open items fail with that error."""
        failure: ServiceError
        mark = self._breaker.lag.mark()
        try:
            self._breaker.observe(await work(items), mark)
            return
        except ServiceError as error:
            failure = error
            self._breaker.observe(error, mark)
        except Exception as error:
            # A bug, or an error that the store does not handle. All other work continues.
            log.exception("a batch failed unexpectedly", requests=len(items))
            failure = OutcomeUnknown(f"internal error: {type(error).__name__}")
        # An item that is no longer in flight waits for a message and did not fail.
        in_flight = {*self._in_flight, *self._single_calls.in_flight, *self._counts_in_flight}
        for item in items:
            if item in in_flight:
                self._fail(item, failure)

    async def _insert(self, items: list[WorkItem]) -> ServiceError | None:
        """Store the posts of a batch and answer each. Returns an error if all of them failed."""
        self._metrics.batch_posts.observe(len(items))
        posts = [item.command for item in items if isinstance(item.command, Post)]
        outcomes = await self._store.insert(posts)
        self._metrics.accepted.inc(outcomes.count(None))
        # Resolve only after the store has answered: success guarantees that it is stored.
        failure: ServiceError | None = None
        for item, post, outcome in zip(items, posts, outcomes, strict=True):
            if outcome is None:
                item.resolve(post.id if post.key is None else Stored(post.id, False))
                if post.due_ms:
                    self._metrics.scheduled.inc()
            elif isinstance(outcome, str):
                item.resolve(Stored(outcome, True))
            else:
                failure = outcome
                self._fail(item, outcome)
                if isinstance(outcome, InboxFull):
                    self._metrics.refused.labels("inbox-full").inc()
        self._waiters.wake(post.username for post in posts if not post.due_ms)
        return None if None in outcomes else failure

    async def _read(self, items: list[WorkItem]) -> ServiceError | None:
        """Serve the reads of a batch in rounds. Reads that need more come first in the next batch.

        Returns the error of a claim, if one failed.
        """
        self._metrics.batch_reads.observe(len(items))
        items, failed = await self._claims.repeat(items)
        failure: ServiceError | None = None
        for share, failure in failed:
            self._fail(share.item, failure)
        with self._waiters.record_wakes() as woken:
            for _ in range(ROUNDS):
                if not items:
                    return failure
                items, met = await self._read_round(items, woken)
                failure = met or failure
        self._deferred = [*items, *self._deferred]
        for item in items:
            self._in_flight.pop(item, None)
        return failure

    async def _read_round(
        self, items: list[WorkItem], woken: set[str | None]
    ) -> tuple[list[WorkItem], ServiceError | None]:
        """Search, claim and answer. Returns the unanswered reads, and an error or None."""
        now_ms = self._clock.now_ms()
        woken.clear()
        limits = LookupLimits(self._limits.slice, SINGLE_LOOKUPS, SLICES)
        searches = lookups(items, limits)
        async with TermCheck(self._store) as check:
            results = await _all(
                self._store.find_unread(search.usernames, search.limit, now_ms)
                for search in searches
            )
            check.add(results)
            found = {name: unread for result in results for name, unread in result.messages.items()}
            complete = {name for result in results for name in result.complete}
            # Checked just before the claim: a client that has left by now consumes nothing.
            shares, again = share_out([t for t in items if t.is_open], found, complete)
            claimed = [share for share in shares if found.get(share.item.command.username)]
            nothing = [share for share in shares if not found.get(share.item.command.username)]
            answering = []
            if claimed:
                answering.append(self._claim(claimed, check, woken))
            if nothing:
                answering.append(self._answer_empty(nothing, check, woken))
            ended = await _all(answering)
        failure: ServiceError | None = None
        for unanswered, met in ended:
            again += unanswered
            failure = failure or met
        return again, failure

    async def _claim(
        self, shares: list[Share], check: TermCheck, woken: set[str | None]
    ) -> tuple[list[WorkItem], ServiceError | None]:
        """Claim and answer. Returns the unanswered reads, and the error of a claim or None."""
        unclaimed, failed = await self._claims.make(shares, check)
        failure: ServiceError | None = None
        for share, failure in failed:
            self._fail(share.item, failure)
        unsure = {share.item.command.username for share, _ in failed}
        again: list[WorkItem] = []
        nothing: list[Share] = []
        for share in unclaimed:
            if share.messages or share.more or share.item.command.username in unsure:
                # Other readers took the messages, or the claim came too late: search again.
                again.append(share.item)
            else:
                nothing.append(share)
        unanswered, met = await self._answer_empty(nothing, check, woken)
        return again + unanswered, failure or met

    async def _answer_empty(
        self, shares: list[Share], check: TermCheck, woken: set[str | None]
    ) -> tuple[list[WorkItem], ServiceError | None]:
        """Answer reads for which nothing was found, once the search is known to be current.

        Call it when no failed claim can make an empty answer false. Returns the reads that must
        search again, and the error that failed them or None.
        """
        if not shares:
            return [], None
        try:
            is_current = await check.is_current()
        except StoreUnavailable as error:
            for share in shares:
                self._fail(share.item, error)
            return [], error
        if not is_current:
            return [share.item for share in shares], None
        return [item for share in shares for item in self._found_nothing(share, woken)], None

    def _found_nothing(self, share: Share, woken: set[str | None]) -> list[WorkItem]:
        """Answer a read that gets nothing, or let it wait. Returns it if it must search again at
        once, since its inbox was woken meanwhile.
        """
        item = share.item
        if item.wait_until and item.is_open:
            if item.command.username in woken or ANY_INBOX in woken:
                return [item]
            if self._waiters.add(item):
                self._in_flight.pop(item, None)
                return []
        item.resolve(Slice((), share.more))
        return []

    async def _run_single_call(self, item: WorkItem) -> None:
        """Carry out a command that is a single call of the store."""
        with self._tracer.batch([item]):
            await self._guarded(self._call_store, [item])

    async def _call_store(self, items: list[WorkItem]) -> None:
        (item,) = items
        now_ms, store, metrics = self._clock.now_ms(), self._store, self._metrics
        match item.command:
            case Finish(username, lease, ids):
                acknowledge = Acknowledge(username, lease, ids)
                settled = await store.acknowledge(acknowledge, now_ms)
                metrics.acknowledged(settled.changed)
                item.resolve(await self._audited(acknowledge, settled, now_ms))
            case Acknowledge() as command:
                settled = await store.acknowledge(command, now_ms)
                metrics.acknowledged(settled.changed)
                item.resolve(settled.messages)
            case Release() as command:
                settled = await store.release(command, now_ms)
                metrics.lease_ends.labels("released").inc(settled.changed)
                if not command.delay_ms:
                    self._waiters.wake((command.username,))
                item.resolve(settled.messages)
            case Extend() as command:
                item.resolve(await store.extend(command, now_ms))
            case Held() as command:
                item.resolve(await store.held(command, now_ms))
            case Resume() as command:
                settled = await store.resume(command, now_ms)
                metrics.acknowledged(settled.changed)
                item.resolve(settled.messages)
            case Revoke() as command:
                fate, changed = await store.revoke(command, now_ms)
                metrics.revoked.inc(changed)
                item.resolve(fate)
            case Track() as command:
                item.resolve(await store.track(command, now_ms))
            case _:
                raise AssertionError("not a single-call command")

    async def _audited(self, command: Acknowledge, settled: Settled, now_ms: int) -> Finished:
        """Return the result of an acknowledgement, including the lost messages."""
        messages = settled.messages
        if command.ids is not None and messages == len(set(command.ids)):
            return Finished(messages, is_all=True)
        try:
            audit = await self._store.audit(command, now_ms)
        except StoreUnavailable as error:
            if not settled.changed:
                raise
            raise OutcomeUnknown(str(error)) from error
        if messages and not audit.lost:
            return Finished(messages, is_all=True)
        return Finished(messages, False, audit.acknowledged, audit.lost)

    def _start_counts(self, items: list[WorkItem]) -> None:
        """Start counts beside the batches, since a full inbox takes long to count."""
        for item in items:
            try:
                self._counts.put_or_refuse(item)
            except Overloaded:
                if item.fail(Overloaded("too many inboxes are waiting to be counted")):
                    self._count_overloaded()
        if self._count_task is None:
            self._count_task = asyncio.create_task(self._run_counts())

    async def _run_counts(self) -> None:
        """Carry out the waiting counts, a few inboxes at a time, until none is left."""
        try:
            while self._counts.qsize():
                names: set[str] = set()

                def is_next(item: WorkItem, names: set[str] = names) -> bool:
                    return item.command.username in names or len(names) < COUNTED_INBOXES

                while (item := self._counts.reads.take_next(is_next)) is not None:
                    if item.is_open:
                        names.add(item.command.username)
                        self._counts_in_flight.append(item)
                if self._counts_in_flight:
                    await self._guarded(self._count, self._counts_in_flight)
                self._counts_in_flight = []
        finally:
            self._count_task = None

    def _count_overloaded(self) -> None:
        self._metrics.refused.labels("overloaded").inc()

    async def _count(self, items: list[WorkItem]) -> None:
        """Count, and answer these items."""
        usernames = list({item.command.username for item in items})
        counts = await self._store.count_unread(usernames, self._clock.now_ms())
        for item in items:
            item.resolve(counts.get(item.command.username, 0))

    def _fail(self, item: WorkItem, error: ServiceError) -> None:
        """Fail an item. Unknown outcomes are counted, and name the message of a post."""
        command = item.command
        is_unknown = isinstance(error, OutcomeUnknown)
        if is_unknown and isinstance(command, Post):
            error = OutcomeUnknown(str(error), command.id)
        if item.fail(error) and is_unknown:
            self._metrics.unknown.labels(type(command).__name__.lower()).inc()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of them, then raise the first error, so that no call continues unobserved.

    Nothing is cancelled, since cancelling a database call costs its connection. A single one needs
    no task, which would cost three turns of the event loop.
    """
    awaitables = [*work]
    if len(awaitables) == 1:
        return [await awaitables[0]]
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: a driver may turn a cancellation into another error.

    If the caller is cancelled meanwhile, this raises only once they have ended.
    """
    cancellation: asyncio.CancelledError | None = None
    while tasks:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.wait(tasks, timeout=0.2)
        except asyncio.CancelledError as error:
            cancellation = error
        tasks = [task for task in tasks if not task.done()]
    if cancellation is not None:
        raise cancellation
