"""Leases, keys and receipts when mongod's reply is lost: done once, and counted once."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import OpenStore
from tests.store.conftest import MakePost
from tests.support.proxy import MongoProxy
from tests.support.stores import new_batch, new_claim
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Claim,
    Extend,
    Key,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
)
from workers.errors import OutcomeUnknown
from workers.store.mongo import MongoStore


async def leased(store: MongoStore, posts: list[Post], now_ms: int) -> Claim:
    await store.insert(posts)
    claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=60_000)
    assert (await store.claim(claim)).ids == set(claim.ids)
    return claim


def lease_of(claim: Claim) -> str:
    return claim.token.partition(".")[0]


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_lease_operation_whose_reply_is_lost_is_done_once(
    mongo_uri: str,
    tmp_path: Path,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    losses: int,
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri)
        posts, now_ms = [new_post() for _ in range(5)], clock.now_ms()
        await store.insert(posts)
        proxy.lose_reply["update"] = losses
        claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=60_000)
        assert await store.claim(claim) == (set(claim.ids), False)
        lease = lease_of(claim)
        proxy.lose_reply["update"] = losses
        assert await store.extend(Extend("bob", lease, 90_000), clock.now_ms()) == 5
        proxy.lose_reply["update"] = losses
        two = (posts[0].id, posts[1].id)
        assert await store.acknowledge(Acknowledge("bob", lease, two), clock.now_ms()) == (2, 2)
        proxy.lose_reply["update"] = losses
        assert await store.resume(Resume("bob", posts[2].id), clock.now_ms()) == (1, 1)
        proxy.lose_reply["update"] = losses
        release = Release("bob", lease, is_delivered=False)
        assert await store.release(release, clock.now_ms()) == (2, 2)
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}
        found = await store.find_unread(["bob"], 10, clock.now_ms())
        assert [each.deliveries for each in found.messages["bob"]] == [0, 0]
        await store.close()


async def test_a_delayed_release_whose_reply_is_lost_is_done_once(
    mongo_uri: str, tmp_path: Path, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri)
        posts, now_ms = [new_post(), new_post()], clock.now_ms()
        lease = lease_of(await leased(store, posts, now_ms))
        proxy.lose_reply["update"] = 2
        release = Release("bob", lease, is_delivered=False, delay_ms=30_000)
        assert await store.release(release, now_ms) == (2, 2)
        assert (await store.end_leases(now_ms)).first_ms == now_ms + 30_000
        assert await store.count_unread(["bob"], now_ms) == {}
        assert await store.acknowledge(Acknowledge("bob", lease), now_ms) == (0, 0)
        await store.close()


async def test_a_key_and_a_receipt_survive_lost_replies(
    mongo_uri: str, tmp_path: Path, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri)
        now_ms = clock.now_ms()
        post = new_post(key=Key("k", "b"), receipt="r")
        proxy.lose_reply["insert"] = 2
        assert await store.insert([post]) == [None]
        proxy.lose_reply["insert"] = 2
        assert await store.insert([new_post(key=Key("k", "b"))]) == [post.id]
        batch = new_batch("key", "bob", (post.id,), now_ms + 60_000)
        proxy.lose_reply["insert"] = 2
        assert await store.record_batch([batch], now_ms) == [batch]
        proxy.lose_reply["update"] = 2
        status, _ = await store.revoke(Revoke(post.id, "r"), now_ms)
        assert status == MessageStatus("revoked", now_ms)
        assert await store.track(Track(post.id, "r"), now_ms) == MessageStatus("revoked", now_ms)
        await store.close()


async def test_unconfirmed_writes_are_counted_later(
    mongo_uri: str, tmp_path: Path, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    plain, keyed, revoked, dead = new_post(), new_post(), new_post(receipt="r"), new_post()
    untroubled, now_ms = await open_store(), clock.now_ms()
    claim = await leased(untroubled, [plain], now_ms)
    await untroubled.insert([keyed, revoked, dead])
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri, timeout_s=2)
        proxy.lose_reply.update({"insert": 1000, "update": 1000})
        errors, *others = await asyncio.gather(
            store.insert([new_post() for _ in range(3)]),
            store.acknowledge(Acknowledge("bob", lease_of(claim)), clock.now_ms()),
            store.claim(new_claim(["bob"], [keyed.id], clock.now_ms(), key="key")),
            store.revoke(Revoke(revoked.id, "r"), clock.now_ms()),
            return_exceptions=True,
        )
        assert isinstance(errors, list)
        assert [type(error) for error in (*errors, *others)] == [OutcomeUnknown] * 6
        with pytest.raises(OutcomeUnknown):
            await store.expire(dead.expires_ms + 2000)
        proxy.lose_reply.clear()
        counts: dict[str, int] = {}

        async def all_told() -> bool:
            for status, messages in (await store.count_resolved()).items():
                counts[status] = counts.get(status, 0) + messages
            return not store._unresolved

        await eventually(all_told)
        # The expiry also marked the three messages whose insert was not confirmed.
        assert counts == {"accepted": 3, "read": 2, "revoked": 1, "expired": 4}
        assert await store.count_resolved() == {}
        await asyncio.sleep(0)
        await store.close()
