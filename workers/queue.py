"""The queue in front of a shard: bounded by count, by bytes, and by inbox.

Back-pressure is an answer, not a wait: `put_or_refuse` refuses at once where there is no room.
The bound per inbox keeps one hot name from filling the queue that it shares with others.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from workers.errors import Draining, Expired, Overloaded
from workers.work_item import WorkItem


class QueueLimits(NamedTuple):
    """The bounds of one queue: items in all, bytes of text in all, items for one inbox."""

    items: int
    bytes: int
    items_per_inbox: int


class ShardQueue(asyncio.Queue[WorkItem | None]):
    """An `asyncio.Queue` of items with one taker; None in it wakes a taker at the end.

    The three overridden hooks are the ones in which asyncio's own queues differ; they are where
    the bytes and the inboxes are counted.
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
        """Bytes of text that wait."""
        return self._bytes

    def put_or_refuse(self, item: WorkItem) -> None:
        """Add a item at the end. Raises `Overloaded` or `Draining` and adds nothing."""
        if self._closed:
            raise Draining("the service is stopping")
        if len(self._queue) >= self._limits.items:
            raise Overloaded("too many requests wait")
        if self._per_inbox.get(item.command.username, 0) >= self._limits.items_per_inbox:
            raise Overloaded("too many requests wait for this inbox")
        if self._bytes + item.command.size > self._limits.bytes:
            raise Overloaded("too many bytes wait to be stored")
        self.put_nowait(item)

    def readmit(self, item: WorkItem) -> None:
        """Add a item that was here before, and has waited for a message, whatever the bounds."""
        if self._closed:
            item.fail(Draining("the service is stopping"))
        else:
            self.put_nowait(item)

    async def take(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """Wait for a item, then take what waits, up to the bounds, in order of arrival.

        An empty list means that the queue is closed and empty. Safe to cancel: nothing is lost.
        """
        if self._closed and self.empty():
            return []
        first = await self.get()
        if first is None:
            return []
        return [first, *self.take_nowait(items_max - 1, bytes_max - first.command.size)]

    def take_nowait(self, items_max: int, bytes_max: int) -> list[WorkItem]:
        """What waits now, up to the bounds, in order of arrival."""
        taken: list[WorkItem] = []
        while self._queue and len(taken) < items_max:
            head = self._queue[0]
            if head is None or (bytes_max := bytes_max - head.command.size) < 0:
                break
            self.get_nowait()
            taken.append(head)
        return taken

    def expire(self, now: float) -> int:
        """Answer the items at the head whose deadline has passed; how many there were.

        All items of a process have the same time to live, so the head is the oldest.
        """
        expired = 0
        while self._queue and (head := self._queue[0]) is not None and head.deadline <= now:
            self.get_nowait()
            expired += head.fail(Expired("waited too long for its turn"))
        return expired

    def close(self) -> None:
        """Refuse new items; `take` hands out what is left, then an empty list."""
        if not self._closed:
            self._closed = True
            if self.empty():
                self.put_nowait(None)
