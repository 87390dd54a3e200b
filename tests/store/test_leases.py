"""The guarantees for leased messages, tested on the real store and on the small one."""

import pytest
from msgspec.structs import replace

from tests.store.conftest import MakePost
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    Extend,
    Held,
    Post,
    Release,
    Resume,
    delivery,
)
from workers.store.base import Store

pytestmark = pytest.mark.usefixtures("each_schema")

LEASE_MS = 10_000


async def lease(store: Store, posts: list[Post], now_ms: int, number: int = 0) -> Claim:
    """Lease messages as the lease `ours`, or as the delivery of a stream with this number."""
    claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=LEASE_MS)
    claim = replace(claim, token=delivery("ours", number))
    assert (await store.claim(claim)).ids == {post.id for post in posts}
    return claim


async def unread(store: Store, now_ms: int) -> list[str]:
    found = await store.find_unread(["bob"], 100, now_ms)
    return [each.message.id for each in found.messages.get("bob", ())]


async def test_leased_messages_are_unread_again_when_the_lease_ends(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(), new_post()], clock.now_ms()
    await any_store.insert(posts)
    await lease(any_store, posts, now_ms)
    assert await unread(any_store, now_ms) == []
    assert await any_store.count_pending() == 2
    assert (await any_store.end_leases(now_ms + LEASE_MS)).returned == 0
    ended = await any_store.end_leases(now_ms + LEASE_MS + 1)
    assert (set(ended.usernames), ended.returned, ended.expired) == ({"bob"}, 2, 0)
    assert await unread(any_store, now_ms) == [post.id for post in posts]


async def test_acknowledging_can_be_repeated(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(), new_post(), new_post()], clock.now_ms()
    await any_store.insert(posts)
    await lease(any_store, posts, now_ms)
    some = Acknowledge("bob", "ours", (posts[0].id, posts[1].id))
    assert await any_store.acknowledge(some, now_ms) == (2, 2)
    assert await any_store.acknowledge(some, now_ms) == (2, 0)
    assert await any_store.acknowledge(Acknowledge("bob", "ours"), now_ms) == (1, 1)
    assert await any_store.acknowledge(Acknowledge("bob", "ours"), now_ms) == (3, 0)
    await any_store.end_leases(now_ms + 2 * LEASE_MS)
    assert await unread(any_store, now_ms) == []
    assert await any_store.count_pending() == 0


