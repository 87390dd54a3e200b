"""Behind mongos, only messages in schema 2 that are sharded by route are accepted.

There is no mongos here: a mongod says that it is one, and has its description of the collection.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from tests.conftest import OpenStore
from tests.store.conftest import Messages, set_version
from workers.store import driver
from workers.store.connection import StoreMisconfigured
from workers.store.diagnostics import examine
from workers.store.driver import Document, Driver
from workers.store.finding import Finding
from workers.store.layout import NEWEST
from workers.store.sharding import SHARD_KEY, why_not_routed


@pytest.fixture(autouse=True)
def through_mongos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `hello` is answered as by a mongos."""

    async def hello(client: Any) -> Document:
        answer = await driver.hello(client)
        del answer["setName"]
        return {**answer, "msg": "isdbgrid"}

    monkeypatch.setattr("workers.store.connection.hello", hello)
    monkeypatch.setattr("workers.store.diagnostics.hello", hello)


@pytest.fixture
def shard(mongo: Messages) -> Iterator[Any]:
    """Describes the collection as sharded by a key."""
    collections = mongo.database.client["config"]["collections"]

    def describe(key: Document, **fields: Any) -> None:
        collections.insert_one({"_id": mongo.full_name, "key": key, **fields})

    yield describe
    collections.delete_one({"_id": mongo.full_name})


async def schema_finding(uri: str, driver: Driver, database: str) -> Finding:
    found = [each async for each in examine(uri, driver, database, 5.0)]
    (schema,) = [each for each in found if each.what == "schema"]
    return schema


@pytest.mark.parametrize(
    "key", [{"username": "hashed"}, {"_id": 1}, {"username": 1, "route": 1}, {"route": 1}]
)
async def test_messages_with_another_shard_key_are_refused(
    open_store: OpenStore, mongo_uri: str, driver: Driver, database: str, shard: Any, key: Document
) -> None:
    shard(key)
    with pytest.raises(StoreMisconfigured, match=r"must be \{route: 1, username: 1\}"):
        await open_store()
    found = await schema_finding(mongo_uri, driver, database)
    assert found.state == "fail"
    assert "docs/sharding.md" in found.detail


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (SHARD_KEY, {}),
        ({"_id": 1}, {"unsplittable": True}),
        ({"username": "hashed"}, {"dropped": True}),
        (None, {}),
    ],
    ids=["by route", "not sharded", "dropped", "unknown"],
)
async def test_messages_that_are_sharded_by_route_are_accepted(
    open_store: OpenStore,
    mongo_uri: str,
    driver: Driver,
    database: str,
    shard: Any,
    key: Document | None,
    fields: Document,
) -> None:
    if key is not None:
        shard(dict(key), **fields)
    store = await open_store()
    assert store._is_routed
    assert (await schema_finding(mongo_uri, driver, database)).state == "ok"


async def test_the_old_schema_is_refused_behind_mongos(
    open_store: OpenStore, mongo: Messages, mongo_uri: str, driver: Driver, database: str
) -> None:
    set_version(mongo, 1)
    with pytest.raises(StoreMisconfigured, match="chat migrate"):
        await open_store()
    found = await schema_finding(mongo_uri, driver, database)
    assert (found.state, "chat migrate" in found.detail) == ("fail", True)


class Router:
    """A database whose user may not read `config`, seen through mongos."""

    def __init__(self, is_sharded: bool, *indexes: Document) -> None:
        self.name = "chat"
        self.client = {"config": {"collections": self}}
        self._is_sharded = is_sharded
        self._indexes = indexes

    async def find_one(self, _: Document) -> None:
        raise OperationFailure("not authorized on config", 13)

    async def command(self, command: Document) -> Document:
        if "collStats" in command:
            return {"sharded": self._is_sharded}
        entries = [{"spec": {"name": str(n), **each}} for n, each in enumerate(self._indexes)]
        return {"cursor": {"firstBatch": entries}}


BY_ROUTE = {"key": dict(SHARD_KEY)}
PARTIAL = {**BY_ROUTE, "partialFilterExpression": {"unread": True}}


@pytest.mark.parametrize(
    ("router", "is_accepted"),
    [
        (Router(False), True),
        (Router(True, BY_ROUTE), True),
        (Router(True, PARTIAL), False),
        (Router(True, {"key": {"username": "hashed"}}), False),
    ],
    ids=["not sharded", "by route", "a partial index", "by another key"],
)
async def test_a_hidden_shard_key_is_known_by_its_index(router: Any, is_accepted: bool) -> None:
    reason = await why_not_routed(router, NEWEST)
    assert (reason is None) == is_accepted
