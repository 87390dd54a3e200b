"""The queue in front of a shard: bounded by count, by bytes, and per inbox, and fair to clients.

`put_or_refuse` never waits: it refuses at once if there is no room. The bound per inbox keeps one
busy inbox from filling a queue that it shares with others.

A client with many requests does not make the others wait, and does not take their room:

- Clients take turns: each gives one item, then the next one. A batch that does not exhaust the
  queue therefore has the items of those with few requests.
- A full queue makes room for a client with less than its share: it refuses the newest item of the
  client that has the most. A client that is alone has the whole queue.
- While some clients have far more requests than others, batches are small, so that the others do
  not wait for long ones.

The items of one client keep their order. A batch is in order of arrival. So an item only overtakes
items of other clients, and only while the queue holds more than a batch. These have no answer yet:
a read never misses a message whose post was answered before, or was sent by the same client before.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple, TypeAlias

from workers.errors import Draining, Expired, Overloaded
from workers.work_item import WorkItem

#: If a client has so many times as many items as another one, batches are small, and stay so for
#: so many seconds.
UNEVEN, UNEVEN_S = 8, 10.0
#: A small batch has at most this many items, or this many of each client.
SMALL_ITEMS, SMALL_TURNS = 32, 4


class QueueLimits(NamedTuple):
    """The bounds of one queue: its items, its bytes of text, and its items for one inbox."""

    items: int
    bytes: int
    items_per_inbox: int


#: The items of one client, oldest first.
_Line: TypeAlias = deque[WorkItem]


class _Lack(NamedTuple):
    """Why an item does not fit, and how much of what it lacks others take up."""

    reason: str
    taken_by: Callable[[WorkItem], int]
    taken_by_line: Callable[[_Line], int]


class ShardQueue(asyncio.Queue[WorkItem | None]):
    """An `asyncio.Queue` of work items with one consumer. A None wakes the consumer at the end.

    `_init`, `_put` and `_get` are the hooks that asyncio's own queues override. Here they keep a
    line for each client, and count bytes and items per inbox.
    """

    def __init__(
        self, limits: QueueLimits, on_displaced: Callable[[], object] = lambda: None
    ) -> None:
        """`on_displaced` is called for each item that is refused after it was accepted."""
        self._limits = limits
        self._on_displaced = on_displaced
        self._is_closed = False
        super().__init__()

    def _init(self, maxsize: int) -> None:
        # All items in order of arrival. All get the same time, so they are in the order of their
        # deadlines, too.
        self._arrivals: dict[WorkItem, None] = {}
        # The lines of the clients that have items, in the order of their turns.
        self._lines: dict[str, _Line] = {}
        self._per_inbox: dict[str, int] = {}
        self._bytes = 0
        self._number = 0
        # Until when batches are small, on the loop's clock.
        self._small_until = 0.0

    def qsize(self) -> int:
        """Return the number of items in the queue."""
        return len(self._arrivals)

    def empty(self) -> bool:
        """Return whether the consumer has to wait. A closed queue has a None for it."""
        return not self._arrivals and not self._is_closed

    def waiting_bytes(self) -> int:
        """Return the bytes of text in the queue."""
        return self._bytes

    def put_or_refuse(self, item: WorkItem) -> None:
        """Append an item, or raise `Overloaded` or `Draining` and append nothing.

        Items of a client with more of them may be refused to make room for it.
        """
        if self._is_closed:
            raise Draining("the service is stopping")
        command, limits = item.command, self._limits
        if (
            len(self._arrivals) >= limits.items
            or self._per_inbox.get(command.username, 0) >= limits.items_per_inbox
            or self._bytes + command.size > limits.bytes
        ):
            self._make_room(item)
        self.put_nowait(item)

    def readmit(self, item: WorkItem) -> None:
        """Append a long poll that was woken, regardless of the bounds."""
        if self._is_closed:
            item.fail(Draining("the service is stopping"))
        else:
            self.put_nowait(item)

    async def take(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Wait for an item, then return items up to the bounds, as `take_nowait` does.

        An empty list means that the queue is closed and empty. Cancelling loses no item.
        """
        first = await self.get()
        if first is None:
            return []
        return self._fill([first], items_max, bytes_max - first.command.size)

    def take_nowait(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Return items up to the bounds, oldest first: an item of each client in turn.

        If there is any item, at least one is returned, even if it alone exceeds the bytes.
        """
        return self._fill([], items_max, bytes_max)

    def _fill(self, taken: list[WorkItem], items_max: int, bytes_max: int) -> list[WorkItem]:
        """Add items to a batch until it has `items_max`, or `bytes_max` more bytes."""
        arrivals, lines = self._arrivals, self._lines
        if not arrivals:
            return taken
        if len(taken) + len(arrivals) > SMALL_ITEMS and self._is_uneven(taken):
            items_max = min(items_max, max(SMALL_ITEMS, SMALL_TURNS * len(lines)))
        if len(taken) + len(arrivals) <= items_max and self._bytes <= bytes_max:
            taken += arrivals
            arrivals.clear()
            lines.clear()
            self._per_inbox.clear()
            self._bytes = 0
        while lines and len(taken) < items_max:
            bytes_max -= next(iter(lines.values()))[0].command.size
            if bytes_max < 0 and taken:
                break
            taken.append(self._get_next())
        taken.sort(key=_number_of)
        return taken

    def take_next(self, may_go: Callable[[WorkItem], bool]) -> WorkItem | None:
        """Return the oldest item of the first client in turn whose item may go, if there is one."""
        for client, line in self._lines.items():
            item = line[0]
            if may_go(item):
                self._remove(item, line)
                self._end_turn(client, line)
                return item
        return None

    def expire(self, now: float) -> int:
        """Fail the items whose deadline has passed, and return how many there were."""
        due = list(takewhile(lambda item: item.deadline <= now, self._arrivals))
        for item in due:
            self._remove(item, self._lines[item.client])
        return sum(item.fail(Expired("the request waited too long in its queue")) for item in due)

    def close(self) -> None:
        """Refuse new items. `take` returns the remaining items, then an empty list."""
        self._is_closed = True
        self.put_nowait(None)

    def _put(self, item: WorkItem | None) -> None:
        if item is None:
            # It only wakes the consumer: see `empty`.
            return
        command, client = item.command, item.client
        if (line := self._lines.get(client)) is not None:
            line.append(item)
        else:
            self._lines[client] = deque((item,))
        self._number = item.number = self._number + 1
        self._arrivals[item] = None
        username = command.username
        self._per_inbox[username] = self._per_inbox.get(username, 0) + 1
        self._bytes += command.size

    def _get(self) -> WorkItem | None:
        return self._get_next() if self._arrivals else None

    def _get_next(self) -> WorkItem:
        """Return the oldest item of the client in turn, and end its turn."""
        if len(self._arrivals) == 1:
            # Nearly always, unless the shard is busy.
            only, _ = self._arrivals.popitem()
            self._lines.clear()
            self._per_inbox.clear()
            self._bytes = 0
            return only
        client, line = next(iter(self._lines.items()))
        item = line[0]
        self._remove(item, line)
        self._end_turn(client, line)
        return item

    def _remove(self, item: WorkItem, line: _Line) -> None:
        if line[0] is item:
            line.popleft()
        else:
            line.remove(item)
        if not line:
            del self._lines[item.client]
        del self._arrivals[item]
        command = item.command
        self._bytes -= command.size
        if self._per_inbox[command.username] > 1:
            self._per_inbox[command.username] -= 1
        else:
            del self._per_inbox[command.username]

    def _end_turn(self, client: str, line: _Line) -> None:
        if line:
            # The last entry is the last in turn.
            del self._lines[client]
            self._lines[client] = line

    def _is_uneven(self, taken: list[WorkItem]) -> bool:
        """Return whether a client has far more items than another one, or had lately.

        `taken` are the items that the batch has already.
        """
        newest = next(reversed(self._arrivals))
        lengths = {client: len(line) for client, line in self._lines.items()}
        for item in taken:
            lengths[item.client] = lengths.get(item.client, 0) + 1
        if max(lengths.values()) >= UNEVEN * min(lengths.values()):
            self._small_until = newest.entered + UNEVEN_S
        return newest.entered < self._small_until

    def _make_room(self, item: WorkItem) -> None:
        """Refuse the newest items of the client with the most until an item of another fits.

        Raises `Overloaded` if the item's client has its share already.
        """
        own: _Line = self._lines.get(item.client, deque())
        while (lack := self._lack_of(item)) is not None:
            # First a cheap test, for a client that floods a full queue.
            if len(own) * len(self._lines) >= len(self._arrivals):
                raise Overloaded(lack.reason)
            most = max(self._lines.values(), key=lack.taken_by_line)
            if lack.taken_by_line(most) <= lack.taken_by_line(own) + lack.taken_by(item):
                raise Overloaded(lack.reason)
            newest = next(each for each in reversed(most) if lack.taken_by(each))
            self._remove(newest, most)
            if newest.fail(Overloaded("other clients need the room in the queue")):
                self._on_displaced()

    def _lack_of(self, item: WorkItem) -> _Lack | None:
        """Return what an item lacks to fit into the queue."""
        command, limits = item.command, self._limits
        if len(self._arrivals) >= limits.items:
            return _Lack("too many requests are waiting", lambda _: 1, len)
        if self._per_inbox.get(command.username, 0) >= limits.items_per_inbox:
            reason, username = "too many requests are waiting for this inbox", command.username

            def is_same(each: WorkItem) -> int:
                return each.command.username == username

            return _Lack(reason, is_same, lambda line: sum(map(is_same, line)))
        if self._bytes + command.size > limits.bytes:
            reason = "too many bytes are waiting to be stored"
            return _Lack(reason, _size_of, lambda line: sum(map(_size_of, line)))
        return None


def _number_of(item: WorkItem) -> int:
    return item.number


def _size_of(item: WorkItem) -> int:
    return item.command.size
