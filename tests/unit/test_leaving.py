"""Clients that leave the pool early: what they asked for is not done, or is undone."""

import asyncio

from prometheus_client import CollectorRegistry

from tests.support.pools import post, texts
from tests.support.stores import GateStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool


async def test_a_post_cancelled_in_its_queue_stores_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "early")
    await store.reached()
    given_up = post(pool, "bob")
    given_up.cancel()
    store.open()
    await first
    assert texts(await pool.read("bob")) == []
    assert len(store.data.documents) == 1


async def test_a_read_waits_for_a_post_that_its_client_left(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    left = post(pool, "bob", "1")
    await store.reached()
    left.cancel()
    read = pool.read("bob")
    await asyncio.sleep(0)
    store.open()
    assert texts(await read) == ["1"]


async def test_a_reader_that_left_before_the_claim_consumes_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"find"})
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.open()
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


async def test_a_claim_for_a_reader_that_left_is_rolled_back(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = GateStore(shut={"claim"})
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.open()

    async def is_released() -> bool:
        return registry.get_sample_value("chat_messages_released_total") == 1

    await eventually(is_released)
    assert registry.get_sample_value("chat_messages_read_total") == 0
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


async def test_a_drain_waits_for_a_running_rollback(make_pool: MakePool) -> None:
    store = GateStore(shut={"claim"})
    pool = await make_pool(store)
    await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.shut.add("unclaim")
    store.shut.discard("claim")
    store.open_once()
    await store.reached()
    draining = asyncio.create_task(pool.drain(5))
    await asyncio.sleep(0.05)
    store.open()
    assert await draining
    assert store.calls["unclaim"] == 1
    assert not any(each.token for each in store.data.documents.values())
