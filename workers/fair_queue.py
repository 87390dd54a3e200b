"""A queue that is fair to clients: each gives one item, then the next one.

A client with many requests therefore does not make the others wait: a batch that does not exhaust
the queue has the items of those with few requests. While some clients have far more requests than
others, batches are small, so that the others do not wait for long ones.

The items of one client keep their order. A batch is in order of arrival. So an item only overtakes
items of other clients, and only while the queue holds more than a batch.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from workers.errors import Expired
from workers.work_item import WorkItem

#: If a client has so many times as many items as another one, batches are small, and stay so for
#: so many seconds.
UNEVEN, UNEVEN_S = 8, 10.0
#: A small batch has at most this many items, or this many of each client.
SMALL_ITEMS, SMALL_TURNS = 32, 4

#: The items of one client, oldest first.
Line: TypeAlias = deque[WorkItem]


class FairQueue(asyncio.Queue[WorkItem | None]):
    """An `asyncio.Queue` of work items with one consumer, which takes many at once.

    It has no bounds: `workers.queue` decides what comes in. `_init`, `_put` and `_get` are the
    hooks that asyncio's own queues override. Here they keep a line for each client, and count bytes
    and items per inbox.
    """

    def __init__(self) -> None:
        self._is_closed = False
        super().__init__()

    def _init(self, maxsize: int) -> None:
        # All items in order of arrival.
        self._arrivals: dict[WorkItem, None] = {}
        #: The lines of the clients that have items, in the order of their turns.
        self.lines: dict[str, Line] = {}
        #: How many items each inbox has.
        self.per_inbox: dict[str, int] = {}
        #: The bytes of text in the queue.
        self.bytes = 0
        # Until when batches are small, on the loop's clock.
        self._small_until = 0.0
        # What the consumer awaits in `ready`.
        self._readiness: asyncio.Future[None] | None = None

    def qsize(self) -> int:
        """Return the number of items in the queue."""
        return len(self._arrivals)

    def empty(self) -> bool:
        """Return whether the consumer has to wait. A closed queue has a None for it."""
        return not self._arrivals and not self._is_closed

    async def ready(self) -> bool:
        """Wait for an item, and leave it in the queue. Returns False if the queue is closed and
        empty.
        """
        while self.empty():
            self._readiness = asyncio.get_running_loop().create_future()
            await self._readiness
        return bool(self._arrivals)

    def take_nowait(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Return items up to the bounds, oldest first: an item of each client in turn.

        If there is any item, at least one is returned, even if it alone exceeds the bytes.
        """
        taken: list[WorkItem] = []
        arrivals, lines = self._arrivals, self.lines
        if len(arrivals) > SMALL_ITEMS and self._is_uneven():
            items_max = min(items_max, max(SMALL_ITEMS, SMALL_TURNS * len(lines)))
        if len(arrivals) <= items_max and self.bytes <= bytes_max:
            taken += arrivals
            self._clear()
        while lines and len(taken) < items_max:
            bytes_max -= next(iter(lines.values()))[0].command.size
            if bytes_max < 0 and taken:
                break
            taken.append(self._get_next())
        taken.sort(key=_number_of)
        return taken

    def take_next(self, may_go: Callable[[WorkItem], bool]) -> WorkItem | None:
        """Return the oldest item of the first client in turn whose item may go, if there is one."""
        for client, line in self.lines.items():
            item = line[0]
            if may_go(item):
                self.remove(item)
                self._end_turn(client, line)
                return item
        return None

    def remove(self, item: WorkItem) -> None:
        """Remove an item, wherever it is."""
        line = self.lines[item.client]
        if line[0] is item:
            line.popleft()
        else:
            line.remove(item)
        if not line:
            del self.lines[item.client]
        del self._arrivals[item]
        command = item.command
        self.bytes -= command.size
        if self.per_inbox[command.username] > 1:
            self.per_inbox[command.username] -= 1
        else:
            del self.per_inbox[command.username]

    def expire(self, now: float) -> int:
        """Fail the items whose deadline has passed, and return how many there were."""
        # Not all items get the same time, so all have to be looked at.
        due = [item for item in self._arrivals if item.deadline <= now]
        for item in due:
            self.remove(item)
        return sum(item.fail(Expired("the request waited too long in its queue")) for item in due)

    def close(self) -> None:
        """Let `ready` return False once the queue is empty."""
        self._is_closed = True
        self.put_nowait(None)

    def _put(self, item: WorkItem | None) -> None:
        if self._readiness is not None and not self._readiness.done():
            self._readiness.set_result(None)
        if item is None:
            # It only wakes the consumer at the end: see `empty`.
            return
        command, client = item.command, item.client
        if (line := self.lines.get(client)) is not None:
            line.append(item)
        else:
            self.lines[client] = deque((item,))
        self._arrivals[item] = None
        username = command.username
        self.per_inbox[username] = self.per_inbox.get(username, 0) + 1
        self.bytes += command.size

    def _get(self) -> WorkItem | None:
        return self._get_next() if self._arrivals else None

    def _get_next(self) -> WorkItem:
        """Return the oldest item of the client in turn, and end its turn."""
        if len(self._arrivals) == 1:
            # Nearly always, unless the shard is busy.
            (only,) = self._arrivals
            self._clear()
            return only
        client, line = next(iter(self.lines.items()))
        item = line[0]
        self.remove(item)
        self._end_turn(client, line)
        return item

    def _clear(self) -> None:
        self._arrivals.clear()
        self.lines.clear()
        self.per_inbox.clear()
        self.bytes = 0

    def _end_turn(self, client: str, line: Line) -> None:
        if line:
            # The last entry is the last in turn.
            del self.lines[client]
            self.lines[client] = line

    def _is_uneven(self) -> bool:
        """Return whether a client has far more items than another one, or had lately."""
        newest = next(reversed(self._arrivals))
        lengths = [len(line) for line in self.lines.values()]
        if max(lengths) >= UNEVEN * min(lengths):
            self._small_until = newest.entered + UNEVEN_S
        return newest.entered < self._small_until


def _number_of(item: WorkItem) -> int:
    return item.number
