"""Bounds the unread messages of each inbox, without a read of the database for each post.

A process counts its own posts to an inbox. After an eighth of the quota, it has the database count
the inbox, and refuses posts if that has as many messages as the quota allows. So the messages of an
inbox exceed the quota by at most an eighth for each process. Posts that would exceed the eighth
wait for the count. `workers.pool` passes each post through here if there is a quota.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from workers.clock import DatabaseClock
from workers.errors import Draining, Expired, NotExecuted, Overloaded
from workers.store.base import Store

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How many posts of a process to one inbox are not checked by a count: quota / this.
SHARE = 8
#: A full inbox is counted again at most this often, in seconds, when there is a post to it.
RECOUNT_S = 1.0
#: The inboxes that are remembered, and the posts that can wait for a count.
INBOXES_MAX, HELD_MAX = 16_384, 2000
#: Without a quota for messages, a count stops after this many.
COUNTED_MAX = 100_000
#: Counts at the same time.
_COUNTS_MAX = 4


class QuotaLimits(NamedTuple):
    """The unread messages of one inbox, and the bytes of their texts. 0: no limit."""

    messages: int = 0
    bytes: int = 0


class _Tally:
    """What a process knows of one inbox."""

    __slots__ = ("bytes", "counted_at", "counting", "flying", "is_full", "messages")

    def __init__(self) -> None:
        #: The posts, and their bytes, that the last count may not include.
        self.messages = 0
        self.bytes = 0
        #: Posts without an outcome, with their sizes.
        self.flying: dict[asyncio.Future[Any], int] = {}
        self.counting: asyncio.Task[None] | None = None
        #: What the last count found, and when.
        self.is_full = False
        self.counted_at = 0.0


class InboxQuotas:
    """The quotas of all inboxes, in one process."""

    def __init__(
        self,
        store: Store,
        clock: DatabaseClock,
        limits: QuotaLimits,
        on_refused: Callable[[NotExecuted], object] = lambda _: None,
    ) -> None:
        """`on_refused` is called for each post that is refused because its count failed, took too
        long, or was awaited by too many posts.
        """
        self._store = store
        self._clock = clock
        self._limits = limits
        self._on_refused = on_refused
        # A limit of 0 is none.
        self._messages = max(limits.messages // SHARE, 1) if limits.messages else 1 << 62
        self._bytes = max(limits.bytes // SHARE, 1) if limits.bytes else 1 << 62
        # The least recently used inbox comes first; dictionaries keep their order.
        self._tallies: dict[str, _Tally] = {}
        self._held = 0
        self._places = asyncio.Semaphore(_COUNTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(
        self,
        username: str,
        size: int,
        deadline: float,
        store: Callable[[], asyncio.Future[T]],
        if_full: Callable[[], asyncio.Future[T]],
    ) -> asyncio.Future[T]:
        """Call `store` for a post of `size` bytes, or `if_full`, and return its future.

        If the inbox must be counted before, both happens later, or `Expired` is raised in the
        future at the `deadline`. Raises `Overloaded` if too many posts wait for a count.
        """
        loop, tally = asyncio.get_running_loop(), self._tally_of(username)
        is_due = tally.messages >= self._messages or (
            tally.messages > 0 and tally.bytes + size > self._bytes
        )
        if tally.is_full and tally.counting is None:
            if loop.time() < tally.counted_at + RECOUNT_S:
                return if_full()
            is_due = True
        if is_due or tally.is_full:
            again = partial(self.submit, username, size, deadline, store, if_full)
            return self._hold(self._start_count(username, tally), deadline, again)
        future = store()
        tally.messages += 1
        tally.bytes += size
        tally.flying[future] = size
        future.add_done_callback(lambda _: tally.flying.pop(future))
        if 2 * tally.messages >= self._messages or 2 * tally.bytes >= self._bytes:
            # Early, so that posts seldom wait for it.
            self._start_count(username, tally)
        return future

    async def close(self) -> None:
        """End all counts; the posts that wait for them fail."""
        for task in [*self._tasks]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _tally_of(self, username: str) -> _Tally:
        tally = self._tallies.pop(username, None) or _Tally()
        self._tallies[username] = tally
        if len(self._tallies) > INBOXES_MAX:
            del self._tallies[next(iter(self._tallies))]
        return tally

    def _start_count(self, username: str, tally: _Tally) -> asyncio.Task[None]:
        if tally.counting is None:
            task = asyncio.create_task(self._count(username, tally), name="inbox count")
            tally.counting = task
            self._tasks.add(task)
            task.add_done_callback(partial(self._on_counted, tally))
        return tally.counting

    def _on_counted(self, tally: _Tally, task: asyncio.Task[None]) -> None:
        tally.counting = None
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("an inbox was not counted", reason=str(error))

    async def _count(self, username: str, tally: _Tally) -> None:
        """Count an inbox, with all posts that this process sent before."""
        if tally.flying:
            await asyncio.wait([*tally.flying])
        async with self._places:
            # Posts that are on their way now may be missing in the result.
            missing, missing_bytes = len(tally.flying), sum(tally.flying.values())
            messages, size = tally.messages, tally.bytes
            limits = self._limits
            found = await self._store.measure_inbox(
                username, limits.messages or COUNTED_MAX, limits.bytes > 0, self._clock.now_ms()
            )
        tally.messages += missing - messages
        tally.bytes += missing_bytes - size
        tally.counted_at = asyncio.get_running_loop().time()
        tally.is_full = (0 < limits.messages <= found.messages) or (0 < limits.bytes <= found.bytes)

    def _hold(
        self,
        counting: asyncio.Task[None],
        deadline: float,
        submit: Callable[[], asyncio.Future[T]],
    ) -> asyncio.Future[T]:
        """Submit a post after a count, and return a future of its outcome."""
        if self._held >= HELD_MAX:
            overloaded = Overloaded("too many requests wait until their inbox is counted")
            self._on_refused(overloaded)
            raise overloaded
        self._held += 1
        loop = asyncio.get_running_loop()
        held: asyncio.Future[T] = loop.create_future()
        timer = loop.call_at(deadline, self._expire, held)

        def go_on(counted: asyncio.Task[None]) -> None:
            self._held -= 1
            timer.cancel()
            if held.done():
                return
            try:
                if counted.cancelled():
                    raise Draining("the service stopped")
                if (error := counted.exception()) is not None:
                    if isinstance(error, NotExecuted):
                        self._on_refused(error)
                    raise error
                _follow(held, submit())
            except Exception as error:
                held.set_exception(error)

        counting.add_done_callback(go_on)
        return held

    def _expire(self, held: asyncio.Future[Any]) -> None:
        if not held.done():
            expired = Expired("the request waited too long until its inbox was counted")
            self._on_refused(expired)
            held.set_exception(expired)


def _follow(follower: asyncio.Future[T], leader: asyncio.Future[T]) -> None:
    """Give a future the outcome of another one, and cancel that one with it."""

    def copy(_: asyncio.Future[T]) -> None:
        if follower.done():
            return
        if leader.cancelled():
            follower.cancel()
        elif (error := leader.exception()) is not None:
            follower.set_exception(error)
        else:
            follower.set_result(leader.result())

    leader.add_done_callback(copy)
    follower.add_done_callback(lambda _: follower.cancelled() and leader.cancel())
