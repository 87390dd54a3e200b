"""One node leads, does the leader's work and publishes; the others follow, and stop in time."""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from tests.support.stores import MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers import leadership, maintenance
from workers.clock import DatabaseClock
from workers.errors import StoreUnavailable
from workers.pool import WorkerPool
from workers.store.base import LEADER_LEASE_S, Ended, Leader, PendingCount


@dataclass
class FleetStore(MemoryStore):
    """Counts the work of a leader. The lease is that of `leader`, or its own."""

    work: Counter[str] = field(default_factory=Counter)
    has_lease_store: bool = True

    async def lead(self, pending: PendingCount | None) -> Leader:
        self.work["look"] += 1
        if not self.has_lease_store:
            raise StoreUnavailable("no primary")
        return await super().lead(pending)

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        self.work["all expired" if leads else "own expired"] += 1
        return 0

    async def end_leases(self, now_ms: int) -> Ended:
        self.work["leases"] += 1
        return Ended((), 0, 0)

    async def retire(self, now_ms: int) -> None:
        self.work["retire"] += 1

    async def forget_nodes(self, now_ms: int) -> None:
        self.work["forget"] += 1

    async def count_pending(self) -> int:
        self.work["count"] += 1
        return 7


@dataclass
class SoleStore(FleetStore):
    """The store of a process that has the database alone.

    A sweep of leases waits for `is_swept`, and finds that the first one ends at `first_ms`.
    """

    first_ms: int | None = None
    swept_ms: int = 0
    is_swept: asyncio.Event = field(default_factory=asyncio.Event)

    async def lead(self, pending: PendingCount | None) -> Leader:
        return (await super().lead(pending))._replace(is_sole=True)

    async def end_leases(self, now_ms: int) -> Ended:
        await super().end_leases(now_ms)
        self.swept_ms = now_ms
        await self.is_swept.wait()
        return Ended((), 0, 0, self.first_ms)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the jobs often."""
    for name in ("EXPIRE_EVERY_S", "RETIRE_EVERY_S", "LOOK_PAUSE_S", "FORGET_EVERY_S"):
        monkeypatch.setattr(maintenance, name, 0.01)
    monkeypatch.setattr(maintenance, "LEASES_EVERY_S", (0.01, 0.01))
    monkeypatch.setattr(leadership, "LOOK_EVERY_S", leadership.LOOK_PAUSE_S + 0.02)
    monkeypatch.setattr(leadership, "_SPREAD_S", 0.0)


@pytest.fixture
def sole(monkeypatch: pytest.MonkeyPatch) -> SoleStore:
    """A store of a process that does nothing by itself as long as there are no requests."""
    monkeypatch.setattr(maintenance, "QUIET_EVERY_S", 1000.0)
    monkeypatch.setattr(leadership, "SOLE_EVERY_S", 1000.0)
    store = SoleStore()
    store.is_swept.set()
    return store


async def has_looked(store: FleetStore) -> None:
    """Wait for several more looks at the lease."""
    seen = store.work["look"]

    async def is_done() -> bool:
        return store.work["look"] > seen + 3

    await eventually(is_done)


def pending_of(registry: CollectorRegistry) -> float:
    """Return the number of pending messages in the metrics."""
    value = registry.get_sample_value("chat_messages_pending")
    assert value is not None
    return value


def is_leader(pool: WorkerPool, registry: CollectorRegistry) -> float | None:
    """Return the metric that says whether this node leads."""
    pool.sample()
    return registry.get_sample_value("chat_leader")


async def test_a_leader_works_for_all_nodes(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = FleetStore()
    pool = await make_pool(store)
    done = {"look", "all expired", "leases", "retire", "forget", "count"}

    async def is_done() -> bool:
        # It publishes its count when it renews its lease.
        return done <= store.work.keys() and store.published.messages is not None

    await eventually(is_done)
    assert (is_leader(pool, registry), pool.leader) == (1, "this")
    assert store.published.messages == pending_of(registry) == 7


async def test_a_follower_leaves_that_work_to_the_leader(
    make_pool: MakePool, registry: CollectorRegistry, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    store = FleetStore(leader="another", published=PendingCount(41, now_ms, now_ms + 60_000))
    pool = await make_pool(store)
    assert pending_of(registry) == 41, "the first look has the count"
    await has_looked(store)
    assert store.work.keys() == {"look", "own expired"}
    assert (is_leader(pool, registry), pool.leader) == (0, "another")


@pytest.mark.parametrize("age_s", [-60, 0.01])
async def test_a_count_that_is_too_old_is_no_figure(
    make_pool: MakePool, registry: CollectorRegistry, clock: DatabaseClock, age_s: float
) -> None:
    now_ms = clock.now_ms()
    until_ms = now_ms - int(age_s * 1000)
    store = FleetStore(leader="another", published=PendingCount(41, now_ms - 90_000, until_ms))
    await make_pool(store)
    await has_looked(store)
    assert math.isnan(pending_of(registry)) == (age_s > 0)


async def test_a_start_does_not_wait_for_another_nodes_count(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    monkeypatch.setattr("workers.pool._FIRST_COUNT_S", 60.0)
    await make_pool(FleetStore(leader="another"))
    assert math.isnan(pending_of(registry))


async def test_a_follower_takes_over_and_a_leader_steps_back(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = FleetStore(leader="another")
    pool = await make_pool(store)
    await has_looked(store)
    store.leader = ""
    await has_looked(store)
    assert is_leader(pool, registry) == 1
    assert pending_of(registry) == 7
    store.leader = "another"
    await has_looked(store)
    assert is_leader(pool, registry) == 0
    done = store.work.copy()
    await has_looked(store)
    assert (store.work - done).keys() == {"look", "own expired"}


async def test_a_leader_that_cannot_renew_stops_by_itself(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a pause, or while it does not reach the database: another may lead by now."""
    store = FleetStore()
    pool = await make_pool(store)
    store.has_lease_store = False
    await has_looked(store)
    assert is_leader(pool, registry) == 1, "it still has the lease"
    clock = pool._clock
    steady_s = clock.steady_s() + LEADER_LEASE_S
    monkeypatch.setattr(clock, "steady_s", lambda: steady_s)
    assert is_leader(pool, registry) == 0
    await has_looked(store)
    done = store.work.copy()
    await has_looked(store)
    assert (store.work - done).keys() == {"look", "own expired"}
    store.has_lease_store = True
    await has_looked(store)
    assert is_leader(pool, registry) == 1


