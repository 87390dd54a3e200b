"""Moves to the dead letters that are interrupted go on, and hold up nothing else."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.dead_letters import LEASE_MS, STEPS, TWICE, exhaust, fails, lease, letters
from tests.support.proxy import MongoProxy
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.store.base import Ended
from workers.store.schema import VALIDATOR


@pytest.mark.parametrize("step", STEPS)
async def test_a_move_goes_on_after_a_node_dies_in_it(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    one, other = await open_store(dead_letters=TWICE), await open_store()
    now_ms, posts = clock.now_ms(), [new_post(receipt="r") for _ in range(3)]
    await exhaust(one, posts, now_ms)
    over_ms = now_ms + LEASE_MS + 1
    monkeypatch.setattr(one, step, fails)
    assert (await one.end_leases(over_ms)).dead == 0
    assert len(await letters(other, now_ms)) == (3 if step == "_end" else 0)
    assert await letters(other, now_ms, "bob") == []
    monkeypatch.undo()
    if step == "_mark":
        other = one
    # The rules of a leader do not matter once the messages are marked.
    ended = await other.end_leases(over_ms + 1)
    assert (ended.returned, ended.expired, ended.dead, ended.dead_ran_out) == (0, 0, 3, 3)
    origins = [each.origin and each.origin.id for each in await letters(one, now_ms)]
    assert origins == [post.id for post in posts]
    assert (await one.end_leases(over_ms + 2)).dead == 0
    assert await one.count_pending() == 3


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("fault", ["lose_reply", "cut_before"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_lost_reply_moves_and_counts_nothing_twice(
    mongo_uri: str,
    tmp_path: Path,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    fault: str,
    losses: int,
) -> None:
    now_ms, posts = clock.now_ms(), [new_post() for _ in range(5)]
    untroubled = await open_store()
    await exhaust(untroubled, posts, now_ms)
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri, timeout_s=1, dead_letters=TWICE)
        faults: Counter[str] = getattr(proxy, fault)
        carry_out, command = getattr(store, step), "insert" if step == "_copy" else "update"

        async def troubled(*arguments: Any) -> Any:
            faults[command] = losses
            monkeypatch.undo()
            return await carry_out(*arguments)

        monkeypatch.setattr(store, step, troubled)
        dead = 0

        async def all_moved() -> bool:
            nonlocal dead
            ended = await store.end_leases(now_ms + LEASE_MS + 1)
            assert (ended.returned, ended.expired) == (0, 0)
            dead += ended.dead + (await store.count_resolved()).get("dead", 0)
            return dead >= len(posts) and not store._unresolved

        await eventually(all_moved)
        assert (dead, faults[command]) == (len(posts), 0)
        found = await letters(untroubled, now_ms)
        assert [each.origin and each.origin.id for each in found] == [post.id for post in posts]
        assert await untroubled.count_pending() == len(posts)
        await store.close()


async def test_a_dead_letter_that_cannot_be_stored_is_not_lost(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    posts = [new_post(text="good"), new_post(text="bad")]
    await exhaust(store, posts, now_ms)
    over_ms = now_ms + LEASE_MS + 1
    refused = {"$nor": [{"text": "bad", "origin": {"$exists": True}}]}
    mongo.database.command({"collMod": "messages", "validator": refused})
    assert (await store.end_leases(over_ms)).dead == 1
    assert [each.message.text for each in await letters(store, now_ms)] == ["good"]
    mongo.database.command({"collMod": "messages", "validator": VALIDATOR})
    assert (await store.end_leases(over_ms)).dead == 1
    assert [each.message.text for each in await letters(store, now_ms)] == ["good", "bad"]


async def test_leases_behind_an_exhausted_message_end_as_ever(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    await exhaust(store, [new_post()], now_ms)
    fresh, brief = new_post(), new_post(timeout_s=5)
    await store.insert([fresh, brief])
    await lease(store, [fresh, brief], now_ms, "another")
    monkeypatch.setattr(store, "_copy", fails)
    ended = await store.end_leases(now_ms + LEASE_MS + 1)
    assert (ended.returned, ended.expired, ended.dead) == (1, 1, 0)
    assert ended.first_ms is not None
    assert await letters(store, now_ms, "bob") != []
    assert await store.end_leases(now_ms + LEASE_MS + 2) == Ended({"bob"}, 0, 0, 0)


@pytest.mark.parametrize("step", STEPS)
async def test_moves_that_fail_hold_up_no_other_message(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    monkeypatch.setattr("workers.store.leases._SWEEP_MAX", 2)
    monkeypatch.setattr(store, step, fails)
    await exhaust(store, [new_post() for _ in range(3)], now_ms)
    other, due = new_post(), replace(new_post(), due_ms=now_ms)
    await store.insert([other, due])
    await lease(store, [other], now_ms + 1, "third")
    for _ in range(2):
        await store.end_leases(now_ms + LEASE_MS + 2)
    found = {each.message.id for each in await letters(store, now_ms, "bob")}
    assert found == {other.id, due.id}
