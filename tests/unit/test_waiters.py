"""Long polls in the pool: every kind of arrival wakes them, and none is forgotten."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from tests.support.pools import texts
from tests.support.stores import GateStore, MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers import arrival_listener
from workers.commands import Lease as Terms
from workers.commands import Post, Read, Release, Slice, Track, delivery
from workers.errors import Overloaded, ServiceError, StoreUnavailable
from workers.store.base import ArrivalStream
from workers.waiters import Waiters
from workers.work_item import WorkItem


def message(number: int, username: str = "bob") -> Post:
    """A message that another node stores."""
    return Post(f"{number:032x}", username, str(number), 1, 0, 1 << 60)


@dataclass
class DeafStore(MemoryStore):
    """A database without change streams."""

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        raise StoreUnavailable("no change streams")


async def waiting(store: MemoryStore) -> None:
    """Wait until a search has found nothing and its read waits."""

    async def searched() -> bool:
        return store.calls["find"] > 0

    await eventually(searched)
    await asyncio.sleep(0.02)


async def test_the_database_reports_messages_of_other_processes(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = MemoryStore()
    pool = await make_pool(store)
    read = pool.read("bob", wait_s=20)
    await waiting(store)
    await store.insert([message(1)])
    store.told.put_nowait({"eve"})
    store.told.put_nowait({"bob"})
    assert texts(await read) == ["1"]


async def test_without_a_change_stream_waiters_search_periodically(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 0.05))
    store = DeafStore()
    pool = await make_pool(store)
    reads = [pool.read(name, wait_s=20) for name in ("bob", "eve")]
    await waiting(store)
    await store.insert([message(1), message(2, "eve")])
    assert [texts(await read) for read in reads] == [["1"], ["2"]]


async def test_an_arrival_without_an_inbox_makes_all_waiters_search(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 0.05))
    store = MemoryStore()
    pool = await make_pool(store)
    read = pool.read("bob", wait_s=20)
    await waiting(store)
    await store.insert([message(1)])
    store.told.put_nowait(None)
    assert texts(await read) == ["1"]


async def test_a_message_that_arrives_during_a_search_is_not_missed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))

    @dataclass
    class SlowToTell(GateStore):
        async def find_unread(self, usernames, limit, now_ms):  # type: ignore[no-untyped-def]
            found = await MemoryStore.find_unread(self, usernames, limit, now_ms)
            await self._pass("find")
            return found

    store = SlowToTell(shut={"find"})
    pool = await make_pool(store, shards=1)
    read = pool.read("bob", wait_s=20)
    await store.reached()
    # The search has found nothing, but the read does not wait yet.
    await store.insert([message(1)])
    store.told.put_nowait({"bob"})
    await asyncio.sleep(0.05)
    store.open()
    assert texts(await read) == ["1"]


async def test_a_single_call_without_a_place_is_answered_at_the_end(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.single_calls.PLACES", 1)

    @dataclass
    class Stuck(MemoryStore):
        async def track(self, command, now_ms):  # type: ignore[no-untyped-def]
            await asyncio.Event().wait()

    pool = await make_pool(Stuck())
    asked = [pool.submit(Track(str(number), "receipt")) for number in range(3)]
    await pool.post("bob", "goes on beside them", 1, 60)
    await pool.stop()
    for each in asked:
        with pytest.raises(ServiceError):
            await each


async def test_a_release_wakes_a_waiter(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store)
    await pool.post("bob", "hello", 5, 60)
    lease = Terms(delivery("lease"), 60_000)
    assert texts(await pool.read("bob", lease=lease)) == ["hello"]
    read = pool.read("bob", wait_s=20)
    await waiting(store)
    assert await pool.submit(Release("bob", "lease")) == 1
    assert texts(await read) == ["hello"]


async def test_an_expired_lease_wakes_a_waiter(
    make_pool: MakePool,
) -> None:
    pool = await make_pool(MemoryStore())
    await pool.post("bob", "hello", 5, 60)
    lease = Terms(delivery("lease"), 300)
    assert texts(await pool.read("bob", lease=lease)) == ["hello"]
    assert texts(await pool.read("bob", wait_s=20)) == ["hello"]


@pytest.mark.parametrize("way", ["plain", "lease", "key"])
async def test_a_reader_that_leaves_messages_wakes_the_next_waiter(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = MemoryStore()
    pool = await make_pool(store)

    def read(number: int) -> asyncio.Future[Slice]:
        if way == "key":
            return pool.read_keyed("bob", f"key-{number}", limit=1, wait_s=20)
        lease = Terms(delivery(f"{number:032x}"), 60_000) if way == "lease" else None
        return pool.read("bob", limit=1, wait_s=20, lease=lease)

    reads = [read(number) for number in range(3)]
    await waiting(store)
    await store.insert([message(1), message(2), message(3)])
    store.told.put_nowait({"bob"})
    assert [texts(await each) for each in reads] == [["1"], ["2"], ["3"]]


async def test_a_waiter_that_left_is_skipped(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store)
    gone, stays = pool.read("bob", wait_s=20), pool.read("bob", wait_s=20)
    await waiting(store)
    gone.cancel()
    await pool.post("bob", "hello", 5, 60)
    assert texts(await stays) == ["hello"]


async def test_a_woken_waiter_that_leaves_wakes_the_next_one(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    store = GateStore()
    pool = await make_pool(store)
    first, second = pool.read("bob", wait_s=20), pool.read("bob", wait_s=20)
    await waiting(store)
    store.shut.add("find")
    await pool.post("bob", "hello", 5, 60)
    await store.reached()
    first.cancel()
    store.open()
    assert texts(await second) == ["hello"]


async def test_a_wait_ends_with_an_empty_answer(
    make_pool: MakePool,
) -> None:
    pool = await make_pool(MemoryStore(), waiters=2)
    for _ in range(5):
        waits = [pool.read("bob", wait_s=0.02) for _ in range(2)]
        assert [texts(await read) for read in waits] == [[], []]
    assert pool._waiters.count == 0
    assert not pool._waiters.usernames()


async def test_the_number_of_waiters_is_limited(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, waiters=1)
    first = pool.read("bob", wait_s=20)
    await waiting(store)
    with pytest.raises(Overloaded):
        await pool.read("eve", wait_s=20)
    # A read that finds a message does not have to wait.
    await store.insert([message(7, "eve")])
    assert texts(await pool.read("eve", wait_s=20)) == ["7"]
    assert texts(await pool.read("eve")) == []
    pool.end_waits()
    assert texts(await first) == []


async def test_waiters_are_answered_when_the_service_stops(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store)
    waits = [pool.read(f"user-{number}", wait_s=20) for number in range(20)]
    await waiting(store)
    assert await pool.drain(5)
    assert [texts(await read) for read in waits] == [[]] * 20


async def test_a_wait_that_fails_to_end_keeps_no_other_one() -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    ended: list[str] = []

    def readmit(item: WorkItem) -> None:
        if item.command.username == "ann":
            raise RuntimeError("a bug")
        ended.append(item.command.username)

    waiters = Waiters(10, readmit)
    # Both waits end at the same time.
    until = loop.time() + 0.01
    for name in ("ann", "bob"):
        future: asyncio.Future[object] = loop.create_future()
        item = WorkItem(Read(name, 1), loop.time(), loop.time() + 5, future, wait_until=until)
        assert waiters.add(item)

    async def has_ended() -> bool:
        return ended == ["bob"]

    await eventually(has_ended)
    assert len(reported) == 1
