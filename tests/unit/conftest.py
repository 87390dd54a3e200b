"""Fixtures for an engine on a small store, without HTTP or MongoDB."""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, settings
from tornado.ioloop import IOLoop

from workers.clock import DatabaseClock
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits
from workers.store.base import Store

# On a busy machine a single example may take long, which says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

MakePool: TypeAlias = Callable[..., Awaitable[WorkerPool]]

WIDE_QUEUE = QueueLimits(1000, 1 << 20, 1000)
SMALL_SLICES = ShardLimits(100, 1 << 20, 50, 5.0)


@pytest.fixture
def make_pool(io_loop: IOLoop, clock: DatabaseClock, metrics: WorkerMetrics) -> Iterator[MakePool]:
    """Starts pools, by default with one shard. Stops them at the end."""
    pools: list[WorkerPool] = []

    async def make(
        store: Store,
        *,
        shards: int = 1,
        queue: QueueLimits = WIDE_QUEUE,
        batch: ShardLimits = SMALL_SLICES,
        deadline_s: float = 5.0,
        waiters: int = 1000,
    ) -> WorkerPool:
        limits = PoolLimits(shards, queue, batch, deadline_s, waiters)
        pool = WorkerPool(store, clock, limits, metrics)
        pools.append(pool)
        await pool.start()
        return pool

    yield make
    for pool in pools:
        io_loop.run_sync(pool.stop)
