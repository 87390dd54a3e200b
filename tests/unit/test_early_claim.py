"""Messages that a process stored itself are claimed while a search looks for others."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.support.stores import FailingStore, GateStore, MemoryStore, new_claim
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers.claims import SLICE_MIN
from workers.commands import Post, Slice
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.known_inboxes import INBOX_MESSAGES, INBOXES, PAUSE_MS, KnownInboxes
from workers.pool import WorkerPool
from workers.shard import ShardLimits

WIDE_SLICES = ShardLimits(100, 1 << 20, SLICE_MIN, 5.0)


def message(username: str, text: str, number: int = 0, *, lives_ms: int = 60_000) -> Post:
    now_ms = int(time.time() * 1000)
    return Post(f"{number:032x}", username, text, len(text), now_ms, now_ms + lives_ms)


def texts(read: Slice) -> list[str]:
    return [each.text for each in read.messages]


def called(store: MemoryStore, kind: str) -> Callable[[], Awaitable[bool]]:
    """Return a check whether there was one call of this kind."""

    async def check() -> bool:
        return store.calls[kind] == 1

    return check


async def post(pool: WorkerPool, text: str) -> str:
    return await pool.post("bob", text, len(text), 60)


async def test_known_messages_are_claimed_during_the_search(make_pool: MakePool) -> None:
    store = GateStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    assert texts(await pool.read("bob")) == []
    await post(pool, "a")
    store.shut.add("find")
    reading = pool.read("bob")
    await store.reached()
    await eventually(called(store, "claim"))
    assert not reading.done(), "the search may find others"
    store.open()
    assert texts(await reading) == ["a"]
    assert store.calls["claim"] == 1


async def test_messages_of_others_come_first_if_older(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    await pool.read("bob")
    store.data.insert([message("bob", "older")])
    await post(pool, "newer")
    read = await pool.read("bob")
    assert texts(read) == ["older", "newer"]
    assert not read.more


async def test_a_known_message_is_not_read_twice(make_pool: MakePool) -> None:
    store = MemoryStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    await pool.read("bob")
    taken = await post(pool, "a")
    claim = new_claim(["bob"], [taken], int(time.time() * 1000))
    store.data.claim(claim, claim.ids)
    assert texts(await pool.read("bob")) == []


async def test_a_client_that_leaves_loses_nothing(make_pool: MakePool) -> None:
    store = GateStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    await pool.read("bob")
    await post(pool, "a")
    store.shut.add("find")
    leaving = pool.read("bob")
    await store.reached()
    await eventually(called(store, "claim"))
    leaving.cancel()
    store.open()
    await eventually(called(store, "unclaim"))
    await asyncio.sleep(0)
    assert texts(await pool.read("bob")) == ["a"]


async def test_a_failed_search_does_not_refuse_claimed_reads(make_pool: MakePool) -> None:
    store = FailingStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    await pool.read("bob")
    await post(pool, "a")
    store.failures["find"] = StoreUnavailable("no primary")
    outcomes = await asyncio.gather(pool.read("bob"), return_exceptions=True)
    assert isinstance(outcomes[0], OutcomeUnknown)
    store.failures.clear()
    await eventually(called(store, "unclaim"))
    assert texts(await pool.read("bob")) == ["a"]


async def test_limited_reads_search_first(make_pool: MakePool) -> None:
    store = GateStore()
    pool = await make_pool(store, batch=WIDE_SLICES)
    await pool.read("bob")
    for text in ("a", "b"):
        await post(pool, text)
    store.shut.add("find")
    limited, rest = pool.read("bob", limit=1), pool.read("bob")
    await store.reached()
    assert not store.calls["claim"]
    store.open()
    assert [texts(await limited), texts(await rest)] == [["a"], ["b"]]


def test_an_inbox_is_known_once_it_was_emptied() -> None:
    known = KnownInboxes()
    known.stored(message("bob", "a"))
    assert not known.take("bob", 0)
    known.searching()
    known.emptied("bob")
    known.stored(message("bob", "b"))
    assert [each.message.text for each in known.take("bob", 0)] == ["b"]
    assert not known.take("bob", 0)


def test_a_message_during_the_search_makes_it_unknown() -> None:
    known = KnownInboxes()
    known.searching()
    known.stored(message("bob", "a"))
    known.emptied("bob")
    assert "bob" not in known
    known.searching()
    known.posting([message("bob", "b")])
    known.emptied("bob")
    assert "bob" not in known


@pytest.mark.parametrize("count", [INBOX_MESSAGES, INBOX_MESSAGES + 1])
def test_a_long_inbox_is_not_known(count: int) -> None:
    known = KnownInboxes()
    known.emptied("bob")
    for number in range(count):
        known.stored(message("bob", "x", number))
    assert ("bob" in known) == (count <= INBOX_MESSAGES)


def test_known_inboxes_are_bounded() -> None:
    known = KnownInboxes()
    for number in range(INBOXES + 1):
        known.emptied(str(number))
    assert "0" not in known
    assert str(INBOXES) in known


def test_expired_messages_are_not_taken() -> None:
    known = KnownInboxes()
    known.emptied("bob")
    known.stored(message("bob", "x", lives_ms=0))
    assert not known.take("bob", int(time.time() * 1000) + 1)


def test_nothing_is_taken_during_a_pause() -> None:
    known = KnownInboxes()
    known.pause(1000)
    for now_ms, is_taken in ((1000 + PAUSE_MS - 1, False), (1000 + PAUSE_MS, True)):
        known.searching()
        known.emptied("bob")
        known.stored(message("bob", "x"))
        assert bool(known.take("bob", now_ms)) == is_taken
