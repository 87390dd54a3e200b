"""Reads that wait for a first message: parked here, woken when one may have come.

A wake-up only has a read try again; the database decides what is there. Per inbox they are woken
one at a time, so that a message costs one search however many wait for it: who gets one and
leaves some has the next one woken.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from workers.commands import Slice
from workers.errors import Overloaded
from workers.work_item import WorkItem

#: Where a read that was woken has failed, the next one is woken after so long, in seconds.
_AFTER_FAILURE_S = 0.2
#: In a recorder: that something was missed, so that any inbox may have got a message.
ANY_INBOX = None


class Waiters:
    """The parked reads of a pool."""

    def __init__(self, most: int, readmit: Callable[[WorkItem], None]) -> None:
        """`most` may be parked at once; `readmit` puts one back into its shard's queue."""
        self._most = most
        self._readmit = readmit
        # Dictionaries for their order.
        self._by_inbox: dict[str, dict[WorkItem, None]] = {}
        self._count = 0
        self._recorders: list[set[str | None]] = []
        self._is_ending = False
        #: Set while any is parked.
        self.not_empty = asyncio.Event()

    @property
    def count(self) -> int:
        """How many are parked."""
        return self._count

    @property
    def is_ending(self) -> bool:
        """Whether nobody waits any more, because the service stops."""
        return self._is_ending

    def usernames(self) -> Collection[str]:
        """The inboxes that are waited for."""
        return list(self._by_inbox)

    def refuse_if_full(self) -> None:
        """Raise `Overloaded` where no more can be parked."""
        if self._count >= self._most:
            raise Overloaded("too many requests wait for messages")

    @contextmanager
    def record_wakes(self) -> Iterator[set[str | None]]:
        """Notes the inboxes that are woken meanwhile.

        For a search: a message that comes after it began, and before its read is parked, would
        be missed otherwise.
        """
        woken: set[str | None] = set()
        self._recorders.append(woken)
        try:
            yield woken
        finally:
            self._recorders = [each for each in self._recorders if each is not woken]

    def add(self, item: WorkItem) -> bool:
        """Have a read wait, or refuse it; False where its time is over, or the service stops."""
        loop = asyncio.get_running_loop()
        if self._is_ending or item.wait_until <= loop.time():
            return False
        if self._count >= self._most:
            item.fail(Overloaded("too many requests wait for messages"))
            return True
        if item.timer is None:
            item.timer = loop.call_at(item.wait_until, self._end_wait, item)
            item.future.add_done_callback(partial(self._on_done, item))
        self._by_inbox.setdefault(item.command.username, {})[item] = None
        self._count += 1
        self.not_empty.set()
        return True

    def wake(self, usernames: Iterable[str]) -> None:
        """Messages may have come into these inboxes."""
        if not self._count and not self._recorders:
            return
        for username in usernames:
            for recorder in self._recorders:
                recorder.add(username)
            if username in self._by_inbox:
                item = next(iter(self._by_inbox[username]))
                self._remove(item)
                self._readmit(item)

    def record_any(self) -> None:
        """Messages may have come into any inbox, as far as reads in flight are concerned."""
        for recorder in self._recorders:
            recorder.add(ANY_INBOX)

    def end(self) -> None:
        """Answer all of them with nothing; nobody is parked from here on."""
        self._is_ending = True
        for items in [*self._by_inbox.values()]:
            for item in [*items]:
                self._end_wait(item)

    def _remove(self, item: WorkItem) -> bool:
        username = item.command.username
        items = self._by_inbox.get(username)
        if items is None or item not in items:
            return False
        del items[item]
        if not items:
            del self._by_inbox[username]
        self._count -= 1
        if not self._count:
            self.not_empty.clear()
        return True

    def _end_wait(self, item: WorkItem) -> None:
        # One that is in its shard just now is answered there, and not parked again: its timer,
        # which may fire a moment early, is spent.
        item.wait_until = 0.0
        if not self._remove(item):
            return
        if self._is_ending:
            item.resolve(Slice((), False))
        else:
            # Once more: that there is nothing has to be known, and the database may be away.
            self._readmit(item)

    def _on_done(self, item: WorkItem, future: "asyncio.Future[Slice]") -> None:
        """It is answered, or its client has gone."""
        if item.timer is not None:
            item.timer.cancel()
        if self._remove(item) or self._is_ending:
            return
        # What it was woken for may still be there, for the next one.
        if future.cancelled():
            self.wake((item.command.username,))
        elif future.exception() is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(_AFTER_FAILURE_S, self.wake, (item.command.username,))
