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
#: In a notebook: that something was missed, so that any inbox may have got a message.
ANY = None


class Waiters:
    """The parked reads of a pool."""

    def __init__(self, most: int, readmit: Callable[[WorkItem], None]) -> None:
        """`most` may be parked at once; `readmit` puts one back into its shard's queue."""
        self._most = most
        self._readmit = readmit
        # Dictionaries for their order.
        self._parked: dict[str, dict[WorkItem, None]] = {}
        self._count = 0
        self._notebooks: list[set[str | None]] = []
        self._is_ending = False
        #: Set while any is parked.
        self.are_there = asyncio.Event()

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
        return list(self._parked)

    def refuse_if_full(self) -> None:
        """Raise `Overloaded` where no more can be parked."""
        if self._count >= self._most:
            raise Overloaded("too many requests wait for messages")

    @contextmanager
    def noticing(self) -> Iterator[set[str | None]]:
        """Notes the inboxes that are woken meanwhile.

        For a search: a message that comes after it began, and before its read is parked, would
        be missed otherwise.
        """
        noticed: set[str | None] = set()
        self._notebooks.append(noticed)
        try:
            yield noticed
        finally:
            self._notebooks = [each for each in self._notebooks if each is not noticed]

    def park(self, item: WorkItem) -> bool:
        """Have a read wait, or refuse it; False where its time is over, or the service stops."""
        loop = asyncio.get_running_loop()
        if self._is_ending or item.wait_until <= loop.time():
            return False
        if self._count >= self._most:
            item.fail(Overloaded("too many requests wait for messages"))
            return True
        if item.timer is None:
            item.timer = loop.call_at(item.wait_until, self._give_up, item)
            item.future.add_done_callback(partial(self._leave, item))
        self._parked.setdefault(item.command.username, {})[item] = None
        self._count += 1
        self.are_there.set()
        return True

    def wake(self, usernames: Iterable[str]) -> None:
        """Messages may have come into these inboxes."""
        if not self._count and not self._notebooks:
            return
        for username in usernames:
            for notebook in self._notebooks:
                notebook.add(username)
            if username in self._parked:
                item = next(iter(self._parked[username]))
                self._unpark(item)
                self._readmit(item)

    def notice_any(self) -> None:
        """Messages may have come into any inbox, as far as reads in flight are concerned."""
        for notebook in self._notebooks:
            notebook.add(ANY)

    def end(self) -> None:
        """Answer all of them with nothing; nobody is parked from here on."""
        self._is_ending = True
        for items in [*self._parked.values()]:
            for item in [*items]:
                self._give_up(item)

    def _unpark(self, item: WorkItem) -> bool:
        username = item.command.username
        items = self._parked.get(username)
        if items is None or item not in items:
            return False
        del items[item]
        if not items:
            del self._parked[username]
        self._count -= 1
        if not self._count:
            self.are_there.clear()
        return True

    def _give_up(self, item: WorkItem) -> None:
        # One that is in its shard just now is answered there, and not parked again: its timer,
        # which may fire a moment early, is spent.
        item.wait_until = 0.0
        if not self._unpark(item):
            return
        if self._is_ending:
            item.resolve(Slice((), False))
        else:
            # Once more: that there is nothing has to be known, and the database may be away.
            self._readmit(item)

    def _leave(self, item: WorkItem, future: "asyncio.Future[Slice]") -> None:
        """It is answered, or its client has gone."""
        if item.timer is not None:
            item.timer.cancel()
        if self._unpark(item) or self._is_ending:
            return
        # What it was woken for may still be there, for the next one.
        if future.cancelled():
            self.wake((item.command.username,))
        elif future.exception() is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(_AFTER_FAILURE_S, self.wake, (item.command.username,))
