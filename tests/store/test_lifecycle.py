"""The guarantees for keys and receipts, tested on the real store and on the small one."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_batch, new_claim
from workers.clock import DatabaseClock
from workers.commands import Key, MessageStatus, Revoke, Track
from workers.errors import KeyReused
from workers.store.base import Store
from workers.store.mongo import MongoStore

pytestmark = pytest.mark.usefixtures("each_schema")

KEY = Key("hash of a key", "hash of a body")


async def test_posts_with_one_key_store_one_message_and_share_its_id(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    first = new_post(key=KEY)
    assert await any_store.insert([first]) == [None]
    repeats = await any_store.insert([new_post(key=KEY), new_post(), new_post(key=KEY)])
    assert repeats == [first.id, None, first.id]
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}


async def test_posts_with_one_key_through_several_nodes_store_one(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    stores = [await open_store(node=str(number)) for number in range(4)]
    posts = [new_post(key=KEY) for _ in range(40)]
    outcomes = await asyncio.gather(
        *(stores[number % 4].insert([post]) for number, post in enumerate(posts))
    )
    stored = [post.id for post, (outcome,) in zip(posts, outcomes, strict=True) if outcome is None]
    assert len(stored) == 1
    assert {outcome for (outcome,) in outcomes if outcome is not None} == set(stored)
    assert await stores[0].count_unread(["bob"], clock.now_ms()) == {"bob": 1}


async def test_a_reused_key_is_refused_alone(any_store: Store, new_post: MakePost) -> None:
    await any_store.insert([new_post(key=KEY)])
    outcomes = await any_store.insert([new_post(key=Key(KEY.hash, "another")), new_post()])
    assert isinstance(outcomes[0], KeyReused)
    assert outcomes[1] is None


async def test_a_key_is_still_known_after_its_message_was_read(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    first = new_post(key=KEY)
    await any_store.insert([first])
    await any_store.claim(new_claim(["bob"], [first.id], clock.now_ms()))
    assert await any_store.insert([new_post(key=KEY)]) == [first.id]
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {}


async def test_the_batch_of_a_key_is_chosen_once(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(), new_post()], clock.now_ms()
    await any_store.insert(posts)
    first = new_batch("key", "bob", (posts[0].id,), now_ms + 1000)
    second = new_batch("key", "bob", (posts[1].id,), now_ms + 1000)
    assert await any_store.record_batch([first], now_ms) == [first]
    assert await any_store.record_batch([second], now_ms) == [first]
    assert await any_store.find_batches(["key", "unknown"], now_ms) == {"key": first}
    # After its time the key can be used again.
    assert await any_store.find_batches(["key"], now_ms + 1001) == {}
    later = new_batch("key", "bob", (posts[1].id,), now_ms + 5000)
    assert await any_store.record_batch([later], now_ms + 1001) == [later]
    assert await any_store.discard_batch(first)
    assert await any_store.find_batches(["key"], now_ms + 1001) == {"key": later}
    assert await any_store.discard_batch(later)
    assert await any_store.find_batches(["key"], now_ms + 1001) == {}
    # A delivered batch cannot be discarded, and a discarded batch cannot be delivered.
    assert not await any_store.mark_delivered(later)
    assert await any_store.record_batch([first], now_ms) == [first]
    assert await any_store.mark_delivered(first)
    assert not await any_store.discard_batch(first)
    assert await any_store.find_batches(["key"], now_ms) == {"key": replace(first, is_given=True)}
    assert await any_store.mark_delivered(first)


async def test_a_key_has_its_claimed_unexpired_messages(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    mine, theirs, short, now_ms = new_post(), new_post(), new_post(timeout_s=1), clock.now_ms()
    await any_store.insert([mine, theirs, short])
    await any_store.claim(new_claim(["bob"], [theirs.id], now_ms))
    batch = new_batch("key", "bob", (mine.id, theirs.id, short.id), now_ms + 60_000)
    for _ in range(2):
        await any_store.claim(new_claim(["bob"], batch.ids, now_ms, key="key", batch=batch.token))
        found = await any_store.keyed_messages(batch, now_ms)
        assert [each.id for each in found] == [mine.id, short.id]
    found = await any_store.keyed_messages(batch, short.expires_ms + 1)
    assert [each.id for each in found] == [mine.id]


async def test_a_receipt_shows_the_status_of_its_message(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(receipt="secret"), clock.now_ms()
    await any_store.insert([post])
    asked = Track(post.id, "secret")
    assert await any_store.track(asked, now_ms) == MessageStatus("pending", None)
    assert await any_store.track(asked, post.expires_ms) == MessageStatus("pending", None)
    assert await any_store.track(asked, post.expires_ms + 1) == MessageStatus(
        "expired", post.expires_ms
    )
    await any_store.claim(new_claim(["bob"], [post.id], now_ms, lease_ms=5000))
    assert await any_store.track(asked, now_ms + 5000) == MessageStatus("leased", None)
    assert await any_store.track(asked, now_ms + 5001) == MessageStatus("pending", None)
    await any_store.end_leases(now_ms + 5001)
    await any_store.claim(new_claim(["bob"], [post.id], now_ms + 6000))
    assert await any_store.track(asked, now_ms + 7000) == MessageStatus("read", now_ms + 6000)


@pytest.mark.parametrize("receipt", ["another", ""])
async def test_a_wrong_receipt_shows_nothing(
    any_store: Store, new_post: MakePost, clock: DatabaseClock, receipt: str
) -> None:
    post, plain = new_post(receipt="secret"), new_post()
    await any_store.insert([post, plain])
    for message_id in (post.id, plain.id, "nonsense"):
        assert await any_store.track(Track(message_id, receipt), clock.now_ms()) is None
        assert await any_store.revoke(Revoke(message_id, receipt), clock.now_ms()) == (None, 0)
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}


async def test_a_repeated_post_gets_its_own_receipt(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    first = new_post(key=KEY, receipt="first")
    await any_store.insert([first])
    await any_store.insert([new_post(key=KEY, receipt="second")])
    for receipt in ("first", "second"):
        status = await any_store.track(Track(first.id, receipt), clock.now_ms())
        assert status == MessageStatus("pending", None)


async def test_an_unread_message_is_revoked_only_once(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(receipt="secret"), clock.now_ms()
    await any_store.insert([post])
    assert await any_store.revoke(Revoke(post.id, "secret"), now_ms) == (
        MessageStatus("revoked", now_ms),
        1,
    )
    assert await any_store.revoke(Revoke(post.id, "secret"), now_ms + 5) == (
        MessageStatus("revoked", now_ms),
        0,
    )
    assert (await any_store.find_unread(["bob"], 10, now_ms)).messages == {}
    assert (await any_store.claim(new_claim(["bob"], [post.id], now_ms))).ids == set()


async def test_a_message_can_be_revoked_once_its_lease_is_over(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(receipt="secret"), clock.now_ms()
    await any_store.insert([post])
    await any_store.claim(new_claim(["bob"], [post.id], now_ms - 6000, lease_ms=5000))
    status, changed = await any_store.revoke(Revoke(post.id, "secret"), now_ms)
    assert (status, changed) == (MessageStatus("revoked", now_ms), 1)
    assert (await any_store.end_leases(now_ms)).returned == 0
    assert await any_store.count_pending() == 0


async def test_read_leased_and_expired_messages_cannot_be_revoked(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    read, leased, dead = (new_post(receipt="secret") for _ in range(3))
    now_ms = clock.now_ms()
    await any_store.insert([read, leased, dead])
    await any_store.claim(new_claim(["bob"], [read.id], now_ms))
    await any_store.claim(new_claim(["bob"], [leased.id], now_ms, lease_ms=5000))
    fates = [
        await any_store.revoke(Revoke(read.id, "secret"), now_ms),
        await any_store.revoke(Revoke(leased.id, "secret"), now_ms),
        await any_store.revoke(Revoke(dead.id, "secret"), dead.expires_ms + 1),
    ]
    assert fates == [
        (MessageStatus("read", now_ms), 0),
        (MessageStatus("leased", None), 0),
        (MessageStatus("expired", dead.expires_ms), 0),
    ]


async def test_a_late_rollback_revives_no_message_without_text(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    gone, there = new_post(timeout_s=86400, receipt="a"), new_post(timeout_s=86400, receipt="b")
    await store.insert([gone, there])
    first = new_claim(["bob"], [gone.id], now_ms)
    second = new_claim(["bob"], [there.id], now_ms + 400_000)
    await store.claim(first)
    await store.claim(second)
    await store.retire(now_ms + 400_000)
    assert await store.unclaim(first, first.ids) == 0
    assert await store.unclaim(second, second.ids) == 1
    found = await store.find_unread(["bob"], 10, now_ms)
    assert [each.message.id for each in found.messages["bob"]] == [there.id]


async def test_kept_messages_lose_their_text(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    now_ms = clock.now_ms()
    read, expired, keyed = new_post(receipt="a"), new_post(receipt="b"), new_post(key=KEY)
    pending, plain = new_post(timeout_s=86400, receipt="c"), new_post()
    await store.insert([read, expired, keyed, pending, plain])
    await store.claim(new_claim(["bob"], [read.id, keyed.id, plain.id], now_ms))
    # A claim does not make the TTL index delete a kept message.
    assert mongo.count_documents({"kept": True, "purge_at": None}) == 4
    assert await store.expire(expired.expires_ms + 2000) == 1
    await store.retire(now_ms + 50_000)
    assert mongo.count_documents({"kept": True, "text": {"$exists": True}}) == 4
    await store.retire(now_ms + 400_000)
    assert [each["_id"] for each in mongo.find({"kept": True})] == [pending.id]
    for post in (read, expired, keyed):
        document = mongo.find_one({"_id": post.id})
        assert document is not None
        assert "text" not in document
        end = document["claim"]["at"] if "claim" in document else document["expires_at"]
        assert (document["purge_at"] - end).total_seconds() == 3600
    assert await store.track(Track(read.id, "a"), now_ms) == MessageStatus("read", now_ms)
    assert await store.track(Track(expired.id, "b"), now_ms + 400_000) == MessageStatus(
        "expired", expired.expires_ms
    )
    assert await store.insert([new_post(key=KEY)]) == [keyed.id]
