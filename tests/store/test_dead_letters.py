"""Dead letters: which messages become one, once, and what a dead letter is."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.dead_letters import HOUR_MS, LEASE_MS, TWICE, exhaust, fails, lease, letters
from tests.support.proxy import MongoProxy
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Extend,
    Held,
    Key,
    MessageStatus,
    Origin,
    Release,
    Revoke,
    Track,
)
from workers.dead_letters import DeadLetters


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


async def test_an_exhausted_message_has_no_delay(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    exhausted, undelivered, fresh = new_post(receipt="r"), new_post(), new_post()
    await exhaust(store, [exhausted, undelivered], now_ms)
    await store.insert([fresh])
    await lease(store, [fresh], now_ms)
    later = Release("bob", "ours", (undelivered.id,), is_delivered=False, delay_ms=HOUR_MS)
    assert await store.release(later, now_ms) == (1, 1)
    later = Release("bob", "ours", delay_ms=HOUR_MS)
    assert await store.release(later, now_ms) == (2, 2)
    assert await store.release(later, now_ms) == (3, 0)
    assert await store.extend(Extend("bob", "ours", LEASE_MS), now_ms) == 0
    pending = MessageStatus("pending", None)
    assert await store.track(Track(exhausted.id, "r"), now_ms) == pending
    ended = await store.end_leases(now_ms)
    assert (ended.returned, ended.dead, ended.dead_ran_out) == (0, 1, 0)
    assert [each.origin and each.origin.id for each in await letters(store, now_ms)] == [
        exhausted.id
    ]
    assert await letters(store, now_ms, "bob") == []
    assert await store.count_pending() == 3


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


async def test_an_undelivered_release_takes_back_the_delivery_once(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post, other = new_post(), new_post()
    await exhaust(store, [post, other], now_ms)
    undelivered = Release("bob", "ours", (post.id,), is_delivered=False)
    assert await store.release(undelivered, now_ms) == (1, 1)
    assert await store.release(undelivered, now_ms) == (1, 0)
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [1]
    assert (await store.end_leases(now_ms)).dead == 0
    assert await store.release(Release("bob", "ours", is_delivered=False), now_ms) == (1, 1)
    counted = {each.message.id: each.deliveries for each in await letters(store, now_ms, "bob")}
    assert counted == {post.id: 1, other.id: 1}


async def test_an_undelivered_release_changes_no_later_lease(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store, now_ms = await open_store(dead_letters=TWICE), clock.now_ms()
    post = new_post()
    await store.insert([post])
    await lease(store, [post], now_ms, "first")
    await store.release(Release("bob", "first"), now_ms)
    await lease(store, [post], now_ms, "second")
    late = Release("bob", "first", (post.id,), is_delivered=False)
    assert await store.release(late, now_ms) == (0, 0)
    await store.release(Release("bob", "second"), now_ms)
    assert (await store.end_leases(now_ms)).dead == 1


@pytest.mark.parametrize("rules", [DeadLetters(), TWICE])
async def test_the_count_of_deliveries_is_never_negative(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    mongo: Messages,
    rules: DeadLetters,
) -> None:
    store, now_ms = await open_store(dead_letters=rules), clock.now_ms()
    counted, uncounted = new_post(), new_post()
    await store.insert([counted, uncounted])
    await lease(store, [counted, uncounted], now_ms)
    # Leased by a node of a version that does not count.
    mongo.update_one({"_id": uncounted.id}, {"$unset": {"deliveries": ""}})
    assert await store.release(Release("bob", "ours", is_delivered=False), now_ms) == (2, 2)
    assert [each.deliveries for each in await letters(store, now_ms, "bob")] == [0, 0]


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
