"""The queue in front of a shard: its bounds, its order and its end."""

import asyncio
import time
from typing import Any

import pytest

from workers.commands import Command, Post, Read
from workers.errors import Draining, Expired, Overloaded
from workers.fair_queue import FairQueue
from workers.queue import QueueLimits, ShardQueue
from workers.work_item import WorkItem

WIDE = QueueLimits(100, 1 << 20, 100)


def new_item(command: Command[Any], deadline: float = 1e12) -> WorkItem:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return WorkItem(command, time.monotonic(), deadline, future)


def new_post(username: str = "bob", size: int = 10) -> WorkItem:
    return new_item(Post("id", username, "x" * size, size, 0, 0))


async def take(lane: FairQueue, items_max: int, bytes_max: int) -> list[WorkItem]:
    """Wait for items, and take them."""
    return lane.take_nowait(items_max, bytes_max) if await lane.ready() else []


async def test_items_leave_in_the_order_they_came() -> None:
    queue = ShardQueue(WIDE)
    items = [new_post(name) for name in "abcabc"]
    for item in items:
        queue.put_or_refuse(item)
    assert await take(queue.posts, 4, 1 << 20) == items[:4]
    assert await take(queue.posts, 4, 1 << 20) == items[4:]


async def test_a_full_queue_refuses_at_once() -> None:
    queue = ShardQueue(WIDE._replace(items=2))
    queue.put_or_refuse(new_post("a"))
    queue.put_or_refuse(new_post("b"))
    with pytest.raises(Overloaded):
        queue.put_or_refuse(new_post("c"))
    assert len(await take(queue.posts, 10, 1 << 20)) == 2


async def test_bytes_are_bounded_and_freed() -> None:
    queue = ShardQueue(WIDE._replace(bytes=25))
    queue.put_or_refuse(new_post(size=20))
    with pytest.raises(Overloaded):
        queue.put_or_refuse(new_post(size=6))
    queue.put_or_refuse(new_post(size=5))
    await take(queue.posts, 10, 1 << 20)
    assert queue.waiting_bytes() == 0
    queue.put_or_refuse(new_post(size=25))


async def test_one_inbox_cannot_fill_the_queue_that_it_shares() -> None:
    queue = ShardQueue(WIDE._replace(items_per_inbox=2))
    queue.put_or_refuse(new_post("hot"))
    queue.put_or_refuse(new_post("hot"))
    with pytest.raises(Overloaded):
        queue.put_or_refuse(new_post("hot"))
    queue.put_or_refuse(new_post("cold"))
    await take(queue.posts, 1, 1 << 20)
    queue.put_or_refuse(new_post("hot"))


async def test_a_batch_is_bounded_by_bytes_but_never_empty() -> None:
    queue = ShardQueue(WIDE)
    for _ in range(4):
        queue.put_or_refuse(new_post(size=100))
    assert len(await take(queue.posts, 10, 50)) == 1
    assert len(await take(queue.posts, 10, 250)) == 2


async def test_items_past_their_deadline_are_answered() -> None:
    queue = ShardQueue(WIDE)
    late, due = new_item(Read("bob"), deadline=10), new_item(Read("bob"), deadline=20)
    queue.put_or_refuse(late)
    queue.put_or_refuse(due)
    assert queue.expire(now=15) == 1
    assert isinstance(late.future.exception(), Expired)
    assert await take(queue.reads, 10, 1 << 20) == [due]


async def test_a_closed_queue_returns_its_items_and_ends() -> None:
    queue = ShardQueue(WIDE)
    item = new_post()
    queue.put_or_refuse(item)
    queue.close()
    with pytest.raises(Draining):
        queue.put_or_refuse(new_post())
    assert await take(queue.posts, 10, 1 << 20) == [item]
    assert await take(queue.posts, 10, 1 << 20) == []
    assert await take(queue.posts, 10, 1 << 20) == []


async def test_closing_wakes_a_waiting_consumer() -> None:
    queue = ShardQueue(WIDE)
    taker = asyncio.create_task(take(queue.posts, 10, 1 << 20))
    await asyncio.sleep(0)
    queue.close()
    assert await taker == []


async def test_cancelling_a_consumer_loses_no_item() -> None:
    queue = ShardQueue(WIDE)
    taker = asyncio.create_task(take(queue.posts, 10, 1 << 20))
    await asyncio.sleep(0)
    item = new_post()
    queue.put_or_refuse(item)
    taker.cancel()
    await asyncio.gather(taker, return_exceptions=True)
    assert queue.posts.take_nowait(10, 1 << 20) == [item]


async def test_a_woken_long_poll_is_answered_by_a_closed_queue() -> None:
    queue = ShardQueue(WIDE)
    queue.close()
    woken = new_item(Read("bob", None))
    queue.readmit(woken)
    assert isinstance(woken.future.exception(), Draining)
    assert queue.qsize() == 0
