"""Moves to the dead letters beside other leaders, slow sweeps and commands of clients."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import OpenStore
from tests.store.conftest import MakePost
from tests.support.dead_letters import HOUR_MS, LEASE_MS, TWICE, exhaust, fails, lease, letters
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import Acknowledge, Extend, MessageStatus, Release, Resume, Revoke, Track
from workers.errors import StoreUnavailable
from workers.store.mongo import MongoStore


async def test_two_leaders_move_each_message_once(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    stores = [await open_store(dead_letters=TWICE, node=name) for name in ("one", "other")]
    # More than move at a time.
    now_ms, posts = clock.now_ms(), [new_post() for _ in range(120)]
    await exhaust(stores[0], posts, now_ms)
    over_ms = now_ms + LEASE_MS + 1
    ended = await asyncio.gather(*(store.end_leases(over_ms) for store in stores))
    assert sum(each.dead for each in ended) == 120
    assert sum(each.returned + each.expired for each in ended) == 0
    found = await letters(stores[0], now_ms)
    # Each leader makes ids of its own, so the order of the letters depends on who was faster.
    moved = sorted(each.origin.id for each in found if each.origin is not None)
    assert moved == [post.id for post in posts]


@pytest.mark.parametrize("step", ["_copy", "_end"])
async def test_a_leader_that_slept_in_a_move_moves_nothing_twice(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    sleeper, other = [await open_store(dead_letters=TWICE) for _ in range(2)]
    now_ms, post = clock.now_ms(), new_post()
    await exhaust(sleeper, [post], now_ms)
    over_ms = now_ms + LEASE_MS + 1
    sleeps, goes_on, carry_out = asyncio.Event(), asyncio.Event(), getattr(sleeper, step)

    async def late(*arguments: Any) -> Any:
        sleeps.set()
        await goes_on.wait()
        return await carry_out(*arguments)

    monkeypatch.setattr(sleeper, step, late)
    sleeping = asyncio.create_task(sleeper.end_leases(over_ms))
    await sleeps.wait()
    ended = await other.end_leases(over_ms)
    (letter,) = await letters(other, now_ms)
    claim = new_claim(["dead/bob"], [letter.message.id], now_ms)
    assert (await other.claim(claim)).ids == {letter.message.id}
    goes_on.set()
    assert (ended.dead, (await sleeping).dead) == (1, 0)
    assert await letters(other, now_ms) == await letters(other, now_ms, "bob") == []
    assert await other.count_pending() == 0


async def test_a_late_mark_changes_no_message_in_another_lease(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lenient = await open_store(dead_letters=TWICE), await open_store()
    now_ms, post = clock.now_ms(), new_post(receipt="r")
    await exhaust(store, [post], now_ms)
    over_ms, mark = now_ms + LEASE_MS + 1, store._mark
    late: list[Any] = []

    async def is_held(documents: Any, at_ms: int) -> None:
        late.append((documents, at_ms))
        raise StoreUnavailable("the command lies in a buffer")

    monkeypatch.setattr(store, "_mark", is_held)
    await store.end_leases(over_ms)
    assert (await lenient.end_leases(over_ms)).returned == 1
    await mark(*late[0])
    await lease(store, [post], over_ms, "another")
    await mark(*late[0])
    status = await store.track(Track(post.id, "r"), over_ms)
    assert status == MessageStatus("leased", None)
    acknowledge = Acknowledge("bob", "another")
    assert await store.acknowledge(acknowledge, over_ms) == (1, 1)
    await mark(*late[0])
    assert (await store.end_leases(over_ms + 2 * LEASE_MS)).dead == 0
    assert await letters(store, now_ms) == []


@pytest.mark.parametrize("step", ["_copy", "_end"])
async def test_nothing_else_changes_a_marked_message(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post(receipt="r")
    claim = await exhaust(store, [post], now_ms)
    over_ms = now_ms + LEASE_MS + 1
    with monkeypatch.context() as killed:
        killed.setattr(store, step, fails)
        await store.end_leases(over_ms)
    # Commands of nodes whose clock is behind the leader's.
    assert await store.acknowledge(Acknowledge("bob", "ours"), now_ms) == (0, 0)
    assert await store.extend(Extend("bob", "ours", LEASE_MS), now_ms) == 0
    assert await store.release(Release("bob", "ours"), now_ms) == (0, 0)
    assert await store.resume(Resume("bob", post.id), now_ms) == (0, 0)
    assert await store.unclaim(claim, claim.ids) == 0
    dead = MessageStatus("dead", over_ms)
    assert await store.revoke(Revoke(post.id, "r"), over_ms) == (dead, 0)
    # No node ran for a while: it is neither expired nor purged, and gets its whole hour.
    later_ms = now_ms + HOUR_MS // 2
    assert await store.expire(later_ms) == 0
    await store.retire(later_ms)
    assert await store.track(Track(post.id, "r"), later_ms) == dead
    ended = await store.end_leases(later_ms)
    assert (ended.returned, ended.expired, ended.dead) == (0, 0, 1)
    (letter,) = await letters(store, now_ms)
    assert letter.message.text == post.text
    assert letter.expires_ms == (later_ms if step == "_copy" else over_ms) + HOUR_MS


def before_updates(store: MongoStore, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen after the next search of a sweep, and before its updates."""
    of_found = store._updates.of_found

    async def late(*arguments: Any, **options: Any) -> int:
        store._updates.of_found = of_found  # type: ignore[method-assign]
        await happens()
        return await of_found(*arguments, **options)

    store._updates.of_found = late  # type: ignore[method-assign]