async def test_a_leader_that_stops_gives_the_lease_up(make_pool: MakePool) -> None:
    leader, follower = FleetStore(), FleetStore(leader="another")
    pools = [await make_pool(leader), await make_pool(follower)]
    for pool in pools:
        await pool.stop()
    assert (leader.calls["resign"], follower.calls["resign"]) == (1, 0)


async def test_a_stop_does_not_need_the_database(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StoreUnavailable("no primary")

    store = FleetStore()
    monkeypatch.setattr(store, "resign", fail)
    pool = await make_pool(store)
    await pool.stop()
    assert not pool.is_alive


async def test_a_failed_count_is_published_as_unknown(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> int:
        raise StoreUnavailable("it took too long")

    store = FleetStore()
    monkeypatch.setattr("workers.pool._FIRST_COUNT_S", 0.01)
    monkeypatch.setattr(store, "count_pending", fail)
    await make_pool(store)
    await has_looked(store)
    assert store.published.messages is None
    assert math.isnan(pending_of(registry))


async def test_a_late_look_is_due_when_anothers_lease_ends(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower does not wait two seconds more for a leader that is dead."""
    monkeypatch.setattr(leadership, "LOOK_EVERY_S", 1000.0)
    store = FleetStore(leader="another")

    async def lead(pending: PendingCount | None) -> Leader:
        store.work["look"] += 1
        return (await MemoryStore.lead(store, pending))._replace(until_ms=0)

    monkeypatch.setattr(store, "lead", lead)
    pool = await make_pool(store)
    assert pool.leader == "", "a lease that is over names nobody"
    await has_looked(store)


async def test_the_work_goes_on_if_leading_begins_late(make_pool: MakePool) -> None:
    store = FleetStore(leader="another")
    await make_pool(store)
    await asyncio.sleep(0.1)
    store.leader = ""

    async def is_done() -> bool:
        return {"leases", "retire", "count"} <= store.work.keys()

    await eventually(is_done)


async def sweeps_rest(store: SoleStore) -> None:
    """Wait until leases were not swept for twenty times as long as the usual pause."""
    seen: list[int] = []

    async def is_seen() -> bool:
        seen.append(store.work["leases"])
        return len(seen) > 20 and seen[-20] == seen[-1]

    await eventually(is_seen)


async def has_swept(store: FleetStore, more: int = 1) -> None:
    """Wait for more sweeps of leases."""
    seen = store.work["leases"]

    async def is_done() -> bool:
        return store.work["leases"] >= seen + more

    await eventually(is_done)


async def test_an_idle_sole_process_asks_its_database_little(
    make_pool: MakePool, sole: SoleStore
) -> None:
    await make_pool(sole)
    await sweeps_rest(sole)
    other = FleetStore()
    await make_pool(other)
    before = sole.work.copy()
    await has_swept(other, 20)
    assert other.work["all expired"] > 10
    assert (sole.work - before).keys() <= {"retire", "forget", "count"}
    assert sole.work["look"] == 1


async def test_a_request_makes_a_sole_process_sweep_as_usual(
    make_pool: MakePool, sole: SoleStore
) -> None:
    pool = await make_pool(sole)
    await sweeps_rest(sole)
    before = sole.work.copy()
    await pool.post("bob", "x", 1, 60)

    async def has_expired() -> bool:
        return sole.work["all expired"] > before["all expired"]

    await has_swept(sole)
    await eventually(has_expired)


async def test_a_quiet_process_sweeps_at_the_end_of_a_lease(
    make_pool: MakePool, sole: SoleStore, clock: DatabaseClock
) -> None:
    pool = await make_pool(sole)
    await sweeps_rest(sole)
    first_ms = sole.first_ms = clock.now_ms() + 500
    await pool.post("bob", "makes it look", 13, 60)

    async def is_swept() -> bool:
        return sole.swept_ms > first_ms

    await eventually(is_swept)


async def test_a_lease_that_is_given_during_a_sweep_is_not_missed(
    make_pool: MakePool, sole: SoleStore
) -> None:
    pool = await make_pool(sole)
    await sweeps_rest(sole)
    sole.is_swept.clear()
    await pool.post("bob", "makes it look", 13, 60)
    await has_swept(sole)
    await rests(pool)
    await pool.post("bob", "comes during the sweep", 22, 60)
    await rests(pool)
    swept = sole.work["leases"]
    sole.is_swept.set()

    async def is_repeated() -> bool:
        return sole.work["leases"] > swept

    await eventually(is_repeated)


async def rests(pool: WorkerPool) -> None:
    """Wait until no request is open."""

    async def is_at_rest() -> bool:
        return pool._maintenance.rests and not pool._maintenance._has_work.is_set()

    await eventually(is_at_rest)
