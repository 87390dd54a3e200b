"""The guarantees for messages released with a delay, on the real store and on the small one."""

from typing import Any

import pytest
from msgspec.structs import replace

from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Audit,
    Extend,
    Held,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
    delivery,
)
from workers.store.base import Store
from workers.store.mongo import MongoStore

pytestmark = pytest.mark.usefixtures("each_schema")

LEASE_MS, DELAY_MS = 10_000, 40_000
LATER = Release("bob", "ours", delay_ms=DELAY_MS)


async def lease(store: Store, posts: list[Post], now_ms: int, name: str = "ours") -> None:
    """Store messages unless they are stored, and lease them under this name."""
    await store.insert(posts)
    claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=LEASE_MS)
    claim = replace(claim, token=delivery(name))
    assert (await store.claim(claim)).ids == {post.id for post in posts}


async def unread(store: Store, now_ms: int) -> dict[str, int]:
    """Return the unread messages, and how often each was delivered."""
    found = await store.find_unread(["bob"], 100, now_ms)
    return {each.message.id: each.deliveries for each in found.messages.get("bob", ())}


async def test_a_message_is_unread_once_its_delay_ends(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(receipt="r"), new_post()], clock.now_ms()
    # Released a moment ago, so that one delay is over by the database's clock.
    before_ms = now_ms - 100
    await lease(any_store, posts, before_ms)
    soon, later = posts
    assert await any_store.release(Release("bob", "ours", (soon.id,), delay_ms=90), before_ms) == (
        1,
        1,
    )
    assert await any_store.release(LATER, before_ms) == (1, 1)
    assert await unread(any_store, now_ms) == {}
    claim = new_claim(["bob"], [soon.id, later.id], now_ms)
    assert (await any_store.claim(claim)).ids == set()
    assert await any_store.count_pending() == 2
    ended = await any_store.end_leases(now_ms)
    assert (set(ended.usernames), ended.returned, ended.expired) == ({"bob"}, 0, 0)
    assert list(ended.due_ms) == [now_ms - 10]
    assert await unread(any_store, now_ms) == {soon.id: 1}
    assert (await any_store.end_leases(now_ms)).first_ms == before_ms + DELAY_MS
    assert await any_store.track(Track(soon.id, "r"), now_ms) == MessageStatus("pending", None)


