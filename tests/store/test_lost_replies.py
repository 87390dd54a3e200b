"""Commands that mongod carried out, but whose reply was lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo.errors import ServerSelectionTimeoutError

from tests.conftest import OpenStore
from tests.store.conftest import MakePost
from tests.support.proxy import MongoProxy
from tests.support.stores import new_batch, new_claim
from workers.clock import DatabaseClock
from workers.commands import Claim, DiscardedClaims, Key
from workers.errors import KeyReused, OutcomeUnknown, StoreUnavailable
from workers.store.mongo import MongoStore

#: How long a store tries whose operation is never answered; it has to be opened in that, too.
SHORT_S = 1.5


@pytest.fixture
def behind_proxy(mongo_uri: str, tmp_path: Path, open_store: OpenStore) -> Any:
    """Opens stores whose connections go through a proxy."""

    @asynccontextmanager
    async def make(timeout_s: float = 4.0) -> AsyncIterator[tuple[MongoStore, MongoProxy]]:
        async with MongoProxy(mongo_uri, tmp_path) as proxy:
            store = await open_store(uri=proxy.uri, timeout_s=timeout_s)
            try:
                yield store, proxy
            finally:
                await store.close()

    return make


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_an_insert_whose_reply_is_lost_is_stored_once(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock, losses: int
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.lose_reply["insert"] = losses
        assert await store.insert([new_post(), new_post()]) == [None, None]
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}
        assert proxy.sent["insert"] == losses + 1


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_a_keyed_post_whose_reply_is_lost_recognizes_itself(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock, losses: int
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.lose_reply["update"] = losses
        one, two = new_post(key=Key("1", "a")), new_post(key=Key("2", "b"))
        assert await store.insert([one, new_post(), two]) == [None, None, None]
        repeated = [new_post(key=Key("1", "a")), new_post(key=Key("2", "another"))]
        same, reused = await store.insert(repeated)
        assert same == one.id
        assert isinstance(reused, KeyReused)
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 3}


async def test_an_insert_that_never_arrives_is_sent_again(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.cut_before["insert"] = 3
        assert await store.insert([new_post()]) == [None]
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 1}


async def test_an_unconfirmed_insert_has_an_unknown_outcome(
    behind_proxy: Any, new_post: MakePost
) -> None:
    async with behind_proxy(timeout_s=SHORT_S) as (store, proxy):
        proxy.lose_reply["insert"] = 1000
        errors = await store.insert([new_post(), new_post()])
        assert [type(error) for error in errors] == [OutcomeUnknown, OutcomeUnknown]


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_a_claim_whose_reply_is_lost_is_found_by_its_token(
    behind_proxy: Any,
    new_post: MakePost,
    clock: DatabaseClock,
    registry: CollectorRegistry,
    losses: int,
) -> None:
    async with behind_proxy() as (store, proxy):
        posts = [new_post() for _ in range(20)]
        await store.insert(posts)
        ids = [post.id for post in posts]
        proxy.lose_reply["update"] = losses
        assert await store.claim(new_claim(["bob"], ids, clock.now_ms())) == (set(ids), False)
        assert proxy.sent["update"] == losses + 1
        assert registry.get_sample_value("chat_claims_resolved_total") == 1


async def test_a_lost_claim_takes_nothing_from_a_faster_node(
    behind_proxy: Any, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    rival = await open_store(node="rival")
    async with behind_proxy() as (store, proxy):
        posts = [new_post() for _ in range(20)]
        await store.insert(posts)
        ids = [post.id for post in posts]
        theirs = (await rival.claim(new_claim(["bob"], ids[:7], clock.now_ms()))).ids
        proxy.lose_reply["update"] = 1
        mine = (await store.claim(new_claim(["bob"], ids, clock.now_ms()))).ids
        assert mine | theirs == set(ids)
        assert not mine & theirs


async def test_an_unconfirmed_claim_has_an_unknown_outcome(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with behind_proxy(timeout_s=SHORT_S) as (store, proxy):
        post = new_post()
        await store.insert([post])
        proxy.lose_reply["update"] = 1000
        with pytest.raises(OutcomeUnknown):
            await store.claim(new_claim(["bob"], [post.id], clock.now_ms()))


async def test_an_applied_claim_is_unknown_if_the_database_then_fails(
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    store: MongoStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def finds_no_server(*_: object) -> set[str]:
        raise ServerSelectionTimeoutError("nobody there")

    first = await open_store(timeout_s=SHORT_S)
    theirs, mine = new_post(), new_post()
    await first.insert([theirs, mine])
    await store.claim(new_claim(["bob"], [theirs.id], clock.now_ms()))
    # Another node has some of the messages, so the store searches by token, and gets no answer.
    monkeypatch.setattr(first, "_claimed", finds_no_server)
    with pytest.raises(OutcomeUnknown):
        await first.claim(new_claim(["bob"], [theirs.id, mine.id], clock.now_ms()))
    assert await store.count_unread(["bob"], clock.now_ms()) == {}


async def test_a_claim_that_was_never_sent_claims_nothing(
    behind_proxy: Any,
    new_post: MakePost,
    clock: DatabaseClock,
    store: MongoStore,
) -> None:
    async with behind_proxy(timeout_s=SHORT_S) as (lost, proxy):
        post = new_post()
        await store.insert([post])
        proxy.cut_before["update"] = 1000
        with pytest.raises(OutcomeUnknown):
            await lost.claim(new_claim(["bob"], [post.id], clock.now_ms()))
    assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 1}


@pytest.mark.parametrize("kind", ["plain", "lease", "keyed"])
async def test_an_abandoned_claim_that_arrives_late_takes_nothing(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock, store: MongoStore, kind: str
) -> None:
    async with behind_proxy() as (late, proxy):
        post = new_post()
        await store.insert([post])
        batch = new_batch("key", "bob", [post.id], clock.now_ms() + 60_000)
        claim = new_claim(
            *(["bob"], [post.id], clock.now_ms()),
            valid_s=3600,
            lease_ms=30_000 if kind == "lease" else None,
            key="key" if kind == "keyed" else "",
            batch=batch.token,
        )
        abandoned: Claim | DiscardedClaims = claim
        if kind == "keyed":
            # Another process discards the batch, and does not know of this claim.
            abandoned = DiscardedClaims(batch, clock.now_ms())
        proxy.hold["update"] = b""
        claiming = asyncio.create_task(late.claim(claim))
        await proxy.held.wait()
        # The claim's time is not over.
        await store.void(abandoned, claim.ids)
        assert await store.unclaim(abandoned, claim.ids) == 0
        proxy.release()
        assert (await claiming).ids == set()
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 1}


async def test_a_claim_that_arrives_after_its_time_takes_nothing(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock, store: MongoStore
) -> None:
    async with behind_proxy() as (killed, proxy):
        post = new_post()
        await store.insert([post])
        claim = new_claim(["bob"], [post.id], clock.now_ms(), valid_s=0.3)
        proxy.hold["update"] = b""
        claiming = asyncio.create_task(killed.claim(claim))
        await proxy.held.wait()
        while clock.now_ms() <= claim.until_ms:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        # Nobody rolls back the claim of a process that was killed.
        proxy.release()
        assert (await claiming).ids == set()
        assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 1}


async def test_an_unclaimed_message_that_expires_is_counted(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    post = new_post(timeout_s=1)
    await store.insert([post])
    claim = new_claim(["bob"], [post.id], clock.now_ms())
    await store.claim(claim)
    assert await store.expire(post.expires_ms + 2000) == 0
    await store.unclaim(claim, claim.ids)
    assert await store.expire(post.expires_ms + 2000) == 1


async def test_a_search_whose_reply_is_lost_is_repeated(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with behind_proxy() as (store, proxy):
        await store.insert([new_post()])
        proxy.lose_reply["find"] = 1
        found = await store.find_unread(["bob"], 10, clock.now_ms())
        assert len(found.messages["bob"]) == 1


async def test_an_unavailable_database_is_reported(
    behind_proxy: Any, new_post: MakePost, clock: DatabaseClock
) -> None:
    async with behind_proxy(timeout_s=SHORT_S) as (store, proxy):
        proxy.cut_before.update({"find": 1000, "hello": 1000})
        with pytest.raises(StoreUnavailable):
            await store.find_unread(["bob"], 10, clock.now_ms())
