"""The order and the room in a queue that several clients share."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.batch import PostBatch, plan
from workers.commands import Command, Post, Read
from workers.errors import Expired, Overloaded
from workers.fair_queue import SMALL_ITEMS, UNEVEN_S, FairQueue
from workers.queue import QueueLimits, ShardQueue
from workers.work_item import WorkItem

WIDE = QueueLimits(2000, 1 << 20, 2000)

_loop = asyncio.new_event_loop()
_loop.close()


def new_item(client: str, command: Command[Any], entered: float = 0.0) -> WorkItem:
    # The future is never awaited, so a closed loop is sufficient.
    future: asyncio.Future[Any] = asyncio.Future(loop=_loop)
    return WorkItem(command, entered, entered + 5.0, future, client=client)


def new_post(client: str, username: str = "bob", size: int = 1, entered: float = 0.0) -> WorkItem:
    return new_item(client, Post("id", username, "x" * size, size, 0, 0), entered)


def new_read(client: str, username: str) -> WorkItem:
    return new_item(client, Read(username))


def put(queue: ShardQueue, *items: WorkItem) -> None:
    for item in items:
        queue.put_or_refuse(item)


def clients(items: list[WorkItem]) -> Counter[str]:
    return Counter(item.client for item in items)


def test_a_client_with_many_requests_makes_no_other_wait() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy") for _ in range(1000)))
    put(queue, *(new_post(f"light-{number}") for number in range(20)))
    taken = clients(queue.posts.take_nowait(500, 1 << 20))
    assert len(taken) == 21


def test_clients_take_turns() -> None:
    queue = ShardQueue(WIDE)
    for client, count in (("a", 400), ("b", 300), ("c", 2)):
        put(queue, *(new_post(client) for _ in range(count)))
    first = clients(queue.posts.take_nowait(21, 1 << 20))
    assert first["c"] == 2
    assert abs(first["a"] - first["b"]) <= 1
    assert first.total() == 21


def test_a_turn_that_a_batch_cut_off_comes_first_in_the_next() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(client) for client in "aaabbbccc"))
    assert [item.client for item in queue.posts.take_nowait(2, 1 << 20)] == ["a", "b"]
    assert [item.client for item in queue.posts.take_nowait(1, 1 << 20)] == ["c"]


def test_batches_are_small_while_one_client_sends_far_more() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy", entered=1.0) for _ in range(1000)))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == 500
    put(queue, new_post("light", entered=2.0))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == SMALL_ITEMS
    put(queue, new_post("heavy", entered=3.0))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == SMALL_ITEMS


def test_a_client_that_is_alone_again_gets_long_batches_again() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy", entered=1.0) for _ in range(300)))
    put(queue, new_post("light", entered=1.0))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == SMALL_ITEMS
    put(queue, new_post("heavy", entered=1.0 + UNEVEN_S))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == 301 - SMALL_ITEMS + 1


def test_clients_that_send_alike_share_long_batches() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(client) for client in "abcd" * 100))
    put(queue, *(new_post("a") for _ in range(100)))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == 500


def test_many_clients_with_a_request_each_share_a_long_batch() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(f"client-{number}") for number in range(500)))
    assert len(queue.posts.take_nowait(500, 1 << 20)) == 500


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (WIDE._replace(items=100), 1),
        (WIDE._replace(bytes=1000), 10),
        (WIDE._replace(items_per_inbox=100), 1),
    ],
    ids=["items", "bytes", "inbox"],
)
def test_a_flooded_queue_makes_room_for_other_clients(limits: QueueLimits, size: int) -> None:
    displaced: list[None] = []
    queue = ShardQueue(limits, lambda: displaced.append(None))
    flood = [new_post("heavy", size=size) for _ in range(100)]
    put(queue, *flood)
    others = [new_post(f"light-{number}", size=size) for number in range(30)]
    put(queue, *others)
    with pytest.raises(Overloaded):
        put(queue, new_post("heavy", size=size))
    refused = [item for item in flood if not item.is_open]
    assert refused == flood[70:]
    assert all(isinstance(item.future.exception(), Overloaded) for item in refused)
    assert len(displaced) == 30
    assert all(item.is_open for item in others)


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (WIDE._replace(items=100), [f"user-{number}" for number in range(100)]),
        (WIDE._replace(items_per_inbox=100), ["bob"] * 100),
    ],
    ids=["items", "inbox"],
)
def test_reads_that_move_to_their_lane_displace_nobody(
    limits: QueueLimits, names: list[str]
) -> None:
    """They may exceed the bounds. A client that comes then takes one place, not theirs, too."""
    queue = ShardQueue(limits)
    put(queue, new_post("heavy", "bob"), *(new_read("reader", "bob") for _ in range(30)))
    batch = plan(queue.posts.take_nowait(100, 1 << 20))
    queue.in_flight = batch.posted
    others = [new_read(client, name) for client, name in zip("abcd" * 25, names, strict=True)]
    put(queue, *others)
    queue.in_flight = frozenset()
    queue.move_to_reads(batch.behind)
    put(queue, new_read("late", "bob"))
    assert sum(not item.is_open for item in [*others, *batch.behind]) == 1
    assert queue.qsize() == 130


def test_a_client_with_its_share_gets_no_room_of_others() -> None:
    queue = ShardQueue(WIDE._replace(items=4))
    put(queue, *(new_post(client) for client in "abab"))
    for client in "ab":
        with pytest.raises(Overloaded):
            put(queue, new_post(client))
    put(queue, new_post("c"))
    with pytest.raises(Overloaded):
        put(queue, new_post("c"))
    assert sorted(clients(queue.posts.take_nowait(9, 1 << 20)).values()) == [1, 1, 2]


class SharedQueue(RuleBasedStateMachine):
    """Puts, takes, answers and expiries in any order, next to lists of what must be in the lanes.

    Items move between the lanes as a shard moves them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.displaced = 0
        self.now = 0.0
        self.posts: list[WorkItem] = []
        self.reads: list[WorkItem] = []
        #: The posts in flight, and the reads behind them.
        self.batch = PostBatch([], set(), [], [])
        #: Posts that are neither answered nor gone, and the reads that came behind one to their
        #: inbox, each with those.
        self.unanswered: list[WorkItem] = []
        self.before: dict[WorkItem, list[WorkItem]] = {}
        #: The reads that were in a batch of posts, and so were not overtaken by its posts.
        self.moved: set[WorkItem] = set()
        #: How often others were served since each client was, in each lane.
        self.skipped: dict[str, Counter[str]] = {"posts": Counter(), "reads": Counter()}

    @initialize(items=st.integers(1, 12), inbox=st.integers(1, 12), bytes_max=st.integers(5, 40))
    def begin(self, items: int, inbox: int, bytes_max: int) -> None:
        self.limits = QueueLimits(items, bytes_max, inbox)
        self.queue = ShardQueue(self.limits, self._count_displaced)

    def _count_displaced(self) -> None:
        self.displaced += 1

    def _drop(self, gone: Collection[WorkItem]) -> None:
        self.posts = [each for each in self.posts if each not in gone]
        self.reads = [each for each in self.reads if each not in gone]
        self.unanswered = [each for each in self.unanswered if each not in gone]
        # A client without items is not skipped: its next item waits for a turn of its own.
        for lane, waiting in (("posts", self.posts), ("reads", self.reads)):
            left = clients(waiting)
            self.skipped[lane] = Counter(
                {each: times for each, times in self.skipped[lane].items() if each in left}
            )

    @rule(
        client=st.sampled_from("abc"),
        username=st.sampled_from(["bob", "eve"]),
        size=st.integers(0, 5),
        later_s=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def put(self, client: str, username: str, size: int, later_s: float) -> None:
        self.now += later_s
        command: Command[Any] = (
            Post("id", username, "x" * size, size, 0, 0) if size else Read(username)
        )
        item = new_item(client, command, self.now)
        waiting = [*self.posts, *self.reads]
        before, displaced = clients(waiting), self.displaced
        try:
            self.queue.put_or_refuse(item)
        except Overloaded:
            if displaced == self.displaced:
                # Not if the client has less than its share, and only items are scarce.
                share = len(waiting) / max(len(before), 1)
                is_full = len(waiting) >= self.limits.items
                most = max(before.values(), default=0)
                assert not is_full or before[client] >= share or most <= before[client] + 1
        gone = [each for each in waiting if not each.is_open]
        assert self.displaced - displaced == len(gone)
        for each in gone:
            # Only the newest items of other clients are refused.
            assert each.client != client
            assert isinstance(each.future.exception(), Overloaded)
        self._drop(gone)
        if item.number:
            self._note(item)

    def _note(self, item: WorkItem) -> None:
        """Note in which lane an item must be, and which posts it comes behind."""
        username = item.command.username
        is_post = isinstance(item.command, Post)
        ahead = [each for each in self.unanswered if each.command.username == username]
        if is_post:
            self.unanswered.append(item)
        else:
            self.before[item] = ahead
        is_behind = ahead or any(each.command.username == username for each in self.posts)
        (self.posts if is_post or is_behind else self.reads).append(item)

    @rule(client=st.sampled_from("abc"), username=st.sampled_from(["bob", "eve"]))
    def readmit(self, client: str, username: str) -> None:
        item = new_item(client, Read(username), self.now)
        self.queue.readmit(item)
        self.reads.append(item)

    @precondition(lambda self: not self.batch.posts)
    @rule(items_max=st.integers(1, 8), bytes_max=st.integers(1, 30))
    def take_posts(self, items_max: int, bytes_max: int) -> None:
        taken = self._take("posts", self.queue.posts, self.posts, items_max, bytes_max)
        self.batch = plan(taken)
        self.queue.in_flight = self.batch.posted
        self.queue.move_to_reads(self.batch.free)
        self.reads += self.batch.free
        self.moved |= {item for item in taken if isinstance(item.command, Read)}
        for place, item in enumerate(taken):
            if isinstance(item.command, Read):
                inbox = item.command.username
                is_behind = any(
                    isinstance(each.command, Post) and each.command.username == inbox
                    for each in taken[:place]
                )
                assert (item in self.batch.behind) == is_behind

    @precondition(lambda self: self.batch.posts)
    @rule()
    def answer_posts(self) -> None:
        self.queue.in_flight = frozenset()
        self.queue.move_to_reads(self.batch.behind)
        self.reads += self.batch.behind
        self._drop(self.batch.posts)
        self.batch = PostBatch([], set(), [], [])

    @rule(items_max=st.integers(1, 8), bytes_max=st.integers(1, 30))
    def take_reads(self, items_max: int, bytes_max: int) -> None:
        for read in self._take("reads", self.queue.reads, self.reads, items_max, bytes_max):
            for each in self.before.get(read, ()):
                if each in self.unanswered:
                    # It only overtakes posts of other clients, and those in no batch yet.
                    assert each.client != read.client
                    assert each in self.posts
                    assert read in self.moved

    def _take(
        self, lane: str, queue: FairQueue, waiting: list[WorkItem], items_max: int, bytes_max: int
    ) -> list[WorkItem]:
        taken = queue.take_nowait(items_max, bytes_max)
        assert bool(taken) == bool(waiting)
        assert len(taken) <= items_max
        assert len(taken) <= 1 or sum(item.command.size for item in taken) <= bytes_max
        # In order of arrival, and each client's first items.
        numbers = [item.number for item in taken]
        assert numbers == sorted(numbers)
        got = clients(taken)
        for client in "abc":
            mine = [item for item in waiting if item.client == client]
            assert {item for item in taken if item.client == client} == set(mine[: got[client]])
        left = clients([item for item in waiting if item not in taken])
        # No client gets two items more than one that still waits, or is skipped for long.
        skipped = self.skipped[lane]
        for client in "abc":
            if client in left:
                assert max(got.values()) <= got[client] + 1
            if client in got or client not in left:
                del skipped[client]
            else:
                skipped[client] += 1
                assert skipped[client] < 3
        waiting[:] = [item for item in waiting if item not in taken]
        return taken

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 6.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        due = [item for item in (*self.posts, *self.reads) if item.deadline <= self.now]
        assert self.queue.expire(self.now) == len(due)
        assert all(isinstance(item.future.exception(), Expired) for item in due)
        self._drop(due)

    @invariant()
    def nothing_is_lost_or_counted_wrong(self) -> None:
        if not hasattr(self, "queue"):
            return
        for lane, waiting in ((self.queue.posts, self.posts), (self.queue.reads, self.reads)):
            assert lane.qsize() == len(waiting)
            assert lane.bytes == sum(item.command.size for item in waiting)
            assert lane.per_inbox == Counter(item.command.username for item in waiting)
            assert set(lane.lines) == set(clients(waiting))


TestSharedQueue: Callable[[], Any] = SharedQueue.TestCase
TestSharedQueue.settings = settings(  # type: ignore[attr-defined]
    max_examples=150, stateful_step_count=40, deadline=None
)