@pytest.mark.parametrize("is_over", [False, True], ids=["before its end", "after its end"])
async def test_the_old_lease_holds_nothing(
    any_store: Store, new_post: MakePost, clock: DatabaseClock, is_over: bool
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    then_ms = now_ms - 100
    await lease(any_store, [post], then_ms)
    delay_ms = 90 if is_over else DELAY_MS
    assert await any_store.release(replace(LATER, delay_ms=delay_ms), then_ms) == (1, 1)
    await any_store.end_leases(now_ms)
    for ids in (None, (post.id,)):
        assert await any_store.acknowledge(Acknowledge("bob", "ours", ids), now_ms) == (0, 0)
    assert await any_store.extend(Extend("bob", "ours", 1), now_ms) == 0
    assert await any_store.held(Held("bob", "ours"), now_ms) == set()
    # Another stream may have had it since, or this one: its consumer has asked for it again.
    assert await any_store.resume(Resume("bob", post.id), now_ms) == (0, 0)
    assert await any_store.audit(Acknowledge("bob", "ours"), now_ms) == Audit()
    audit = await any_store.audit(Acknowledge("bob", "ours", (post.id,)), now_ms)
    assert audit == Audit(lost=(post.id,))
    assert await unread(any_store, now_ms) == ({post.id: 1} if is_over else {})
    assert await any_store.count_pending() == 1


async def test_a_repeat_changes_nothing_and_says_the_same(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(), new_post()], clock.now_ms()
    then_ms = now_ms - 100
    await lease(any_store, posts, then_ms)
    release = replace(LATER, delay_ms=90, is_delivered=False)
    assert await any_store.release(release, then_ms) == (2, 2)
    assert await any_store.release(release, now_ms) == (2, 0)
    # It would be untrue that they are unread at once.
    assert await any_store.release(Release("bob", "ours"), now_ms - 20) == (0, 0)
    assert list((await any_store.end_leases(now_ms)).due_ms) == [now_ms - 10] * 2
    assert await any_store.release(release, now_ms) == (2, 0)
    assert await unread(any_store, now_ms) == {post.id: 0 for post in posts}


async def test_the_next_lease_is_a_lease_like_any_other(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(receipt="r"), clock.now_ms()
    then_ms = now_ms - 100
    await lease(any_store, [post], then_ms)
    await any_store.release(replace(LATER, delay_ms=90), then_ms)
    await any_store.end_leases(now_ms)
    await lease(any_store, [post], now_ms, "theirs")
    assert await any_store.release(LATER, now_ms) == (0, 0)
    assert await any_store.track(Track(post.id, "r"), now_ms) == MessageStatus("leased", None)
    status, revoked = await any_store.revoke(Revoke(post.id, "r"), now_ms)
    assert (status, revoked) == (MessageStatus("leased", None), 0)
    # The first lease has not lost it.
    assert await any_store.audit(Acknowledge("bob", "ours"), now_ms) == Audit()
    assert await any_store.extend(Extend("bob", "theirs", LEASE_MS), now_ms) == 1
    assert (await any_store.end_leases(now_ms + LEASE_MS + 1)).returned == 1
    await lease(any_store, [post], now_ms, "last")
    assert await any_store.resume(Resume("bob", post.id), now_ms) == (1, 1)


async def test_a_delay_ends_with_its_message_at_the_latest(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(timeout_s=5), clock.now_ms()
    await lease(any_store, [post], now_ms)
    assert await any_store.release(LATER, now_ms) == (1, 1)
    assert (await any_store.end_leases(now_ms)).first_ms == post.expires_ms
    ended = await any_store.end_leases(post.expires_ms + 2000)
    assert (ended.expired, ended.returned, list(ended.due_ms)) == (1, 0, [])
    assert await any_store.count_pending() == 0


async def test_a_sender_can_revoke_a_message_before_its_delay_ends(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(receipt="r"), clock.now_ms()
    await lease(any_store, [post], now_ms)
    await any_store.release(LATER, now_ms)
    scheduled = MessageStatus("scheduled", now_ms + DELAY_MS)
    assert await any_store.track(Track(post.id, "r"), now_ms) == scheduled
    revoked = MessageStatus("revoked", now_ms)
    assert await any_store.revoke(Revoke(post.id, "r"), now_ms) == (revoked, 1)
    assert list((await any_store.end_leases(now_ms + 2 * DELAY_MS)).due_ms) == []
    assert await unread(any_store, now_ms) == {}


async def test_a_late_sweep_ends_no_later_delay(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts, now_ms = [new_post(), new_post()], clock.now_ms()
    then_ms = now_ms - 100
    await lease(store, posts, then_ms)
    await store.release(replace(LATER, delay_ms=90), then_ms)
    sent: list[Any] = []
    of_found = store._updates.of_found

    async def note(*arguments: Any, **options: Any) -> int:
        if arguments[0]:
            sent.append((arguments, options))
        return await of_found(*arguments, **options)

    monkeypatch.setattr(store._updates, "of_found", note)
    await store.end_leases(now_ms)
    ((arguments, options),) = sent
    await lease(store, posts, now_ms, "theirs")
    await store.release(Release("bob", "theirs", (posts[0].id,), delay_ms=DELAY_MS), now_ms)
    assert await of_found(*arguments, **options) == 0
    assert await unread(store, now_ms) == {}


async def test_a_lease_of_an_earlier_version_is_held(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    post, now_ms = new_post(receipt="r"), clock.now_ms()
    await lease(store, [post], now_ms)
    # Such a version does not know this field, and leaves it in the next lease.
    mongo.update_one({"_id": post.id}, {"$set": {"lease.delayed": True}})
    assert await store.track(Track(post.id, "r"), now_ms) == MessageStatus("leased", None)
    ended = await store.end_leases(now_ms + LEASE_MS + 1)
    assert (ended.returned, list(ended.due_ms)) == (1, [])
    mongo.update_one({"_id": post.id}, {"$set": {"lease.delayed": True}})
    await lease(store, [post], now_ms, "theirs")
    assert await store.acknowledge(Acknowledge("bob", "theirs"), now_ms) == (1, 1)
