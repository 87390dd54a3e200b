"""The guarantees for scheduled messages, tested on the real store and on the small one."""

from typing import Any

import pytest
from msgspec.structs import replace

from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Key,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
    delivery,
)
from workers.ids import IdSource
from workers.store.base import Store
from workers.store.mongo import MongoStore

pytestmark = pytest.mark.usefixtures("each_schema")

LATER_MS = 60_000


def scheduled(post: Post, due_ms: int, timeout_ms: int = 600_000) -> Post:
    """Return the post with a delay that ends at `due_ms`."""
    return replace(post, due_ms=due_ms, expires_ms=due_ms + timeout_ms)


async def unread(store: Store, now_ms: int) -> list[str]:
    found = await store.find_unread(["bob"], 100, now_ms)
    return [each.message.id for each in found.messages.get("bob", ())]


async def test_a_scheduled_message_is_unread_only_when_due(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    due = scheduled(new_post(receipt="r"), now_ms - 5)
    later = scheduled(new_post(receipt="r"), now_ms + LATER_MS)
    assert await any_store.insert([due, later]) == [None, None]
    # Not even the one whose time has come, before a sweep has seen that.
    assert await unread(any_store, now_ms + 2 * LATER_MS) == []
    claim = new_claim(["bob"], [due.id, later.id], now_ms)
    assert (await any_store.claim(claim)).ids == set()
    assert await any_store.count_unread(["bob"], now_ms) == {}
    assert await any_store.count_pending() == 2
    ended = await any_store.end_leases(now_ms)
    assert (set(ended.usernames), ended.returned, ended.expired) == ({"bob"}, 0, 0)
    assert list(ended.due_ms) == [due.due_ms]
    assert await unread(any_store, now_ms) == [due.id]
    assert await any_store.count_pending() == 2
    statuses = [await any_store.track(Track(each.id, "r"), now_ms) for each in (due, later)]
    assert statuses == [
        MessageStatus("pending", None),
        MessageStatus("scheduled", later.due_ms),
    ]


async def test_the_sweep_reports_when_the_next_message_is_due(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    posts = [scheduled(new_post(), now_ms + each) for each in (2 * LATER_MS, LATER_MS)]
    await any_store.insert(posts)
    ended = await any_store.end_leases(now_ms)
    assert (ended.first_ms, ended.returned, len(ended.due_ms)) == (now_ms + LATER_MS, 0, 0)


async def test_a_sender_can_revoke_a_scheduled_message(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    posts = [scheduled(new_post(receipt="r"), now_ms + each) for each in (LATER_MS, -5)]
    await any_store.insert(posts)
    for post in posts:
        revoked = MessageStatus("revoked", now_ms)
        assert await any_store.revoke(Revoke(post.id, "r"), now_ms) == (revoked, 1)
        assert await any_store.revoke(Revoke(post.id, "r"), now_ms + 1) == (revoked, 0)
    assert (await any_store.end_leases(now_ms)).first_ms is None
    assert await unread(any_store, now_ms) == []
    assert await any_store.count_pending() == 0


async def test_a_delay_that_nobody_ended_in_time_expires(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    post = scheduled(new_post(receipt="r"), now_ms - 10_000, timeout_ms=2000)
    await any_store.insert([post])
    ended = await any_store.end_leases(now_ms)
    assert (ended.returned, ended.expired, list(ended.due_ms)) == (0, 1, [])
    assert await unread(any_store, now_ms) == []
    status = await any_store.track(Track(post.id, "r"), now_ms)
    assert status == MessageStatus("expired", post.expires_ms)
    assert await any_store.count_pending() == 0


async def test_no_reader_can_end_a_delay(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    post = scheduled(new_post(), now_ms + LATER_MS)
    await any_store.insert([post])
    for lease in ("", "0", "ours"):
        assert await any_store.acknowledge(Acknowledge("bob", lease), now_ms) == (0, 0)
        assert await any_store.release(Release("bob", lease, (post.id,)), now_ms) == (0, 0)
    assert await any_store.resume(Resume("bob", post.id), now_ms) == (0, 0)
    assert await any_store.count_pending() == 1
    assert (await any_store.end_leases(now_ms)).first_ms == post.due_ms


async def test_the_first_lease_after_a_delay_is_not_a_repeat(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    now_ms = clock.now_ms()
    post = scheduled(new_post(), now_ms - 5)
    # What a sweep of an earlier version leaves.
    other = new_post(timeout_s=600)
    await store.insert([post, other])
    mongo.update_one({"_id": other.id}, {"$set": {"lease": {}}})
    await store.end_leases(now_ms)
    claim = new_claim(["bob"], [post.id, other.id], now_ms, lease_ms=5000)
    await store.claim(replace(claim, token=delivery("ours")))
    for document in mongo.find():
        assert document["lease"]["again"] is False
        assert "lost_by" not in document
        assert document["deliveries"] == 1


async def test_messages_are_read_in_the_order_of_their_time(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms, ids = clock.now_ms(), IdSource()
    posts = []
    for offset_ms in (-30, -90, -60):
        due_ms = now_ms + offset_ms
        posts.append(scheduled(replace(new_post(), id=ids.scheduled(due_ms, 0)), due_ms))
    await store.insert(posts)
    await store.end_leases(now_ms)
    assert await unread(store, now_ms) == [posts[1].id, posts[2].id, posts[0].id]


async def test_a_leader_whose_clock_is_ahead_delivers_nothing_early(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    now_ms = clock.now_ms()
    post = scheduled(new_post(receipt="r"), now_ms + LATER_MS)
    await store.insert([post])
    ended = await store.end_leases(now_ms + 10 * LATER_MS)
    assert list(ended.due_ms) == []
    assert not ended.more
    assert await unread(store, now_ms) == []
    # It compares the clocks soon.
    assert clock.is_doubtful
    assert await store.track(Track(post.id, "r"), now_ms) == MessageStatus("scheduled", post.due_ms)


async def test_a_leader_ahead_ends_no_delay_of_a_release_early(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = replace(new_post(), expires_ms=clock.now_ms() + 10 * LATER_MS), clock.now_ms()
    await store.insert([post])
    claim = new_claim(["bob"], [post.id], now_ms, lease_ms=5000)
    await store.claim(replace(claim, token=delivery("ours")))
    assert await store.release(Release("bob", "ours", delay_ms=LATER_MS), now_ms) == (1, 1)
    ended = await store.end_leases(now_ms + 2 * LATER_MS)
    assert (ended.returned, ended.expired, list(ended.due_ms)) == (0, 0, [])
    assert await unread(store, now_ms) == []


async def test_a_late_sweep_takes_no_message_from_a_reader(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts, now_ms = [new_post() for _ in range(3)], clock.now_ms()
    posts = [scheduled(each, now_ms - 5) for each in posts]
    await store.insert(posts)
    sent: list[Any] = []
    of_found = store._updates.of_found

    async def note(*arguments: Any, **options: Any) -> int:
        if arguments[0]:
            sent.append((arguments, options))
        return await of_found(*arguments, **options)

    monkeypatch.setattr(store._updates, "of_found", note)
    await store.end_leases(now_ms)
    ((arguments, options),) = sent
    read, leased, revoked = posts
    await store.claim(new_claim(["bob"], [read.id], now_ms))
    await store.claim(new_claim(["bob"], [leased.id], now_ms, lease_ms=5000))
    assert await of_found(*arguments, **options) == 0
    assert await unread(store, now_ms) == [revoked.id]


@pytest.mark.parametrize("has_key", [False, True], ids=["no key", "a key"])
async def test_a_key_and_a_delay_go_together(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    has_key: bool,
    mongo: Messages,
) -> None:
    now_ms = clock.now_ms()
    key = Key("hash", "body") if has_key else None
    due = scheduled(new_post(key=key), now_ms - 5)
    later = scheduled(new_post(), now_ms + LATER_MS)
    assert await store.insert([due, later]) == [None, None]
    if has_key:
        again = scheduled(new_post(key=key), now_ms + LATER_MS)
        assert await store.insert([again]) == [due.id]
    assert list((await store.end_leases(now_ms)).due_ms) == [due.due_ms]
    assert await unread(store, now_ms) == [due.id]
    # As if it had been posted at its time, but for the field that people and receipts see.
    stored = mongo.find_one({"_id": due.id})
    assert stored is not None
    assert "lease" not in stored
    assert "due_at" in stored


async def test_a_message_without_a_delay_is_not_among_the_ends(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    await store.insert([new_post(), scheduled(new_post(), clock.now_ms() + LATER_MS)])
    assert mongo.count_documents({}, hint="lease_ends") == 1
    assert mongo.count_documents({}, hint="leases") == 0
    plain = mongo.find_one({"unread": True})
    assert plain is not None
    assert set(plain) == {
        *("_id", "route", "username", "text", "created_at", "expires_at", "purge_at", "unread"),
    }
