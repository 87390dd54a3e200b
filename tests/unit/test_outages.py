"""A pool without its database: what opens the circuit breaker, and what is unknown then."""

import asyncio
import math

import pytest
from prometheus_client import CollectorRegistry

from tests.support.pools import post
from tests.support.stores import FailingStore, MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers.errors import OutcomeUnknown, StoreUnavailable


async def test_one_failed_read_does_not_open_the_breaker(make_pool: MakePool) -> None:
    store = FailingStore(failures={"find": StoreUnavailable("interrupted")})
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable, match="interrupted"):
        await pool.read("bob")
    await post(pool, "bob")


async def test_occasional_failures_do_not_open_the_breaker(make_pool: MakePool) -> None:
    store = FailingStore()
    pool = await make_pool(store)
    for _ in range(5):
        store.failures["find"] = OutcomeUnknown("interrupted")
        with pytest.raises(OutcomeUnknown, match="interrupted"):
            await pool.read("bob")
        store.failures.clear()
        await pool.read("bob")


async def test_requests_are_refused_while_the_database_is_unavailable(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = FailingStore(failures={"find": StoreUnavailable("no primary", is_unavailable=True)})
    store.away = True
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable, match="no primary"):
        await pool.read("bob")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="is unavailable"):
            pool.read("bob")
    assert store.calls["find"] == 0
    assert registry.get_sample_value("chat_database_away") == 1
    store.failures.clear()
    store.away = False

    async def is_back() -> bool:
        return registry.get_sample_value("chat_database_away") == 0

    await eventually(is_back)
    await post(pool, "bob")
    assert len((await pool.read("bob")).messages) == 1


async def test_pending_messages_are_unknown_until_counted(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No periodic count comes: only the end of the outage can start one.
    monkeypatch.setattr("workers.pending.PENDING_EVERY_S", 1000.0)
    store = FailingStore()
    pool = await make_pool(store)
    await post(pool, "bob")
    store.failures["find"] = StoreUnavailable("no primary", is_unavailable=True)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await pool.read("bob")
    pending = registry.get_sample_value("chat_messages_pending")
    assert pending is not None
    assert math.isnan(pending)
    store.failures.clear()
    store.away = False

    async def is_counted() -> bool:
        return registry.get_sample_value("chat_messages_pending") == 1

    await eventually(is_counted)


async def test_a_count_from_before_an_outage_is_cancelled(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count hangs on a dead connection."""
    never = asyncio.Event()
    calls = 0

    async def count_pending() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            await never.wait()
        return 7

    monkeypatch.setattr("workers.pool._FIRST_COUNT_S", 0.01)
    monkeypatch.setattr("workers.pending.PENDING_EVERY_S", 1000.0)
    store = FailingStore(failures={"find": StoreUnavailable("no primary", is_unavailable=True)})
    store.away = True
    monkeypatch.setattr(store, "count_pending", count_pending)
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable):
        await pool.read("bob")
    store.failures.clear()
    store.away = False

    async def is_counted() -> bool:
        return registry.get_sample_value("chat_messages_pending") == 7

    await eventually(is_counted)


async def test_a_probe_is_repeated_after_a_blocked_loop(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(away=True)
    pool = await make_pool(store)
    blocked = [True, False]
    lag = pool._breaker.lag
    monkeypatch.setattr(type(lag), "was_blocked_since", lambda *_: blocked.pop(0))
    assert not await pool.database_answers()
    assert blocked == [], "the first failure says nothing about the database"