async def test_a_slow_sweep_returns_no_message_marked_meanwhile(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = await open_store(), await open_store(dead_letters=TWICE)
    now_ms, post = clock.now_ms(), new_post()
    await exhaust(other, [post], now_ms)
    over_ms = now_ms + LEASE_MS + 1
    monkeypatch.setattr(other, "_copy", fails)
    before_updates(slow, lambda: other.end_leases(over_ms))
    assert (await slow.end_leases(over_ms)).returned == 0
    assert await letters(slow, now_ms, "bob") == []
    assert (await slow.end_leases(over_ms)).dead == 1


async def test_a_slow_sweep_returns_no_message_exhausted_meanwhile(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    slow, other = [await open_store(dead_letters=TWICE) for _ in range(2)]
    now_ms, post = clock.now_ms(), new_post()
    await slow.insert([post])
    await lease(slow, [post], now_ms)
    over_ms = now_ms + LEASE_MS + 1

    async def exhausts() -> None:
        assert (await other.end_leases(over_ms)).returned == 1
        await lease(other, [post], now_ms, "another")
        assert await other.release(Release("bob", "another"), now_ms) == (1, 1)

    before_updates(slow, exhausts)
    assert (await slow.end_leases(over_ms)).returned == 0
    assert await letters(slow, now_ms, "bob") == []
    assert (await slow.end_leases(over_ms)).dead == 1


async def test_a_revocation_is_too_late_for_a_marked_message(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post(receipt="r")
    await exhaust(store, [post], now_ms)
    await store.release(Release("bob", "ours"), now_ms)
    find_sent = store._find_sent

    async def marks_after(command: Track) -> Any:
        found = await find_sent(command)
        monkeypatch.undo()
        with monkeypatch.context() as killed:
            killed.setattr(store, "_copy", fails)
            await store.end_leases(now_ms)
        return found

    monkeypatch.setattr(store, "_find_sent", marks_after)
    dead = MessageStatus("dead", now_ms)
    assert await store.revoke(Revoke(post.id, "r"), now_ms) == (dead, 0)
    assert (await store.end_leases(now_ms)).dead == 1
    assert [each.message.text for each in await letters(store, now_ms)] == [post.text]
