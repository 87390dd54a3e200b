"""The order and the room in a queue that several clients share."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from workers.batch import plan
from workers.commands import Command, Post, Read
from workers.errors import Expired, Overloaded
from workers.queue import SMALL_ITEMS, UNEVEN_S, QueueLimits, ShardQueue
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


def put(queue: ShardQueue, *items: WorkItem) -> None:
    for item in items:
        queue.put_or_refuse(item)


def clients(items: list[WorkItem]) -> Counter[str]:
    return Counter(item.client for item in items)


def test_a_client_with_many_requests_makes_no_other_wait() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy") for _ in range(1000)))
    put(queue, *(new_post(f"light-{number}") for number in range(20)))
    taken = clients(queue.take_nowait(500, 1 << 20))
    assert len(taken) == 21


def test_clients_take_turns() -> None:
    queue = ShardQueue(WIDE)
    for client, count in (("a", 400), ("b", 300), ("c", 2)):
        put(queue, *(new_post(client) for _ in range(count)))
    first = clients(queue.take_nowait(21, 1 << 20))
    assert first["c"] == 2
    assert abs(first["a"] - first["b"]) <= 1
    assert first.total() == 21


def test_a_turn_that_a_batch_cut_off_comes_first_in_the_next() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(client) for client in "aaabbbccc"))
    assert [item.client for item in queue.take_nowait(2, 1 << 20)] == ["a", "b"]
    assert [item.client for item in queue.take_nowait(1, 1 << 20)] == ["c"]


def test_batches_are_small_while_one_client_sends_far_more() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy", entered=1.0) for _ in range(1000)))
    assert len(queue.take_nowait(500, 1 << 20)) == 500
    put(queue, new_post("light", entered=2.0))
    assert len(queue.take_nowait(500, 1 << 20)) == SMALL_ITEMS
    put(queue, new_post("heavy", entered=3.0))
    assert len(queue.take_nowait(500, 1 << 20)) == SMALL_ITEMS


async def test_the_first_item_of_a_batch_counts_as_its_clients() -> None:
    queue = ShardQueue(WIDE)
    put(queue, new_post("light", entered=1.0), *(new_post("heavy", entered=1.0) for _ in range(99)))
    assert len(await queue.take(500, 1 << 20)) == SMALL_ITEMS


def test_a_client_that_is_alone_again_gets_long_batches_again() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post("heavy", entered=1.0) for _ in range(300)))
    put(queue, new_post("light", entered=1.0))
    assert len(queue.take_nowait(500, 1 << 20)) == SMALL_ITEMS
    put(queue, new_post("heavy", entered=1.0 + UNEVEN_S))
    assert len(queue.take_nowait(500, 1 << 20)) == 301 - SMALL_ITEMS + 1


def test_clients_that_send_alike_share_long_batches() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(client) for client in "abcd" * 100))
    put(queue, *(new_post("a") for _ in range(100)))
    assert len(queue.take_nowait(500, 1 << 20)) == 500


def test_many_clients_with_a_request_each_share_a_long_batch() -> None:
    queue = ShardQueue(WIDE)
    put(queue, *(new_post(f"client-{number}") for number in range(500)))
    assert len(queue.take_nowait(500, 1 << 20)) == 500


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


def test_a_client_with_its_share_gets_no_room_of_others() -> None:
    queue = ShardQueue(WIDE._replace(items=4))
    put(queue, *(new_post(client) for client in "abab"))
    for client in "ab":
        with pytest.raises(Overloaded):
            put(queue, new_post(client))
    put(queue, new_post("c"))
    with pytest.raises(Overloaded):
        put(queue, new_post("c"))
    assert sorted(clients(queue.take_nowait(9, 1 << 20)).values()) == [1, 1, 2]


class SharedQueue(RuleBasedStateMachine):
    """Puts, takes and expiries in any order, next to a list of what must be in the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.displaced = 0
        self.now = 0.0
        self.waiting: list[WorkItem] = []
        #: How often others were served since each client was.
        self.skipped: Counter[str] = Counter()

    @initialize(items=st.integers(1, 12), inbox=st.integers(1, 12), bytes_max=st.integers(5, 40))
    def begin(self, items: int, inbox: int, bytes_max: int) -> None:
        self.limits = QueueLimits(items, bytes_max, inbox)
        self.queue = ShardQueue(self.limits, self._count_displaced)

    def _count_displaced(self) -> None:
        self.displaced += 1

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
        before, displaced = clients(self.waiting), self.displaced
        try:
            self.queue.put_or_refuse(item)
        except Overloaded:
            if displaced == self.displaced:
                # Not if the client has less than its share, and only items are scarce.
                share = len(self.waiting) / max(len(before), 1)
                is_full = len(self.waiting) >= self.limits.items
                most = max(before.values(), default=0)
                assert not is_full or before[client] >= share or most <= before[client] + 1
        else:
            self.waiting.append(item)
        gone = [each for each in self.waiting if not each.is_open]
        assert self.displaced - displaced == len(gone)
        for each in gone:
            # Only the newest items of other clients are refused.
            assert each.client != client
            assert isinstance(each.future.exception(), Overloaded)
        self.waiting = [each for each in self.waiting if each.is_open]

    @rule(client=st.sampled_from("abc"), username=st.sampled_from(["bob", "eve"]))
    def readmit(self, client: str, username: str) -> None:
        item = new_item(client, Read(username), self.now)
        self.queue.readmit(item)
        self.waiting.append(item)

    @rule(items_max=st.integers(1, 8), bytes_max=st.integers(1, 30))
    def take(self, items_max: int, bytes_max: int) -> None:
        taken = self.queue.take_nowait(items_max, bytes_max)
        assert bool(taken) == bool(self.waiting)
        assert len(taken) <= items_max
        assert len(taken) == 1 or sum(item.command.size for item in taken) <= bytes_max
        # In order of arrival, and each client's oldest items.
        places = [self.waiting.index(item) for item in taken]
        assert places == sorted(places)
        for client in "abc":
            mine = [item for item in self.waiting if item.client == client]
            assert [item for item in taken if item.client == client] == mine[
                : sum(item.client == client for item in taken)
            ]
        self._check_turns(taken)
        self._check_reads_behind_posts(taken)
        self.waiting = [item for item in self.waiting if item not in taken]

    def _check_turns(self, taken: list[WorkItem]) -> None:
        """No client gets two items more than one that still waits, or is skipped for long."""
        got = clients(taken)
        left = clients([item for item in self.waiting if item not in taken])
        for client in "abc":
            if client in left:
                assert max(got.values()) <= got[client] + 1
            if client in got or client not in left:
                del self.skipped[client]
            else:
                self.skipped[client] += 1
                assert self.skipped[client] < 3

    def _check_reads_behind_posts(self, taken: list[WorkItem]) -> None:
        """A read in a batch is deferred if a post to its inbox came before it, from anyone."""
        batch = plan(taken)
        for place, item in enumerate(taken):
            if isinstance(item.command, Read):
                before = [each.command for each in taken[:place]]
                is_behind = any(
                    isinstance(each, Post) and each.username == item.command.username
                    for each in before
                )
                assert (item in batch.deferred) == is_behind

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 6.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        due = [item for item in self.waiting if item.deadline <= self.now]
        assert self.queue.expire(self.now) == len(due)
        assert all(isinstance(item.future.exception(), Expired) for item in due)
        self.waiting = [item for item in self.waiting if item not in due]

    @invariant()
    def nothing_is_lost_or_counted_wrong(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.qsize() == len(self.waiting)
            assert self.queue.waiting_bytes() == sum(item.command.size for item in self.waiting)
            inboxes = Counter(item.command.username for item in self.waiting)
            assert self.queue._per_inbox == inboxes
            assert set(self.queue._lines) == set(clients(self.waiting))


TestSharedQueue: Callable[[], Any] = SharedQueue.TestCase
TestSharedQueue.settings = settings(  # type: ignore[attr-defined]
    max_examples=150, stateful_step_count=40, deadline=None
)
