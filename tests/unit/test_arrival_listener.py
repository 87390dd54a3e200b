"""The change stream reports the inboxes that are waited for, at the price of few openings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from tests.faults.simulated_replica_set import VirtualLoop
from tests.support.pools import texts
from tests.support.stores import GateStore, MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import SMALL_SLICES, WIDE_QUEUE, MakePool
from tests.unit.test_waiters import message, waiting
from workers import arrival_listener, watched_inboxes
from workers.clock import DatabaseClock
from workers.errors import StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.store.base import Arrivals


@dataclass
class SearchedStore(MemoryStore):
    """Notes the inboxes of each search for waiters."""

    searched: list[Sequence[str]] = field(default_factory=list)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        self.searched.append(usernames)
        return await super().count_unread(usernames, now_ms)


@pytest.fixture
def run(
    clock: DatabaseClock, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[WorkerPool], Awaitable[None]]], SearchedStore]:
    """Runs a scenario with a pool on a virtual clock, and returns the pool's store."""
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))

    def run_scenario(scenario: Callable[[WorkerPool], Awaitable[None]]) -> SearchedStore:
        store, loop = SearchedStore(), VirtualLoop()

        async def main() -> None:
            limits = PoolLimits(1, WIDE_QUEUE, SMALL_SLICES, 5.0, 1000)
            pool = WorkerPool(store, clock, limits, metrics)
            await pool.start()
            await asyncio.sleep(1)
            await scenario(pool)
            await pool.stop()

        loop.run_until_complete(main())
        loop.close()
        return store

    return run_scenario


Run = Callable[[Callable[[WorkerPool], Awaitable[None]]], SearchedStore]


def test_a_new_inbox_is_watched_at_once_and_more_together(run: Run) -> None:
    opened_after: list[float] = []

    async def scenario(pool: WorkerPool) -> None:
        loop = asyncio.get_running_loop()
        store = pool._store
        assert isinstance(store, SearchedStore)
        reads = [pool.read("ann", wait_s=20)]
        await asyncio.sleep(1)
        began = loop.time()
        for number in range(30):
            reads.append(pool.read(f"user-{number}", wait_s=20))
            await asyncio.sleep(0.01)
            if len(store.watched) > 1 and not opened_after:
                opened_after.append(loop.time() - began)
        await asyncio.sleep(1)
        pool.end_waits()
        await asyncio.gather(*reads)

    store = run(scenario)
    assert opened_after == [pytest.approx(0.01)]
    sizes = [len(names or ()) for names in store.watched]
    assert sizes == [1, 2, pytest.approx(21, abs=1), 31]


def test_only_new_inboxes_are_searched(run: Run) -> None:
    async def scenario(pool: WorkerPool) -> None:
        reads = []
        for name in ("ann", "bob", "cy"):
            reads.append(pool.read(name, wait_s=20))
            await asyncio.sleep(1)
        pool.end_waits()
        await asyncio.gather(*reads)

    store = run(scenario)
    # The first search is the periodic one, which has no stream to rely on yet.
    assert store.searched == [["ann"], ["ann"], ["bob"], ["cy"]]


def test_polling_the_same_inbox_again_opens_nothing(run: Run) -> None:
    async def scenario(pool: WorkerPool) -> None:
        for number in range(100):
            await pool.read("bob", wait_s=0.3)
            await asyncio.sleep(number % 10 / 2)

    assert run(scenario).watched == [["bob"]]


def test_an_inbox_without_waiters_is_dropped_later(run: Run) -> None:
    async def scenario(pool: WorkerPool) -> None:
        ann = pool.read("ann", wait_s=100)
        await pool.read("bob", wait_s=2)
        await asyncio.sleep(5)
        assert len(pool._store.watched) <= 2  # type: ignore[attr-defined]
        await ann

    store = run(scenario)
    assert [{*(names or ())} for names in store.watched][-2:] == [{"ann", "bob"}, {"ann"}]


def test_an_inbox_that_nobody_waits_for_any_more_opens_nothing(run: Run) -> None:
    async def scenario(pool: WorkerPool) -> None:
        ann = pool.read("ann", wait_s=20)
        await asyncio.sleep(0.05)
        # It comes and goes before another stream may be opened.
        await pool.read("bob", wait_s=0.05)
        await ann

    assert run(scenario).watched == [["ann"]]


def test_a_stream_for_very_many_inboxes_reports_all(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_inboxes, "INBOXES_MAX", 4)

    async def scenario(pool: WorkerPool) -> None:
        reads = []
        for number in range(8):
            reads.append(pool.read(f"user-{number}", wait_s=30 if number < 2 else 10))
            await asyncio.sleep(0.3)
        assert pool._store.watched[-1] is None  # type: ignore[attr-defined]
        await asyncio.gather(*reads)

    store = run(scenario)
    assert [names and len(names) for names in store.watched] == [1, 2, 3, 4, None, 2]


async def test_what_arrived_before_the_stream_began_is_found(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = GateStore(shut={"arrivals"})
    pool = await make_pool(store)
    read = pool.read("bob", wait_s=20)
    await store.reached()
    await waiting(store)
    await store.insert([message(1)])
    store.open()
    assert texts(await read) == ["1"]


async def test_an_inbox_that_is_new_during_an_opening_is_searched(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = GateStore(shut={"arrivals"})
    pool = await make_pool(store)
    reads = [pool.read("ann", wait_s=20)]
    await store.reached()
    await waiting(store)
    searches = store.calls["find"]
    reads.append(pool.read("bob", wait_s=20))

    async def waits() -> bool:
        return store.calls["find"] > searches and pool._waiters.count == 2

    await eventually(waits)
    await store.insert([message(1, "bob")])
    store.open()
    assert texts(await reads[1]) == ["1"]
    assert [{*(names or ())} for names in store.watched] == [{"ann"}, {"ann", "bob"}]
    pool.end_waits()
    await reads[0]


async def test_the_old_stream_wakes_while_the_next_one_is_opened(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = GateStore()
    pool = await make_pool(store)
    ann = pool.read("ann", wait_s=20)

    async def is_open() -> bool:
        return len(store.streams) == 1

    await eventually(is_open)
    store.shut.add("arrivals")
    bob = pool.read("bob", wait_s=20)
    await store.reached()
    await store.insert([message(1, "ann")])
    store.told.put_nowait({"ann"})
    assert texts(await ann) == ["1"]
    store.open()
    await store.insert([message(2, "bob")])
    store.told.put_nowait({"bob"})
    assert texts(await bob) == ["2"]
    assert len(store.streams) == 1, "the old one is closed"


async def test_after_a_stream_breaks_all_waiters_search(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = MemoryStore()
    pool = await make_pool(store)
    read = pool.read("bob", wait_s=20)

    async def is_open() -> bool:
        return len(store.streams) == 1

    await eventually(is_open)
    await waiting(store)

    async def break_off() -> Arrivals | None:
        raise StoreUnavailable("the stream broke")

    monkeypatch.setattr(store.streams[0], "next", break_off)
    await store.insert([message(1)])
    store.told.put_nowait({"eve"})
    assert texts(await read) == ["1"]
    assert len(store.watched) == 2
