"""The change stream reports arrivals of every kind, and its end is an error, never silence."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import TypeAlias, cast

import pytest

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.proxy import MongoProxy
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.errors import StoreUnavailable
from workers.store import change_stream
from workers.store.mongo import MongoStore

Arrivals: TypeAlias = AsyncGenerator[Collection[str] | None, None]


async def listen(store: MongoStore) -> Arrivals:
    """Start a change stream. It announces its begin with None."""
    arrivals = cast(Arrivals, store.arrivals())
    assert await anext(arrivals) is None
    return arrivals


async def next_arrival(arrivals: Arrivals) -> Collection[str] | None:
    """Return the next report with an arrival in it."""
    async with asyncio.timeout(30):
        while True:
            report = await anext(arrivals)
            if report is None or report:
                return report


async def test_posts_and_releases_are_reported(
    store: MongoStore, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    other = await open_store()
    arrivals = await listen(store)
    post = new_post()
    await other.insert([post])
    assert await next_arrival(arrivals) == {"bob"}
    claim = new_claim(["bob"], [post.id], clock.now_ms())
    await other.claim(claim)
    await other.unclaim(claim, [post.id])
    assert await next_arrival(arrivals) is None, "any inbox may have got a message"
    await arrivals.aclose()


async def test_a_dropped_collection_ends_the_stream(store: MongoStore, mongo: Messages) -> None:
    arrivals = await listen(store)
    await store.keep_indexes()
    mongo.drop()
    with pytest.raises(StoreUnavailable, match="the change stream ended"):
        await next_arrival(arrivals)
    assert store.indexes.is_due, "the indexes are gone as well"


async def test_a_stream_without_answers_is_an_error(
    open_store: OpenStore, mongo_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        store = await open_store(uri=proxy.uri)
        arrivals = await listen(store)
        monkeypatch.setattr(change_stream, "_GRACE_S", 0.2)
        monkeypatch.setattr(change_stream, "_HOLD_S", 0.1)
        proxy.hold["getMore"] = b""
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await next_arrival(arrivals)
        proxy.release()
        await store.close()
