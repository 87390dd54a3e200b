"""Long polls that wait for a first message, and that are woken when one may have arrived.

A wake-up only makes a read search again; the database decides whether there is a message. Waiters
of the same inbox are woken one at a time, so a message costs one search however many waiters there
are. A waiter that leaves messages behind wakes the next one.

There may be many thousands of waiters, so each should be small: they share timers, and what their
callbacks need.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from workers.commands import Slice
from workers.errors import Overloaded
from workers.work_item import WorkItem

#: If a woken read fails, the next waiter is woken after this many seconds.
_AFTER_FAILURE_S = 0.2
#: Waits end at multiples of this time, in seconds: those that end at the same one share a timer.
_TICK_S = 0.05
#: Stands for all inboxes in a record of wake-ups: any of them may have received a message.
ANY_INBOX = None


class Waiters:
    """The waiting reads of a pool."""

    def __init__(self, most: int, readmit: Callable[[WorkItem], None]) -> None:
        """At most `most` reads may wait. `readmit` puts a read back into its shard's queue."""
        self._most = most
        self._readmit = readmit
        # The waiter of each inbox. Several are in order of arrival; dictionaries keep their order.
        self._by_inbox: dict[str, WorkItem | dict[WorkItem, None]] = {}
        # The reads that have waited and are not done, by the tick at which their wait ends.
        self._by_end: dict[int, dict[WorkItem, None]] = {}
        # One for all: each waiter refers to it.
        self._done = self._on_done
        self._context = contextvars.copy_context()
        self._count = 0
        self._recorders: list[set[str | None]] = []
        self._is_ending = False
        #: Set while there is a waiter.
        self.not_empty = asyncio.Event()
        # The inboxes whose arrivals the database reports; None stands for all.
        self._reported: Collection[str] | None = ()
        # The reported inboxes for which a read began to wait lately.
        self._lately: set[str] = set()
        #: Set when a read begins to wait for an inbox that is not reported.
        self.has_unreported = asyncio.Event()

    @property
    def count(self) -> int:
        """The number of waiters."""
        return self._count

    @property
    def is_ending(self) -> bool:
        """Whether waiting has ended because the service is stopping."""
        return self._is_ending

    def usernames(self) -> Collection[str]:
        """Return the inboxes that have waiters."""
        return list(self._by_inbox)

    def set_reported(self, usernames: Collection[str] | None) -> None:
        """Set the inboxes whose arrivals the database reports. None stands for all."""
        self._reported = None if usernames is None else frozenset(usernames)
        self._lately.clear()
        self.unreported()

    def take_reported(self) -> Collection[str]:
        """Return the reported inboxes that have waiters, or had any since the last call."""
        lately, self._lately = self._lately, set()
        return lately.union(name for name in self._reported or () if name in self._by_inbox)

    def unreported(self) -> Collection[str]:
        """Return the inboxes that have waiters and are not reported."""
        reported = self._reported
        if reported is None or not self._count:
            self.has_unreported.clear()
            return ()
        names = [username for username in self._by_inbox if username not in reported]
        if names:
            self.has_unreported.set()
        else:
            self.has_unreported.clear()
        return names

    def refuse_if_full(self) -> None:
        """Raise `Overloaded` if no further read may wait."""
        if self._count >= self._most:
            raise Overloaded("too many requests are waiting for messages")

    @contextmanager
    def record_wakes(self) -> Iterator[set[str | None]]:
        """Yield a set, and record in it the inboxes that are woken while the block runs.

        Used around a search. Otherwise a message that arrives after the search began and before
        its read waits would be missed.
        """
        woken: set[str | None] = set()
        self._recorders.append(woken)
        try:
            yield woken
        finally:
            self._recorders = [each for each in self._recorders if each is not woken]

    def add(self, item: WorkItem) -> bool:
        """Let a read wait, or fail it with `Overloaded` if no further read may wait.

        Returns False if its waiting time is over or the service is stopping.
        """
        loop = asyncio.get_running_loop()
        if self._is_ending or item.wait_until <= loop.time():
            return False
        if self._count >= self._most:
            item.fail(Overloaded("too many requests are waiting for messages"))
            return True
        if item.on_done is None:
            item.on_done = self._done
            item.future.add_done_callback(item.done, context=self._context)
            self._end_later(item)
        username = item.command.username
        others = self._by_inbox.get(username)
        if others is None:
            self._by_inbox[username] = item
        elif isinstance(others, WorkItem):
            self._by_inbox[username] = {others: None, item: None}
        else:
            others[item] = None
        self._count += 1
        self.not_empty.set()
        if self._reported is not None:
            if username in self._reported:
                self._lately.add(username)
            else:
                self.has_unreported.set()
        return True

    def wake(self, usernames: Iterable[str]) -> None:
        """Wake one waiter of each of these inboxes: messages may have arrived."""
        if not self._count and not self._recorders:
            return
        for username in usernames:
            for recorder in self._recorders:
                recorder.add(username)
            if (waiting := self._by_inbox.get(username)) is not None:
                item = waiting if isinstance(waiting, WorkItem) else next(iter(waiting))
                self._remove(item)
                self._readmit(item)

    def record_any(self) -> None:
        """Tell the searches in progress that any inbox may have received a message."""
        for recorder in self._recorders:
            recorder.add(ANY_INBOX)

    def end(self) -> None:
        """Answer all waiters with an empty result. From now on no read can wait."""
        self._is_ending = True
        for waiting in [*self._by_inbox.values()]:
            for item in (waiting,) if isinstance(waiting, WorkItem) else [*waiting]:
                self._end_wait(item)

    def _remove(self, item: WorkItem) -> bool:
        username = item.command.username
        waiting = self._by_inbox.get(username)
        if isinstance(waiting, dict) and item in waiting:
            del waiting[item]
            if not waiting:
                del self._by_inbox[username]
        elif waiting is item:
            del self._by_inbox[username]
        else:
            return False
        self._count -= 1
        if not self._count:
            self.not_empty.clear()
        return True

    def _end_later(self, item: WorkItem) -> None:
        tick = _end_of(item)
        if tick not in self._by_end:
            self._by_end[tick] = {}
            asyncio.get_running_loop().call_at(tick * _TICK_S, self._end_waits, tick)
        self._by_end[tick][item] = None

    def _end_waits(self, tick: int) -> None:
        loop = asyncio.get_running_loop()
        for item in self._by_end.pop(tick):
            # A callback each: if one fails, the others still end.
            loop.call_soon(self._end_wait, item, context=self._context)

    def _end_wait(self, item: WorkItem) -> None:
        # If the shard is serving the read just now, it answers the read, which does not wait again:
        # the timer, which may fire a moment early, will not fire a second time.
        item.wait_until = 0.0
        if not self._remove(item):
            return
        if self._is_ending:
            item.resolve(Slice((), False))
        else:
            # Search again. An empty answer must be certain, and the database may be unavailable.
            self._readmit(item)

    def _on_done(self, item: WorkItem) -> None:
        """Forget a read that was answered or cancelled."""
        self._by_end.get(_end_of(item), {}).pop(item, None)
        if self._remove(item) or self._is_ending:
            return
        future = item.future
        # The message that it was woken for may still be there for the next waiter.
        if future.cancelled():
            self.wake((item.command.username,))
        elif future.exception() is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(_AFTER_FAILURE_S, self.wake, (item.command.username,))


def _end_of(item: WorkItem) -> int:
    """Return the tick at which the wait of a read ends: not before its time."""
    return math.ceil(item.wait_until / _TICK_S)
