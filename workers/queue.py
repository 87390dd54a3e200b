"""The queue in front of a shard: bounded by count, by bytes, and per inbox, with two lanes.

Posts wait in one lane and reads in the other. A read that comes behind an unanswered post to its
inbox waits in the lane of the posts, so that it keeps its place behind it. `workers.shard` moves it
to the lane of the reads once the posts before it are answered. All other commands wait with the
reads.

`put_or_refuse` never waits: it refuses at once if there is no room in both lanes together. The
bound per inbox keeps one busy inbox from filling a queue that it shares with others. In each lane,
clients take turns (`workers.fair_queue`). A client with many requests does not take the room of
others, either: a full queue makes room for a client with less than its share. It refuses the newest
item of the client that has the most. A client that is alone has the whole queue.
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from workers.commands import Count, Post, Read
from workers.errors import Draining, Overloaded
from workers.fair_queue import FairQueue, Line
from workers.work_item import WorkItem


class QueueLimits(NamedTuple):
    """The bounds of one queue: its items, its bytes of text, and its items for one inbox."""

    items: int
    bytes: int
    items_per_inbox: int


class _Lack(NamedTuple):
    """Why an item does not fit, and how much of what it lacks others take up."""

    reason: str
    taken_by: Callable[[WorkItem], int]
    taken_by_line: Callable[[Line], int]


class ShardQueue:
    """Two lanes with common bounds.

    A read in `posts` is behind a post to its inbox that is in the same lane, or was when the read
    came. Items of one inbox are never in the wrong order: while one of them is in `posts`, new ones
    go there, too.
    """

    def __init__(
        self,
        limits: QueueLimits,
        on_displaced: Callable[[], object] = lambda: None,
        on_arrival: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_displaced` is called for each item that is refused after it was accepted, and
        `on_arrival` after each that came in.
        """
        self._limits = limits
        self._on_displaced = on_displaced
        self._on_arrival = on_arrival
        self._is_closed = False
        self._number = 0
        self.posts, self.reads = FairQueue(), FairQueue()
        #: The inboxes of the posts that were taken and not answered yet.
        self.in_flight: Collection[str] = frozenset()

    def qsize(self) -> int:
        """Return the number of items in both lanes."""
        return self.posts.qsize() + self.reads.qsize()

    def waiting_bytes(self) -> int:
        """Return the bytes of text in both lanes."""
        return self.posts.bytes + self.reads.bytes

    def put_or_refuse(self, item: WorkItem) -> None:
        """Append an item to its lane, or raise `Overloaded` or `Draining` and append nothing.

        Items of a client with more of them may be refused to make room for it.
        """
        if self._is_closed:
            raise Draining("the service is stopping")
        command, limits, posts, reads = item.command, self._limits, self.posts, self.reads
        username = command.username
        if (
            posts.qsize() + reads.qsize() >= limits.items
            or self._of_inbox(username) >= limits.items_per_inbox
            or posts.bytes + reads.bytes + command.size > limits.bytes
        ):
            self._make_room(item)
        self._number = item.number = self._number + 1
        if isinstance(command, Post) or self._is_behind(item):
            posts.put_nowait(item)
        else:
            reads.put_nowait(item)
        self._on_arrival()

    def readmit(self, item: WorkItem) -> None:
        """Append a long poll that was woken, regardless of the bounds and of later posts."""
        if self._is_closed:
            item.fail(Draining("the service is stopping"))
        else:
            self._number = item.number = self._number + 1
            self.reads.put_nowait(item)
            self._on_arrival()

    def move_to_reads(self, items: Iterable[WorkItem]) -> None:
        """Append reads that were taken from `posts` to the other lane, regardless of the bounds.

        They keep their number.
        """
        for item in items:
            self.reads.put_nowait(item)

    def expire(self, now: float) -> int:
        """Fail the items whose deadline has passed, and return how many there were."""
        return self.posts.expire(now) + self.reads.expire(now)

    def close(self) -> None:
        """Refuse new items, and let the lane of the posts end.

        Its consumer closes `reads` when no more reads can come from it.
        """
        self._is_closed = True
        self.posts.close()

    def take_all(self) -> list[WorkItem]:
        """Empty both lanes."""
        return [
            item for lane in (self.posts, self.reads) for item in lane.take_nowait(1 << 62, 1 << 62)
        ]

    def _is_behind(self, item: WorkItem) -> bool:
        """Return whether a read or count comes behind an unanswered post, or behind such a read."""
        username = item.command.username
        is_behind = username in self.posts.per_inbox or username in self.in_flight
        return is_behind and isinstance(item.command, Read | Count)

    def _of_inbox(self, username: str) -> int:
        return self.posts.per_inbox.get(username, 0) + self.reads.per_inbox.get(username, 0)

    def _lines_of(self, client: str) -> list[Line]:
        lanes = (self.posts, self.reads)
        return [lane.lines[client] for lane in lanes if client in lane.lines]

    def _make_room(self, item: WorkItem) -> None:
        """Refuse the newest items of the client with the most until an item of another fits.

        Raises `Overloaded` if the item's client has its share already.
        """
        own = self._lines_of(item.client)
        # Reads that moved to their lane may exceed the bounds: nobody loses a place for these.
        limits = self._limits._replace(
            items=max(self._limits.items, self.qsize()),
            items_per_inbox=max(
                self._limits.items_per_inbox, self._of_inbox(item.command.username)
            ),
        )
        while (lack := self._lack_of(item, limits)) is not None:
            # First a cheap test, for a client that floods a full queue.
            clients_min = max(len(self.posts.lines), len(self.reads.lines))
            if sum(map(len, own)) * clients_min >= self.qsize():
                raise Overloaded(lack.reason)
            taken = {
                client: sum(map(lack.taken_by_line, self._lines_of(client)))
                for client in {**self.posts.lines, **self.reads.lines}
            }
            most = max(taken, key=taken.__getitem__)
            if taken[most] <= taken.get(item.client, 0) + lack.taken_by(item):
                raise Overloaded(lack.reason)
            newest = max(
                (
                    next(each for each in reversed(line) if lack.taken_by(each))
                    for line in self._lines_of(most)
                    if lack.taken_by_line(line)
                ),
                key=lambda each: each.number,
            )
            is_post_lane = most in self.posts.lines and newest in self.posts.lines[most]
            (self.posts if is_post_lane else self.reads).remove(newest)
            if newest.fail(Overloaded("other clients need the room in the queue")):
                self._on_displaced()

    def _lack_of(self, item: WorkItem, limits: QueueLimits) -> _Lack | None:
        """Return what an item lacks to fit into a queue with these limits."""
        command = item.command
        if self.qsize() >= limits.items:
            return _Lack("too many requests are waiting", lambda _: 1, len)
        if self._of_inbox(command.username) >= limits.items_per_inbox:
            reason, username = "too many requests are waiting for this inbox", command.username

            def is_same(each: WorkItem) -> int:
                return each.command.username == username

            return _Lack(reason, is_same, lambda line: sum(map(is_same, line)))
        if self.waiting_bytes() + command.size > limits.bytes:
            reason = "too many bytes are waiting to be stored"
            return _Lack(reason, _size_of, lambda line: sum(map(_size_of, line)))
        return None


def _size_of(item: WorkItem) -> int:
    return item.command.size
