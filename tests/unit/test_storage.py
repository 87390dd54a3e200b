"""The reserve of the disk: when posts are refused, and when they are accepted again."""

import asyncio

import pytest

from workers import storage
from workers.errors import StorageFull
from workers.metrics import WorkerMetrics
from workers.storage import StorageLimits, StorageReserve
from workers.store.base import Storage

MIB = 1 << 20


@pytest.fixture
def reserve(metrics: WorkerMetrics) -> StorageReserve:
    """Return a reserve of 100 MiB, or a fifth of a smaller disk."""
    return StorageReserve(StorageLimits(100 * MIB, 0.2), metrics)


def disk(free_mib: int, reusable_mib: int = 0, total_mib: int = 10_000) -> Storage:
    return Storage(total_mib * MIB, free_mib * MIB, reusable_mib * MIB)


def is_refused(reserve: StorageReserve, size: int = 1) -> bool:
    try:
        reserve.admit(size)
    except StorageFull:
        return True
    return False


def test_no_post_is_refused_before_the_disk_is_measured(reserve: StorageReserve) -> None:
    assert not is_refused(reserve, 1 << 40)
    reserve.observe(None)
    assert not is_refused(reserve, 1 << 40)


def test_posts_are_refused_below_the_reserve(reserve: StorageReserve) -> None:
    reserve.observe(disk(101))
    assert not is_refused(reserve)
    reserve.observe(disk(99))
    assert is_refused(reserve)


def test_posts_are_accepted_again_above_the_reserve(reserve: StorageReserve) -> None:
    reserve.observe(disk(99))
    reserve.observe(disk(105))
    assert is_refused(reserve)
    reserve.observe(disk(111))
    assert not is_refused(reserve)


def test_reusable_space_in_the_databases_files_counts(reserve: StorageReserve) -> None:
    reserve.observe(disk(50, reusable_mib=60))
    assert not is_refused(reserve)
    # But not alone: the journal needs free space on the disk itself.
    reserve.observe(disk(24, reusable_mib=9_000))
    assert is_refused(reserve)


def test_a_small_disk_has_a_small_reserve(reserve: StorageReserve) -> None:
    reserve.observe(disk(70, total_mib=300))
    assert not is_refused(reserve)
    reserve.observe(disk(59, total_mib=300))
    assert is_refused(reserve)


def test_posts_between_two_measurements_stay_within_the_limit(reserve: StorageReserve) -> None:
    reserve.observe(disk(130))
    taken = 0
    while not is_refused(reserve, MIB):
        taken += 1
    assert 0 < taken <= 30
    # The next measurement shows that they used less.
    reserve.observe(disk(120))
    assert not is_refused(reserve)


def test_without_a_reserve_no_post_is_refused(metrics: WorkerMetrics) -> None:
    reserve = StorageReserve(StorageLimits(0), metrics)
    reserve.observe(disk(0))
    assert not is_refused(reserve, 1 << 40)
    assert metrics.storage_free._value.get() == 0


async def test_many_posts_trigger_a_measurement(reserve: StorageReserve) -> None:
    reserve.observe(disk(1000))
    for _ in range(200):
        reserve.admit(MIB)
    await reserve.wait_until_due()
    assert reserve.is_due


def used(used_mib: int) -> Storage:
    return Storage(0, 0, 0, used_mib * MIB)


def test_posts_are_refused_above_the_limit(metrics: WorkerMetrics) -> None:
    capped = StorageReserve(StorageLimits(used_max_bytes=100 * MIB), metrics)
    capped.observe(used(99))
    assert not is_refused(capped)
    capped.observe(used(101))
    assert is_refused(capped)
    capped.observe(used(95))
    assert is_refused(capped)
    capped.observe(used(89))
    assert not is_refused(capped)
    assert metrics.storage_used._value.get() == 89 * MIB


def test_the_reserve_holds_below_the_limit_too(metrics: WorkerMetrics) -> None:
    both = StorageReserve(StorageLimits(100 * MIB, 1.0, 5000 * MIB), metrics)
    both.observe(disk(99))
    assert is_refused(both)


async def test_the_disk_is_measured_seldom_while_nobody_posts(
    reserve: StorageReserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MEASURE_EVERY_S", (0.0, 0.0))
    reserve.observe(disk(5000))
    waiting = asyncio.create_task(reserve.wait_until_due())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    reserve.admit(1)
    await asyncio.wait_for(waiting, 5)
    # While there are posts, and while they are refused, it is due soon again.
    reserve.observe(disk(5000))
    reserve.admit(1)
    await asyncio.wait_for(reserve.wait_until_due(), 5)
    reserve.observe(disk(50))
    await asyncio.wait_for(reserve.wait_until_due(), 5)
