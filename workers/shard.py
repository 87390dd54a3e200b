"""A shard worker: the actor that serves the inboxes routed to it, a whole batch at a time.

It takes what waits in its queue, turns it into a few round trips to the store however many
requests that is, and answers each request once its outcome is durable. While one batch is in
flight the next one gathers: the busier the shard, the larger its batches and the cheaper a
request. `workers.pool` owns the queue and restarts a worker that dies.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import structlog

from workers.batch import Share, lookups, plan, share_out
from workers.breaker import Breaker
from workers.clock import DatabaseClock
from workers.commands import Claim, Post, Slice
from workers.errors import Expired, NotExecuted, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.queue import ShardQueue
from workers.releases import Releases
from workers.store.base import Store
from workers.ticket import Ticket

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Inboxes that get a search of their own in one round: bounds the slices held in memory.
SINGLE_LOOKUPS = 4
#: Rounds of search and claim in one batch; reads that need more go first in the next batch.
ROUNDS = 4


class ShardLimits(NamedTuple):
    """Bounds of one batch: requests, bytes of text, messages found by one search.

    `claim_s` is the time in which a claim may take effect, in seconds.
    """

    requests: int
    bytes: int
    slice: int
    claim_s: float


class Shard:
    """Serves its queue until that is closed and empty."""

    def __init__(
        self,
        queue: ShardQueue,
        store: Store,
        clock: DatabaseClock,
        limits: ShardLimits,
        metrics: WorkerMetrics,
        breaker: Breaker,
        releases: Releases,
    ) -> None:
        self._queue = queue
        self._store = store
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._breaker = breaker
        self._releases = releases
        # Every ticket taken from the queue is in one of these until it is settled.
        self._carried: list[Ticket] = []
        self._in_flight: list[Ticket] = []

    async def run(self) -> None:
        """Serve batches until the queue is closed and empty.

        Whatever ends it, no ticket that it held is left without an answer.
        """
        try:
            while tickets := await self._take():
                await self._commit(tickets)
        finally:
            for ticket in self._carried:
                ticket.fail(StoreUnavailable("the worker stopped"))
            for ticket in self._in_flight:
                self._fail(ticket, OutcomeUnknown("the worker stopped"))
            self._carried, self._in_flight = [], []

    def expire(self, now: float) -> None:
        """Answer what is past its deadline, waiting or in flight. `now` is the loop's time."""
        expired = self._queue.expire(now)
        for ticket in self._carried:
            if ticket.deadline <= now:
                expired += ticket.fail(Expired("waited too long for its turn"))
        if expired:
            self._metrics.refused.labels("expired").inc(expired)
        for ticket in self._in_flight:
            if ticket.deadline <= now:
                self._fail(ticket, OutcomeUnknown("the database is slow"))

    async def _take(self) -> list[Ticket]:
        if not self._carried:
            return await self._queue.take(self._limits.requests, self._limits.bytes)
        return [
            *self._carried,
            *self._queue.take_nowait(self._limits.requests, self._limits.bytes),
        ]

    async def _commit(self, tickets: Sequence[Ticket]) -> None:
        """Carry out one batch: posts, reads and counts at the same time."""
        batch = plan(tickets)
        self._carried = batch.carried
        self._in_flight = [*batch.posts, *batch.reads, *batch.counts]
        now = asyncio.get_running_loop().time()
        self._metrics.queue_wait.observe(now - tickets[0].entered)
        self._metrics.batch_requests.observe(len(tickets))
        work = []
        if batch.posts:
            work.append(self._guarded(self._insert, batch.posts))
        if batch.reads:
            work.append(self._guarded(self._read, batch.reads))
        if batch.counts:
            work.append(self._guarded(self._count, batch.counts))
        await asyncio.gather(*work)
        self._in_flight = []

    async def _guarded(
        self,
        work: Callable[[list[Ticket]], Awaitable[ServiceError | None]],
        tickets: list[Ticket],
    ) -> None:
        """Do one part of a batch; what it raises is the answer of its open tickets."""
        failure: ServiceError
        try:
            self._breaker.observe(await work(tickets))
            return
        except ServiceError as error:
            failure = error
            self._breaker.observe(error)
        except Exception as error:
            # A bug, or an error that the store does not know. The other parts go on.
            log.exception("a part of a batch failed", requests=len(tickets))
            failure = OutcomeUnknown(f"internal error: {type(error).__name__}")
        for ticket in tickets:
            self._fail(ticket, failure)

    async def _insert(self, tickets: list[Ticket]) -> ServiceError | None:
        """Store the posts of a batch, and answer each. Gives back what all of them met."""
        self._metrics.batch_posts.observe(len(tickets))
        posts = [ticket.command for ticket in tickets if isinstance(ticket.command, Post)]
        errors = await self._store.insert(posts)
        self._metrics.accepted.inc(errors.count(None))
        # Resolve after the store has answered: a reply is a promise.
        for ticket, post, error in zip(tickets, posts, errors, strict=True):
            if error is None:
                ticket.resolve(post.id)
            else:
                self._fail(ticket, error)
        return None if None in errors else errors[-1]

    async def _read(self, tickets: list[Ticket]) -> None:
        """Serve the reads of a batch in rounds; what needs more goes first in the next one."""
        self._metrics.batch_reads.observe(len(tickets))
        for _ in range(ROUNDS):
            tickets = await self._read_round(tickets)
            if not tickets:
                return
        self._carried = [*tickets, *self._carried]
        left = set(tickets)
        self._in_flight = [ticket for ticket in self._in_flight if ticket not in left]

    async def _read_round(self, tickets: list[Ticket]) -> list[Ticket]:
        """Search, claim, answer; gives back the reads that are not answered yet."""
        now_ms = self._clock.now_ms()
        searches = lookups(tickets, self._limits.slice, SINGLE_LOOKUPS)
        results = await _all(
            self._store.find_unread(search.usernames, search.limit, now_ms) for search in searches
        )
        found = {name: unread for result in results for name, unread in result.messages.items()}
        complete = {name for result in results for name in result.complete}
        # Asked again just before the claim: whoever has gone by now has consumed nothing.
        shares, again = share_out([t for t in tickets if t.is_open], found, complete)
        claimed = [share for share in shares if found.get(share.ticket.command.username)]
        for share in shares:
            # Nothing was found for anybody here, so no claim can make this answer false.
            if not found.get(share.ticket.command.username):
                share.ticket.resolve(Slice((), share.more))
        if claimed:
            again += await self._claim(claimed)
        return again

    async def _claim(self, shares: list[Share]) -> list[Ticket]:
        """Claim the shares and answer their reads; gives back those that must try again."""
        now_ms = self._clock.now_ms()
        claim = Claim(
            secrets.token_hex(16),
            tuple({share.ticket.command.username for share in shares}),
            tuple(message.id for share in shares for message in share.messages),
            now_ms,
            now_ms + int(self._limits.claim_s * 1000),
        )
        try:
            owned, is_final = await self._store.claim(claim)
        except NotExecuted:
            raise
        except BaseException:
            self._releases.add(claim, claim.ids, is_final=False)
            raise
        lost_some = len(owned) < len(claim.ids)
        if lost_some:
            self._metrics.claim_conflicts.inc(len(claim.ids) - len(owned))
            if not is_final:
                # A copy that is still on its way may yet take what others give back.
                self._releases.add(claim, [i for i in claim.ids if i not in owned], is_final)
        again: list[Ticket] = []
        for ticket, messages, more in shares:
            mine = messages
            if lost_some:
                mine = tuple(message for message in messages if message.id in owned)
            if messages and not mine:
                # Others took them, or the claim came too late: what is there has to be asked.
                again.append(ticket)
            elif ticket.resolve(Slice(mine, more)):
                self._metrics.read.inc(len(mine))
            elif mine:
                self._releases.add(claim, [message.id for message in mine], is_final)
        return again

    async def _count(self, tickets: list[Ticket]) -> None:
        """Answer the counts of a batch."""
        usernames = list({ticket.command.username for ticket in tickets})
        counts = await self._store.count_unread(usernames, self._clock.now_ms())
        for ticket in tickets:
            ticket.resolve(counts.get(ticket.command.username, 0))

    def _fail(self, ticket: Ticket, error: ServiceError) -> None:
        """Answer a ticket with an error; one whose outcome is unknown is counted."""
        command = ticket.command
        is_unknown = isinstance(error, OutcomeUnknown)
        if is_unknown and isinstance(command, Post):
            error = OutcomeUnknown(str(error), command.id)
        if ticket.fail(error) and is_unknown:
            self._metrics.unknown.labels(type(command).__name__.lower()).inc()


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await all of them, then raise the first error: no call is left running unwatched.

    Nothing is cancelled, since cancelling a database call costs its connection.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
