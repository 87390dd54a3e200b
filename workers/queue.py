"""The queue in front of a shard: bounded by count, by bytes, and per inbox.

`put_or_refuse` never waits: it refuses at once if there is no room. The bound per inbox keeps one
busy inbox from filling a queue that it shares with others.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from workers.errors import Draining, Expired, Overloaded
from workers.work_item import WorkItem


class QueueLimits(NamedTuple):
    """The bounds of one queue: its items, its bytes of text, and its items for one inbox."""

    items: int
    bytes: int
    items_per_inbox: int


class ShardQueue(asyncio.Queue[WorkItem | None]):
    """An `asyncio.Queue` of work items with one consumer. A None wakes the consumer at the end.

    `_init`, `_put` and `_get` are the hooks that asyncio's own queues override. Here they count
    bytes, and items per inbox.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._closed = False
        super().__init__()

    def _init(self, maxsize: int) -> None:
        self._queue: deque[WorkItem | None] = deque()
        self._per_inbox: dict[str, int] = {}
        self._bytes = 0

    def _put(self, item: WorkItem | None) -> None:
        self._queue.append(item)
        if item is not None:
            username = item.command.username
            self._per_inbox[username] = self._per_inbox.get(username, 0) + 1
            self._bytes += item.command.size

    def _get(self) -> WorkItem | None:
        item = self._queue.popleft()
        if item is not None:
            username = item.command.username
            if self._per_inbox[username] > 1:
                self._per_inbox[username] -= 1
            else:
                del self._per_inbox[username]
            self._bytes -= item.command.size
        return item

    def waiting_bytes(self) -> int:
        """Return the bytes of text in the queue."""
        return self._bytes

    def put_or_refuse(self, item: WorkItem) -> None:
        """Append an item, or raise `Overloaded` or `Draining` and append nothing."""
        if self._closed:
            raise Draining("the service is stopping")
        if len(self._queue) >= self._limits.items:
            raise Overloaded("too many requests are waiting")
        if self._per_inbox.get(item.command.username, 0) >= self._limits.items_per_inbox:
            raise Overloaded("too many requests are waiting for this inbox")
        if self._bytes + item.command.size > self._limits.bytes:
            raise Overloaded("too many bytes are waiting to be stored")
        self.put_nowait(item)

    def readmit(self, item: WorkItem) -> None:
        """Append a long poll that was woken, regardless of the bounds."""
        if self._closed:
            item.fail(Draining("the service is stopping"))
        else:
            self.put_nowait(item)

    async def take(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Wait for an item, then return the items in the queue up to the bounds, oldest first.

        An empty list means that the queue is closed and empty. Cancelling loses no item.
        """
        if self._closed and self.empty():
            return []
        first = await self.get()
        if first is None:
            return []
        return [first, *self.take_nowait(items_max - 1, bytes_max - first.command.size)]

    def take_nowait(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Return the items in the queue up to the bounds, oldest first, without waiting."""
        taken: list[WorkItem] = []
        while self._queue and len(taken) < items_max:
            head = self._queue[0]
            if head is None or (bytes_max := bytes_max - head.command.size) < 0:
                break
            self.get_nowait()
            taken.append(head)
        return taken

    def expire(self, now: float) -> int:
        """Fail the items whose deadline has passed, and return how many there were.

        All items of a process get the same time, so those at the head of the queue expire first.
        """
        expired = 0
        while self._queue and (head := self._queue[0]) is not None and head.deadline <= now:
            self.get_nowait()
            expired += head.fail(Expired("the request waited too long in its queue"))
        return expired

    def close(self) -> None:
        """Refuse new items. `take` returns the remaining items, then an empty list."""
        if not self._closed:
            self._closed = True
            if self.empty():
                self.put_nowait(None)
