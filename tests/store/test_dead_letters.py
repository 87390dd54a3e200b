"""Dead letters: each exhausted message moves once, wherever the move is interrupted."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.proxy import MongoProxy
from tests.support.stores import new_claim
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Claim,
    Extend,
    Held,
    Key,
    MessageStatus,
    Origin,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
    Unread,
    delivery,
)
from workers.dead_letters import DeadLetters
from workers.errors import StoreUnavailable
from workers.store.base import Ended
from workers.store.mongo import MongoStore
from workers.store.schema import VALIDATOR

LEASE_MS = 10_000
HOUR_MS = 3_600_000
TWICE = DeadLetters(max_deliveries=2)
STEPS = ("_mark", "_copy", "_end")


async def lease(store: MongoStore, posts: Sequence[Post], now_ms: int, name: str = "ours") -> Claim:
    """Lease messages under a lease of this name."""
    claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=LEASE_MS)
    claim = replace(claim, token=delivery(name))
    assert (await store.claim(claim)).ids == {post.id for post in posts}
    return claim


async def exhaust(store: MongoStore, posts: Sequence[Post], now_ms: int) -> Claim:
    """Store messages and lease them twice. The second lease lasts."""
    await store.insert(posts)
    await lease(store, posts, now_ms, "first")
    assert (await store.release(Release("bob", "first"), now_ms)).messages == len(posts)
    return await lease(store, posts, now_ms)


async def letters(store: MongoStore, now_ms: int, username: str = "dead/bob") -> list[Unread]:
    """Return the unread messages of an inbox."""
    return list((await store.find_unread([username], 1000, now_ms)).messages.get(username, ()))


async def fails(*_: Any) -> Any:
    raise StoreUnavailable("the node is killed here")


async def test_an_exhausted_message_moves_with_text_and_origin(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post, long = new_post(text="a", receipt="r"), new_post(text="b", timeout_s=7200)
    await exhaust(store, [post, long], now_ms)
    assert (await store.end_leases(now_ms + LEASE_MS)).dead == 0
    assert await letters(store, now_ms) == []
    over_ms = now_ms + LEASE_MS + 1
    ended = await store.end_leases(over_ms)
    assert set(ended.usernames) == {"bob", "dead/bob"}
    assert (ended.returned, ended.expired, ended.dead, ended.dead_ran_out) == (0, 0, 2, 2)
    assert await letters(store, now_ms, "bob") == []
    found = await letters(store, now_ms)
    assert [each.message.text for each in found] == ["a", "b"]
    assert [each.origin for each in found] == [Origin("bob", each.id, 2) for each in (post, long)]
    assert [each.deliveries for each in found] == [0, 0]
    # What is left of its life, or an hour.
    assert [each.expires_ms for each in found] == [over_ms + HOUR_MS, long.expires_ms]
    assert await store.track(Track(post.id, "r"), over_ms) == MessageStatus("dead", over_ms)
    status, revoked = await store.revoke(Revoke(post.id, "r"), over_ms)
    assert (status, revoked) == (MessageStatus("dead", over_ms), 0)
    assert await store.count_pending() == 2
    assert (await store.end_leases(over_ms + 1)).dead == 0


async def test_a_message_is_unread_again_until_it_is_exhausted(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post()
    await store.insert([post])
    await lease(store, [post], now_ms)
    ended = await store.end_leases(now_ms + LEASE_MS + 1)
    assert (ended.returned, ended.dead) == (1, 0)
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [1]


async def test_without_a_maximum_no_message_dies(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(), clock.now_ms()
    await exhaust(store, [new_post()], now_ms)
    ended = await store.end_leases(now_ms + LEASE_MS + 1)
    assert (ended.returned, ended.dead) == (1, 0)
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [2]


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
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
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


async def test_a_released_exhausted_message_is_over_at_once(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    posts = [new_post(receipt="r"), new_post(receipt="r")]
    claim = await exhaust(store, posts, now_ms)
    fresh = new_post()
    await store.insert([fresh])
    await lease(store, [fresh], now_ms)
    assert await store.release(Release("bob", "ours"), now_ms) == (3, 3)
    assert await store.release(Release("bob", "ours"), now_ms) == (3, 0)
    # A command that was sent earlier, by a node with a slow clock, revives nothing.
    early_ms = now_ms - LEASE_MS
    assert await store.extend(Extend("bob", "ours", LEASE_MS), early_ms) == 0
    assert await store.held(Held("bob", "ours"), early_ms) == frozenset()
    assert await store.acknowledge(Acknowledge("bob", "ours"), early_ms) == (0, 0)
    assert [each.message.id for each in await letters(store, now_ms, "bob")] == [fresh.id]
    assert await store.track(Track(posts[0].id, "r"), now_ms) == MessageStatus("pending", None)
    assert (await store.revoke(Revoke(posts[0].id, "r"), now_ms))[1] == 1
    ended = await store.end_leases(now_ms)
    assert (ended.returned, ended.dead, ended.dead_ran_out) == (0, 1, 0)
    assert [each.origin and each.origin.id for each in await letters(store, now_ms)] == [
        posts[1].id
    ]
    assert await store.unclaim(claim, claim.ids) == 0
    # The revoked one is gone, as after any release.
    assert await store.release(Release("bob", "ours"), now_ms) == (2, 0)


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


async def test_a_late_copy_of_a_lease_is_no_second_delivery(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post()
    await store.insert([post])
    claim = await lease(store, [post], now_ms)
    assert (await store.end_leases(now_ms + LEASE_MS + 1)).returned == 1
    # The lease was this claim's, and is over.
    assert (await store.claim(claim)).ids == {post.id}
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [1]


async def test_what_nobody_received_is_no_delivery(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post()
    claim = await exhaust(store, [post], now_ms)
    assert await store.unclaim(claim, claim.ids) == 1
    assert await store.unclaim(claim, claim.ids) == 0
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [1]
    await lease(store, [post], now_ms, "another")
    assert (await store.end_leases(now_ms + LEASE_MS + 1)).dead == 1


async def test_a_message_that_expires_in_its_lease_does_not_die(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post(timeout_s=5, receipt="r")
    await exhaust(store, [post], now_ms)
    soon_ms = post.expires_ms - 500
    await store.release(Release("bob", "ours"), soon_ms)
    # Half a second is left of its life. No node may call it expired that then moves.
    nothing = await store.end_leases(soon_ms)
    assert (nothing.returned, nothing.expired, nothing.dead) == (0, 0, 0)
    assert await letters(store, now_ms, "bob") == []
    ended = await store.end_leases(post.expires_ms + 1001)
    assert (ended.returned, ended.expired, ended.dead) == (0, 1, 0)
    expired = MessageStatus("expired", post.expires_ms)
    assert await store.track(Track(post.id, "r"), post.expires_ms + 2000) == expired
    assert await letters(store, now_ms) == []
    assert await store.count_pending() == 0


async def test_a_dead_letter_is_an_ordinary_message_that_never_dies(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    await exhaust(store, [new_post()], now_ms)
    await store.end_leases(now_ms + LEASE_MS + 1)
    (letter,) = await letters(store, now_ms)
    for number in range(4):
        claim = new_claim(["dead/bob"], [letter.message.id], now_ms, lease_ms=LEASE_MS)
        assert (await store.claim(claim)).ids == {letter.message.id}
        if number % 2:
            name = claim.token.partition(".")[0]
            assert await store.release(Release("dead/bob", name), now_ms) == (1, 1)
        else:
            assert (await store.end_leases(now_ms + LEASE_MS + 1)).returned == 1
        (again,) = await letters(store, now_ms)
        assert again == replace(letter, deliveries=number + 1)
    assert await letters(store, now_ms, "dead/dead/bob") == []


async def test_a_key_belongs_to_a_message_that_died(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post(key=Key("k", "b"))
    await exhaust(store, [post], now_ms)
    await store.end_leases(now_ms + LEASE_MS + 1)
    assert await store.insert([new_post(key=Key("k", "b"))]) == [post.id]
    assert await letters(store, now_ms, "bob") == []


async def test_leases_behind_an_exhausted_message_end_as_ever(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
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


async def test_the_documents_of_a_move_are_those_of_the_docs(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    mongo: Messages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    plain, kept = new_post(), new_post(receipt="r")
    await exhaust(store, [plain, kept], now_ms)
    over_ms = now_ms + LEASE_MS + 1
    with monkeypatch.context() as killed:
        killed.setattr(store, "_copy", fails)
        await store.end_leases(over_ms)
    for marked in mongo.find({"_id": {"$in": [plain.id, kept.id]}}):
        # The TTL index ignores it, however long no node runs.
        assert marked["purge_at"] is None
        assert marked["dead"].keys() == {"at", "id", "inbox", "deliveries"}
    await store.end_leases(over_ms)
    ended = {each["_id"]: each for each in mongo.find({"dead": {"$exists": True}})}
    assert not any({"text", "kept", "unread"} & each.keys() for each in ended.values())
    assert not any("until" in each["lease"] for each in ended.values())
    purged = {_id: each["purge_at"].timestamp() * 1000 for _id, each in ended.items()}
    assert purged[plain.id] == pytest.approx(over_ms + 100_000)
    assert purged[kept.id] == pytest.approx(over_ms + HOUR_MS)
    copies = list(mongo.find({"origin": {"$exists": True}}))
    assert {each["_id"] for each in copies} == {each["dead"]["id"] for each in ended.values()}
    fields = "_id route username text created_at expires_at purge_at unread origin"
    assert {frozenset(each) for each in copies} == {frozenset(fields.split())}


@pytest.mark.parametrize("rules", [DeadLetters(), TWICE])
async def test_dead_letters_cost_leases_and_reads_no_command(
    mongo_uri: str,
    tmp_path: Path,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    rules: DeadLetters,
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store, now_ms = await open_store(uri=proxy.uri, dead_letters=rules), clock.now_ms()
        posts = [new_post(), new_post()]
        proxy.naming = b"bob"
        proxy.sent.clear()
        await store.insert(posts)
        await store.find_unread(["bob"], 10, now_ms)
        await store.claim(new_claim(["bob"], [posts[0].id], now_ms))
        await lease(store, posts[1:], now_ms)
        await store.release(Release("bob", "ours"), now_ms)
        assert proxy.sent == {"insert": 1, "find": 1, "update": 3}
        await lease(store, posts[1:], now_ms, "another")
        proxy.naming = b"messages"
        proxy.sent.clear()
        ended = await store.end_leases(now_ms + LEASE_MS + 1)
        assert ended.dead == (rules == TWICE)
        if not ended.dead:
            # The first end, the messages, and their update.
            assert proxy.sent == {"find": 2, "update": 1}
        await store.close()


def before_updates(store: MongoStore, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen after the next search of a sweep, and before its updates."""
    of_found = store._updates.of_found

    async def late(*arguments: Any, **options: Any) -> int:
        store._updates.of_found = of_found  # type: ignore[method-assign]
        await happens()
        return await of_found(*arguments, **options)

    store._updates.of_found = late  # type: ignore[method-assign]


async def test_a_slow_sweep_returns_no_message_marked_meanwhile(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
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
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
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
