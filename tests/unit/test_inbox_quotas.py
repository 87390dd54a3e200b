"""The quota of an inbox: which posts it refuses, how often it counts, and what it never loses."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tornado.ioloop import IOLoop

from tests.support.stores import GateStore, MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import SMALL_SLICES, WIDE_QUEUE
from workers.clock import DatabaseClock
from workers.commands import Key, Stored
from workers.errors import (
    Expired,
    InboxFull,
    KeyReused,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from workers.inbox_quotas import SHARE, QuotaLimits
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.store.base import InboxSize, Store

MakeQuotaPool = Callable[..., Awaitable[WorkerPool]]


@pytest.fixture
def make_pool(
    io_loop: IOLoop, clock: DatabaseClock, metrics: WorkerMetrics
) -> Iterator[MakeQuotaPool]:
    """Starts pools of one shard with a quota; stops them at the end."""
    pools: list[WorkerPool] = []

    async def make(
        store: Store, messages: int = 0, bytes_max: int = 0, deadline_s: float = 5.0
    ) -> WorkerPool:
        quotas = QuotaLimits(messages, bytes_max)
        limits = PoolLimits(1, WIDE_QUEUE, SMALL_SLICES, deadline_s, 10, quotas=quotas)
        pools.append(WorkerPool(store, clock, limits, metrics))
        await pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        io_loop.run_sync(pool.stop)


def refused(registry: CollectorRegistry, reason: str) -> float:
    """Return how many requests were refused for a reason."""
    value = registry.get_sample_value("chat_requests_refused_total", {"reason": reason})
    assert value is not None
    return value


async def post_until_full(pool: WorkerPool, at_once: int = 1, size: int = 1) -> int:
    """Post to bob until a post is refused. Return how many were stored."""
    stored = 0
    while True:
        posts = []
        for _ in range(at_once):
            try:
                posts.append(pool.post("bob", "x" * size, size, 60))
            except InboxFull:
                break
        outcomes = await asyncio.gather(*posts, return_exceptions=True)
        stored += sum(isinstance(each, str) for each in outcomes)
        if len(posts) < at_once or any(isinstance(each, InboxFull) for each in outcomes):
            return stored


@pytest.mark.parametrize("quota", [1, 2, 7, 16, 100])
@pytest.mark.parametrize("at_once", [1, 30])
async def test_an_inbox_exceeds_its_quota_by_an_eighth_at_most(
    make_pool: MakeQuotaPool, quota: int, at_once: int
) -> None:
    pool = await make_pool(MemoryStore(), quota)
    stored = await post_until_full(pool, at_once)
    assert quota <= stored <= quota - 1 + max(quota // SHARE, 1)


async def test_each_process_adds_an_eighth_at_most(make_pool: MakeQuotaPool) -> None:
    store = MemoryStore()
    pools = [await make_pool(store, 80) for _ in range(4)]
    stored = sum(await asyncio.gather(*(post_until_full(pool, 7) for pool in pools)))
    assert 80 <= stored <= 79 + 4 * 10


async def test_bytes_are_bounded_as_messages_are(make_pool: MakeQuotaPool) -> None:
    pool = await make_pool(MemoryStore(), bytes_max=8000)
    stored = await post_until_full(pool, at_once=5, size=100)
    assert 80 <= stored <= 80 + 10


async def test_a_text_longer_than_an_eighth_is_stored(make_pool: MakeQuotaPool) -> None:
    pool = await make_pool(MemoryStore(), bytes_max=100)
    assert await post_until_full(pool, size=90) == 2


async def test_posts_are_seldom_counted(make_pool: MakeQuotaPool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, 800)
    for _ in range(50):
        await asyncio.gather(*(pool.post("bob", "x", 1, 60) for _ in range(10)))
    # One for each sixteenth of the quota.
    assert store.calls["measure"] <= 500 / 50 + 1


async def test_another_inbox_has_room(make_pool: MakeQuotaPool) -> None:
    pool = await make_pool(MemoryStore(), 8)
    await post_until_full(pool)
    await pool.post("eve", "x", 1, 60)


async def test_an_inbox_that_was_read_has_room_again(
    make_pool: MakeQuotaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.inbox_quotas.RECOUNT_S", 0.05)
    pool = await make_pool(MemoryStore(), 8)
    await post_until_full(pool)
    await pool.read("bob")

    async def is_stored() -> bool:
        try:
            await pool.post("bob", "x", 1, 60)
        except InboxFull:
            return False
        return True

    await eventually(is_stored)


async def test_a_full_inbox_is_not_counted_for_each_post(make_pool: MakeQuotaPool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, 8)
    await post_until_full(pool)
    counted = store.calls["measure"]
    for _ in range(100):
        with pytest.raises(InboxFull):
            pool.post("bob", "x", 1, 60)
    assert store.calls["measure"] == counted


async def test_a_repeat_to_a_full_inbox_is_answered_as_before(
    make_pool: MakeQuotaPool, registry: CollectorRegistry
) -> None:
    pool = await make_pool(MemoryStore(), 4)
    first = await pool.post_keyed("bob", "x", 1, 60, Key("key", "body"))
    await post_until_full(pool)
    before = refused(registry, "inbox-full")
    assert await pool.post_keyed("bob", "x", 1, 60, Key("key", "body")) == Stored(first.id, True)
    with pytest.raises(KeyReused):
        await pool.post_keyed("bob", "y", 1, 60, Key("key", "another"))
    with pytest.raises(InboxFull):
        await pool.post_keyed("bob", "z", 1, 60, Key("a new key", "body"))
    assert refused(registry, "inbox-full") == before + 1


async def test_posts_that_wait_for_a_count_are_stored_in_order(make_pool: MakeQuotaPool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, 80)
    ids = await asyncio.gather(*(pool.post("bob", str(n), 1, 60) for n in range(60)))
    assert list(store.data.documents) == ids == sorted(ids)


async def test_a_post_that_waits_too_long_for_a_count_expires(
    make_pool: MakeQuotaPool, registry: CollectorRegistry
) -> None:
    class Slow(MemoryStore):
        async def measure_inbox(self, *_: Any) -> InboxSize:
            await asyncio.Event().wait()
            raise AssertionError

    store = Slow()
    pool = await make_pool(store, 8, deadline_s=0.1)
    await pool.post("bob", "x", 1, 60)
    held = pool.post("bob", "y", 1, 60)
    left = pool.post("bob", "z", 1, 60)
    left.cancel()
    with pytest.raises(Expired):
        await held
    assert len(store.data.documents) == 1
    # Nobody waited for the other one.
    assert refused(registry, "expired") == 1


async def test_few_posts_wait_for_counts_and_others_are_refused(
    make_pool: MakeQuotaPool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.inbox_quotas.HELD_MAX", 2)
    pool = await make_pool(MemoryStore(), 8)
    posts = [pool.post("bob", "x", 1, 60) for _ in range(3)]
    for _ in range(2):
        with pytest.raises(Overloaded):
            pool.post("bob", "x", 1, 60)
    assert refused(registry, "overloaded") == 2
    await asyncio.gather(*posts)


async def test_a_failed_count_fails_the_posts_that_wait(
    make_pool: MakeQuotaPool, registry: CollectorRegistry
) -> None:
    class Failing(MemoryStore):
        is_failing = True

        async def measure_inbox(self, *arguments: Any) -> InboxSize:
            if self.is_failing:
                raise StoreUnavailable("away")
            return await super().measure_inbox(*arguments)

    store = Failing()
    pool = await make_pool(store, 8)
    await pool.post("bob", "x", 1, 60)
    with pytest.raises(StoreUnavailable):
        await pool.post("bob", "y", 1, 60)
    assert refused(registry, "unavailable") == 1
    store.is_failing = False
    await pool.post("bob", "z", 1, 60)


async def test_a_pool_that_stops_answers_posts_that_wait(make_pool: MakeQuotaPool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, 8)
    in_flight = pool.post("bob", "x", 1, 60)
    held = pool.post("bob", "y", 1, 60)
    await store.reached()
    await pool.stop()
    outcomes = await asyncio.gather(in_flight, held, return_exceptions=True)
    assert isinstance(outcomes[0], OutcomeUnknown)
    assert isinstance(outcomes[1], Exception)


async def test_the_inboxes_that_are_remembered_are_bounded(
    make_pool: MakeQuotaPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.inbox_quotas.INBOXES_MAX", 5)
    pool = await make_pool(MemoryStore(), 8)
    for number in range(20):
        await pool.post(f"user-{number}", "x", 1, 60)
    assert pool._quotas is not None
    assert list(pool._quotas._tallies) == [f"user-{number}" for number in range(15, 20)]
