"""The pool and its shards: few round trips, order within an inbox, fairness, and refusals."""

import asyncio
from typing import Any

import pytest

from tests.support.pools import gather_answers, post, texts
from tests.support.stores import GateStore, MemoryStore
from tests.unit.conftest import MakePool
from workers.commands import Slice
from workers.errors import Expired, OutcomeUnknown, Overloaded
from workers.queue import QueueLimits
from workers.shard import ShardLimits


async def test_a_hundred_requests_take_a_few_round_trips(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "early")
    await store.reached()
    posts = [post(pool, f"poster-{number}") for number in range(50)]
    reads = [pool.read(f"reader-{number}") for number in range(50)]
    store.open()
    await asyncio.gather(first, *posts, *reads)
    assert store.calls == {"insert": 2, "find": 1}


async def test_a_read_finds_the_post_before_it(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore())
    futures: list[asyncio.Future[Any]] = [
        post(pool, "bob", "1"),
        post(pool, "bob", "2"),
        pool.read("bob"),
    ]
    answers = await asyncio.gather(*futures)
    assert isinstance(answers[2], Slice)
    assert texts(answers[2]) == ["1", "2"]


async def test_a_slow_insert_delays_no_read_of_another_inbox(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    posted = post(pool, "bob")
    await store.reached()
    for _ in range(3):
        assert await pool.read("eve") == Slice((), False)
        assert await pool.count("eve") == 0
    assert not posted.done()
    store.open()
    await posted


async def test_a_slow_search_delays_no_post(make_pool: MakePool) -> None:
    store = GateStore(shut={"find"})
    pool = await make_pool(store)
    read = pool.read("bob")
    await store.reached()
    for _ in range(3):
        await post(pool, "bob")
    assert not read.done()
    store.open()
    assert len((await read).messages) == 3


async def test_a_read_waits_for_a_post_in_flight(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "bob", "1")
    await store.reached()
    reads: list[asyncio.Future[Any]] = [pool.read("bob", 1), pool.read("bob"), pool.count("bob")]
    assert await pool.read("eve") == Slice((), False)
    assert store.calls["find"] == 1
    assert store.calls["count"] == 0
    store.open()
    assert [texts(await read) for read in reads[:2]] == [["1"], []]
    assert first.done()
    assert await reads[2] <= 1


async def test_a_read_waits_for_all_posts_of_its_client(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(2, 1 << 20, 50, 5.0))
    posts = [post(pool, "bob", str(number)) for number in range(9)]
    read = pool.read("bob")
    assert texts(await read) == list("012345678")
    assert all(each.done() for each in posts)


async def test_a_flood_of_an_inbox_does_not_keep_its_owner_away(make_pool: MakePool) -> None:
    store = GateStore()
    pool = await make_pool(store, batch=ShardLimits(10, 1 << 20, 50, 5.0))
    flood = [pool.post("bob", "x", 1, 60, client="flood") for _ in range(300)]
    read = pool.read("bob", client="bob")
    assert (await read).messages
    # Only its first batch of posts had to be stored before, and some were while the read searched.
    assert store.calls["insert"] <= 15
    await asyncio.gather(*flood)


async def test_reads_of_an_inbox_stay_in_order_behind_its_posts(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "bob", "1")
    await store.reached()
    second = post(pool, "bob", "2")
    reads = [pool.read("bob", 1) for _ in range(2)]
    store.open_once()
    await first
    # The first post is answered, and the second one in flight: a new read comes last.
    reads.append(pool.read("bob", 1))
    store.open()
    await second
    assert [texts(await read) for read in reads] == [["1"], ["2"], []]


async def test_concurrent_reads_share_no_message(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(100, 1 << 20, 5, 5.0))
    ids = [await post(pool, "bob") for _ in range(23)]
    reads = await asyncio.gather(*(pool.read("bob", 3) for _ in range(9)))
    got = [message.id for read in reads for message in read.messages]
    assert sorted(got) == ids


async def test_large_inboxes_hide_no_others(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(500, 1 << 20, 5, 5.0))
    names = [f"user-{number}" for number in range(20)]
    await asyncio.gather(*(post(pool, name) for name in names for _ in range(12)))
    reads = await asyncio.gather(*(pool.read(name) for name in names))
    assert all(read.messages for read in reads)
    assert all(read.more for read in reads if len(read.messages) < 12)


async def test_a_full_queue_refuses_at_once(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, queue=QueueLimits(2, 1 << 20, 2))
    waiting = [post(pool, "a")]
    await store.reached()
    waiting += [post(pool, "b"), post(pool, "c")]
    with pytest.raises(Overloaded):
        post(pool, "d")
    store.open()
    await asyncio.gather(*waiting)
    assert len(store.data.documents) == 3


async def test_a_request_past_its_deadline_is_never_executed(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, deadline_s=0.05)
    in_flight = post(pool, "a")
    await store.reached()
    waiting = post(pool, "b")
    answers = await gather_answers(in_flight, waiting)
    assert isinstance(answers[0], OutcomeUnknown)
    assert isinstance(answers[1], Expired)
    store.open()
    await post(pool, "c")
    assert sorted(each.post.username for each in store.data.documents.values()) == ["a", "c"]


async def test_a_deferred_read_past_its_deadline_claims_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, deadline_s=0.05)
    first = post(pool, "early")
    await store.reached()
    answers = await gather_answers(first, post(pool, "bob"), pool.read("bob"))
    assert isinstance(answers[2], Expired)
    assert store.calls["claim"] == 0
