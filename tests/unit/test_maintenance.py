"""Maintenance survives every error of the store, and reports no figure that it does not know."""

import asyncio
import math
import time
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from tests.support.stores import MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import SMALL_SLICES, WIDE_QUEUE, MakePool
from workers import arrival_listener, clock, maintenance, pending, watched_inboxes
from workers.clock import DatabaseClock
from workers.errors import StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.store.base import Ended


@dataclass
class BrokenStore(MemoryStore):
    """Raises an error from the first sweeps and counts."""

    error: BaseException | None = None
    sweeps: int = 0

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        self.sweeps += 1
        if self.error is not None:
            raise self.error
        return 0

    async def count_pending(self) -> int:
        if self.error is not None:
            raise self.error
        return await super().count_pending()


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("no primary"), ZeroDivisionError("a bug"), asyncio.CancelledError()],
    ids=["no primary", "a bug", "a cancellation out of a library"],
)
async def test_a_job_that_fails_runs_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(maintenance, "EXPIRE_EVERY_S", 0.01)
    store = BrokenStore(error=error)
    await make_pool(store)

    async def has_run_again() -> bool:
        return store.sweeps > 2

    await eventually(has_run_again)


async def test_sweeps_end_with_the_leader_lease(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sweeps = MemoryStore(), 0

    async def sweep(now_ms: int) -> Ended:
        nonlocal sweeps
        sweeps += 1
        await asyncio.sleep(0)
        return Ended((), 1, 0, now_ms, more=True)

    monkeypatch.setattr(store, "end_leases", sweep)
    pool = await make_pool(store)

    async def follow_one_another() -> bool:
        return sweeps > 10

    await eventually(follow_one_another)
    store.leader = "another"
    await pool._maintenance.leadership.look()
    await asyncio.sleep(0.01)
    swept = sweeps
    await asyncio.sleep(0.3)
    assert sweeps == swept


async def test_a_pool_without_requests_checks_no_deadlines(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await make_pool(MemoryStore())
    shard, checks = pool._shards[0], 0
    expire = shard.expire

    def count(now: float) -> None:
        nonlocal checks
        checks += 1
        expire(now)

    monkeypatch.setattr(shard, "expire", count)

    async def rests() -> bool:
        return pool._maintenance.rests

    await eventually(rests)
    checks = 0
    await asyncio.sleep(0.5)
    assert checks <= 1
    await pool.post("bob", "x", 1, 60)
    await asyncio.sleep(0)
    assert checks, "a request begins the checks again"
    await eventually(rests)


async def test_the_loop_is_watched_while_the_database_is_asked(make_pool: MakePool) -> None:
    class SlowStore(MemoryStore):
        async def ping(self) -> None:
            await asyncio.sleep(0.2)

    pool = await make_pool(SlowStore())

    async def rests() -> bool:
        return pool._maintenance.rests

    await eventually(rests)
    asking = asyncio.create_task(pool.database_answers())
    await asyncio.sleep(0.1)
    assert not pool._maintenance.rests
    assert await asking
    await eventually(rests)


async def test_pending_messages_are_unknown_after_a_failed_count(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(pending, "PENDING_EVERY_S", 0.01)
    store = BrokenStore(error=StoreUnavailable("no primary"))
    pool = await make_pool(store)
    await pool.post("bob", "x", 1, 60)

    async def is_unknown() -> bool:
        value = registry.get_sample_value("chat_messages_pending")
        return value is not None and math.isnan(value)

    await eventually(is_unknown)
    store.error = None

    async def is_known() -> bool:
        return registry.get_sample_value("chat_messages_pending") == 1

    await eventually(is_known)


async def test_an_unused_change_stream_is_closed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_inboxes, "KEEP_S", 0.1)
    monkeypatch.setattr(arrival_listener, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(maintenance, "PROBE_EVERY_S", 0.01)
    store = MemoryStore()
    pool = await make_pool(store)
    assert not store.watched, "nobody waits"
    read = pool.read("bob", wait_s=20)

    async def is_open() -> bool:
        return len(store.streams) == 1

    await eventually(is_open)
    await pool.post("bob", "x", 1, 60)
    await read

    async def is_closed() -> bool:
        return not store.streams

    await eventually(is_closed)
    assert store.watched == [["bob"]]


async def test_a_pool_that_never_started_is_drained(
    clock: DatabaseClock, metrics: WorkerMetrics
) -> None:
    limits = PoolLimits(1, WIDE_QUEUE, SMALL_SLICES, 5.0, 10)
    pool = WorkerPool(MemoryStore(), clock, limits, metrics)
    assert await pool.drain(0.1)
    assert not pool.is_alive


@pytest.mark.parametrize("error", [AttributeError("no such clock"), OSError("refused")])
def test_a_system_without_a_boot_clock_has_a_steady_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def absent() -> float:
        raise error

    monkeypatch.setattr(clock, "_read_boot_time", absent)
    assert clock._find_steady() is time.monotonic
