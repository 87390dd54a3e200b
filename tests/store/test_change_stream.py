"""The change stream reports arrivals of every kind, and its end is an error, never silence."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.proxy import MongoProxy
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import Release
from workers.errors import StoreUnavailable
from workers.store import change_stream
from workers.store.base import Arrivals, ArrivalStream
from workers.store.mongo import MongoStore


async def next_arrival(stream: ArrivalStream) -> Arrivals:
    """Return the next report with an arrival in it."""
    async with asyncio.timeout(30):
        while True:
            arrivals = await stream.next()
            assert arrivals is not None, "the stream is closed"
            if arrivals.usernames or arrivals.is_any:
                return arrivals


@pytest.mark.parametrize("usernames", [["bob"], ["eve", "bob"], None])
async def test_posts_and_releases_are_reported(
    store: MongoStore,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    usernames: list[str] | None,
) -> None:
    other = await open_store()
    stream = await store.arrivals(usernames)
    post = new_post(timeout_s=600)
    await other.insert([post])
    assert await next_arrival(stream) == Arrivals({"bob"})
    for _ in range(2):
        claim = new_claim(["bob"], [post.id], clock.now_ms())
        await other.claim(claim)
        await other.unclaim(claim, [post.id])
        assert await next_arrival(stream) == Arrivals({"bob"})
    for number in range(3):
        lease = new_claim(["bob"], [post.id], clock.now_ms(), lease_ms=(60_000, 1, 60_000)[number])
        assert (await other.claim(lease)).ids
        match number:
            case 0:
                await other.release(Release("bob", lease.token.partition(".")[0]), clock.now_ms())
            case 1:
                await other.end_leases(clock.now_ms() + 1000)
            case 2:
                await other.unclaim(lease, [post.id])
        assert await next_arrival(stream) == Arrivals({"bob"})
    await stream.close()


async def test_the_database_selects_the_inboxes_that_are_watched(
    store: MongoStore, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    other = await open_store()
    stream = await store.arrivals(["bob"])
    posts = [new_post("eve", timeout_s=600) for _ in range(20)]
    await other.insert(posts)
    lease = new_claim(["eve"], [post.id for post in posts], clock.now_ms(), lease_ms=60_000)
    await other.claim(lease)
    await other.release(Release("eve", lease.token.partition(".")[0]), clock.now_ms())
    await other.insert([new_post("bob")])
    # One report: none of the earlier events has ended the database's wait.
    assert await stream.next() == Arrivals({"bob"})
    await stream.close()


async def test_an_update_that_names_no_inbox_may_concern_any(
    store: MongoStore, mongo: Messages, new_post: MakePost
) -> None:
    post = new_post("eve")
    await store.insert([post])
    stream = await store.arrivals(["bob"])
    mongo.update_one({"_id": post.id}, {"$unset": {"unread": ""}})
    mongo.update_one({"_id": post.id}, {"$set": {"unread": True}})
    assert await next_arrival(stream) == Arrivals(set(), is_any=True)
    await stream.close()


@pytest.mark.parametrize("is_event_last", [True, False])
async def test_a_stream_continues_where_another_ended(
    store: MongoStore, mongo: Messages, new_post: MakePost, is_event_last: bool
) -> None:
    first = await store.arrivals(["ann"])
    if is_event_last:
        await store.insert([new_post("ann")])
        assert await next_arrival(first) == Arrivals({"ann"})
    else:
        # Something that concerns no inbox moves the position on.
        mongo.database["others"].insert_one({})
        assert await first.next() == Arrivals(set())
    await store.insert([new_post("ann"), new_post("bob"), new_post("eve")])
    second = await store.arrivals(["ann", "bob"], first)
    await first.close()
    assert await first.next() is None
    assert await next_arrival(second) == Arrivals({"ann", "bob"})
    await second.close()


async def test_a_closed_stream_returns_from_its_last_request(
    store: MongoStore, new_post: MakePost
) -> None:
    stream = await store.arrivals(["bob"])
    reading = asyncio.create_task(stream.next())
    await asyncio.sleep(0.05)
    await stream.close()
    await stream.close()
    await store.insert([new_post("bob")])
    assert await reading in (None, Arrivals({"bob"}))
    assert await stream.next() is None


async def test_a_dropped_collection_ends_the_stream(store: MongoStore, mongo: Messages) -> None:
    stream = await store.arrivals(["bob"])
    await store.keep_indexes()
    mongo.drop()
    with pytest.raises(StoreUnavailable, match="the change stream ended"):
        await next_arrival(stream)
    assert store.indexes.is_due, "the indexes are gone as well"
    await stream.close()


async def test_a_stream_without_answers_is_an_error(
    open_store: OpenStore, mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri)
        stream = await store.arrivals(["bob"])
        monkeypatch.setattr(change_stream, "_GRACE_S", 0.2)
        monkeypatch.setattr(change_stream, "_HOLD_S", 0.1)
        proxy.hold["getMore"] = b""
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await next_arrival(stream)
        proxy.release()
        await stream.close()
        await store.close()