async def test_late_foreign_and_unknown_acknowledgements_do_nothing(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    await lease(any_store, [post], now_ms)
    for command in (Acknowledge("eve", "ours"), Acknowledge("bob", "another")):
        assert await any_store.acknowledge(command, now_ms) == (0, 0)
    late = Acknowledge("bob", "ours")
    assert await any_store.acknowledge(late, now_ms + LEASE_MS + 1) == (0, 0)
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    assert await any_store.acknowledge(late, now_ms) == (0, 0)
    assert await unread(any_store, now_ms) == [post.id]


async def test_a_message_read_after_the_lease_is_not_acknowledged(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    await lease(any_store, [post], now_ms)
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    await any_store.claim(new_claim(["bob"], [post.id], now_ms))
    for ids in (None, (post.id,)):
        assert await any_store.acknowledge(Acknowledge("bob", "ours", ids), now_ms) == (0, 0)


async def test_a_lease_is_released_as_a_whole_or_in_part(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post(), new_post(), new_post()], clock.now_ms()
    await any_store.insert(posts)
    await lease(any_store, posts, now_ms)
    assert await any_store.release(Release("bob", "ours", (posts[2].id,)), now_ms) == (1, 1)
    assert await unread(any_store, now_ms) == [posts[2].id]
    assert await any_store.release(Release("bob", "ours"), now_ms) == (2, 2)
    assert await unread(any_store, now_ms) == [post.id for post in posts]
    assert await any_store.acknowledge(Acknowledge("bob", "ours"), now_ms) == (0, 0)


async def test_a_released_message_is_lost_by_a_later_lease(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    await lease(any_store, [post], now_ms)
    await any_store.release(Release("bob", "ours"), now_ms)
    claim = new_claim(["bob"], [post.id], now_ms, lease_ms=LEASE_MS)
    await any_store.claim(replace(claim, token=delivery("late")))
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    lost = Audit(lost=(post.id,))
    late = Acknowledge("bob", "late")
    assert await any_store.audit(late, now_ms + LEASE_MS + 1) == lost
    await lease(any_store, [post], now_ms + LEASE_MS + 1)
    assert await any_store.audit(late, now_ms + LEASE_MS + 1) == lost


async def test_a_lease_holds_messages_until_it_ends(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post() for _ in range(4)], clock.now_ms()
    await any_store.insert(posts)
    await lease(any_store, posts[:3], now_ms, number=1)
    await lease(any_store, posts[3:], now_ms, number=2)
    ids = [post.id for post in posts]
    held = Held("bob", "ours")
    assert await any_store.held(held, now_ms) == set(ids)
    await any_store.acknowledge(Acknowledge("bob", "ours", (ids[0],)), now_ms)
    await any_store.release(Release("bob", "ours", (ids[3],)), now_ms)
    assert await any_store.held(held, now_ms) == {ids[1], ids[2]}
    assert not await any_store.held(Held("eve", "ours"), now_ms)
    assert not await any_store.held(held, now_ms + LEASE_MS + 1)


async def test_an_extended_lease_ends_with_its_message_at_the_latest(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    long, short, now_ms = new_post(), new_post(timeout_s=15), clock.now_ms()
    await any_store.insert([long, short])
    await lease(any_store, [long, short], now_ms)
    assert await any_store.extend(Extend("bob", "ours", 3 * LEASE_MS), now_ms) == 2
    # A late copy of an earlier extension does not shorten it.
    assert await any_store.extend(Extend("bob", "ours", 1), now_ms) == 2
    assert (await any_store.end_leases(now_ms + LEASE_MS + 1)).returned == 0
    ended = await any_store.end_leases(now_ms + 2 * LEASE_MS)
    assert (ended.returned, ended.expired) == (0, 1)
    assert await any_store.acknowledge(Acknowledge("bob", "ours"), now_ms + 2 * LEASE_MS) == (1, 1)
    assert await any_store.extend(Extend("bob", "ours", LEASE_MS), now_ms) == 0


async def test_a_lease_claim_that_nobody_received_is_undone(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    claim = await lease(any_store, [post], now_ms)
    assert await any_store.unclaim(claim, claim.ids) == 1
    assert await any_store.unclaim(claim, claim.ids) == 0
    assert await unread(any_store, now_ms) == [post.id]


async def test_a_resumed_stream_acknowledges_earlier_deliveries(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    first, late, now_ms = new_post(), new_post(), clock.now_ms()
    second = new_post()
    await any_store.insert([first, second])
    await lease(any_store, [first], now_ms, 1)
    await lease(any_store, [second], now_ms, 2)
    # It has a smaller id, but was delivered after the message that the stream names.
    await any_store.insert([late])
    await lease(any_store, [late], now_ms, 3)
    # The stream is closed, and its client received only the second delivery.
    await any_store.release(Release("bob", "ours"), now_ms)
    assert await any_store.resume(Resume("bob", second.id), now_ms) == (2, 2)
    assert await unread(any_store, now_ms) == [late.id]


async def test_a_message_of_two_streams_is_acknowledged_alone(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    other, named, now_ms = new_post(), new_post(), clock.now_ms()
    await any_store.insert([named])
    await lease(any_store, [named], now_ms, 1)
    await any_store.release(Release("bob", "ours"), now_ms)
    await any_store.insert([other])
    claim = new_claim(["bob"], [other.id, named.id], now_ms, lease_ms=LEASE_MS)
    await any_store.claim(claim)
    assert await any_store.resume(Resume("bob", named.id), now_ms) == (1, 1)
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    assert await unread(any_store, now_ms) == [other.id]


async def test_resuming_from_an_unknown_message_does_nothing(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    for last in ("nonsense", post.id):
        assert await any_store.resume(Resume("bob", last), now_ms) == (0, 0)
    await lease(any_store, [post], now_ms)
    assert await any_store.resume(Resume("eve", post.id), now_ms) == (0, 0)


async def test_an_audit_reports_lost_messages(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    read, short, again, returned = (
        new_post(),
        new_post(timeout_s=5),
        new_post(timeout_s=5),
        new_post(),
    )
    now_ms = clock.now_ms()
    await any_store.insert([read, short, again, returned])
    await lease(any_store, [read, short, again, returned], now_ms)
    whole, some = Acknowledge("bob", "ours"), Acknowledge("bob", "ours", (read.id, short.id))
    assert await any_store.audit(whole, now_ms) == Audit()
    await any_store.release(Release("bob", "ours", (returned.id,)), now_ms)
    assert await any_store.acknowledge(Acknowledge("bob", "ours", (read.id,)), now_ms) == (1, 1)
    late_ms = now_ms + 5001
    for command in (whole, some):
        # Before a sweep has ended the lease.
        assert await any_store.acknowledge(command, late_ms) == (1, 0)
    assert await any_store.audit(some, late_ms) == Audit((read.id,), (short.id,))
    audit = await any_store.audit(whole, late_ms)
    assert (audit.acknowledged, sorted(audit.lost)) == ((read.id,), sorted([short.id, again.id]))
    await any_store.end_leases(late_ms)
    audit = await any_store.audit(whole, late_ms)
    assert (audit.acknowledged, sorted(audit.lost)) == ((read.id,), sorted([short.id, again.id]))


async def test_an_audit_reports_messages_that_another_lease_took(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    read, relet, returned = new_post(), new_post(), new_post()
    posts, now_ms = [read, relet, returned], clock.now_ms()
    await any_store.insert(posts)
    await lease(any_store, posts, now_ms)
    await any_store.acknowledge(Acknowledge("bob", "ours", (read.id,)), now_ms)
    await any_store.release(Release("bob", "ours", (returned.id,)), now_ms)
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    for number in range(3):
        other = new_claim(["bob"], [relet.id, returned.id], now_ms, lease_ms=LEASE_MS)
        other = replace(other, token=delivery(f"another{number}"))
        await any_store.claim(other)
        audit = await any_store.audit(Acknowledge("bob", "ours"), now_ms)
        assert audit == Audit((read.id,), (relet.id,))
        await any_store.end_leases(now_ms + LEASE_MS + 1)
    assert await any_store.audit(Acknowledge("eve", "ours"), now_ms) == Audit()


async def test_a_message_delivered_again_to_its_stream_is_not_lost(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post, now_ms = new_post(), clock.now_ms()
    await any_store.insert([post])
    await lease(any_store, [post], now_ms, number=1)
    await any_store.end_leases(now_ms + LEASE_MS + 1)
    await lease(any_store, [post], now_ms, number=2)
    assert await any_store.audit(Acknowledge("bob", "ours"), now_ms) == Audit()
