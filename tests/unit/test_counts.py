"""Counts of unread messages: they share searches, are bounded, and delay no other request."""

import asyncio

import pytest

from tests.support.pools import post, texts
from tests.support.stores import GateStore
from tests.unit.conftest import MakePool
from workers.errors import Expired, OutcomeUnknown, Overloaded, StoreUnavailable


async def test_a_slow_count_delays_no_other_request(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    count = pool.count("full")
    await store.reached()
    for number in range(3):
        await post(pool, "bob")
        assert texts(await pool.read("bob")) == ["x"]
        assert not count.done()
        pool.count(f"another-{number}")
    store.open()
    assert await count == 0


async def test_counts_of_one_inbox_share_one_search(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    await post(pool, "bob")
    counts = [pool.count("bob") for _ in range(50)]
    await post(pool, "eve")
    store.open()
    assert await asyncio.gather(*counts) == [1] * 50
    assert await first == 0
    assert store.calls["count"] <= 3


async def test_waiting_counts_are_bounded(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.shard.COUNTS_MAX", 5)
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    counts = [pool.count(f"user-{number}") for number in range(8)]
    refused = await asyncio.gather(*counts[5:], return_exceptions=True)
    assert [type(each) for each in refused] == [Overloaded] * 3
    store.open()
    assert await asyncio.gather(first, *counts[:5]) == [0] * 6


async def test_a_count_past_its_deadline_is_answered(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store, deadline_s=0.2)
    first = pool.count("early")
    await store.reached()
    waiting = pool.count("bob")
    outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [OutcomeUnknown, Expired]


async def test_a_pool_that_stops_answers_its_counts(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    waiting = pool.count("bob")
    await asyncio.sleep(0.05)
    await pool.stop()
    outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
    assert all(isinstance(each, StoreUnavailable) for each in outcomes)
