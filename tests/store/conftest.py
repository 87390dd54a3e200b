"""Fixtures for tests of the store."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from tornado.ioloop import IOLoop

from tests.conftest import OpenStore
from tests.support.stores import MemoryStore
from workers.clock import DatabaseClock
from workers.commands import Key, Post
from workers.ids import IdSource
from workers.routing import route_of
from workers.store.base import Store
from workers.store.layout import LAYOUTS, Layout

MakePost: TypeAlias = Callable[..., Post]
Messages: TypeAlias = Collection[dict[str, Any]]


@pytest.fixture
def new_post(clock: DatabaseClock) -> MakePost:
    """Creates posts with new ids that are `age_s` seconds old and live for `timeout_s`."""
    ids = IdSource()

    def make(
        username: str = "bob",
        text: str = "hello",
        timeout_s: int = 60,
        age_s: float = 0,
        key: Key | None = None,
        receipt: str = "",
    ) -> Post:
        created_ms = clock.now_ms() - int(age_s * 1000)
        message_id = ids.next(clock.now_ms(), route_of(username))
        size = len(text.encode("utf-8", "replace"))
        expires_ms = created_ms + timeout_s * 1000
        return Post(message_id, username, text, size, created_ms, expires_ms, key, receipt)

    return make


@pytest.fixture(params=["mongo", "memory"])
def any_store(request: pytest.FixtureRequest, io_loop: IOLoop, open_store: OpenStore) -> Store:
    """The real store, and the small store that replaces it in tests of the engine."""
    if request.param == "memory":
        return MemoryStore()
    store: Store = io_loop.run_sync(open_store)
    return store


@pytest.fixture
def mongo(mongo_uri: str, database: str) -> Iterator[Messages]:
    """The collection of messages, accessed directly and not through the store."""
    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        yield client[database]["messages"]


def set_version(mongo: Messages, version: int) -> None:
    """Let the database carry a schema version, as a change of the schema does."""
    fleet = mongo.database["fleet"]
    fleet.update_one({"_id": "schema"}, {"$set": {"version": version}}, upsert=True)


@pytest.fixture(params=sorted(LAYOUTS), ids=lambda version: f"schema {version}")
def each_schema(request: pytest.FixtureRequest, mongo: Messages) -> Layout:
    """The database has each schema version in turn, before a store is opened on it."""
    set_version(mongo, request.param)
    return LAYOUTS[request.param]
