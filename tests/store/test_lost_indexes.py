"""Indexes that an operator drops or changes while the store runs."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo.errors import OperationFailure

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from workers.clock import DatabaseClock
from workers.commands import Key
from workers.errors import IndexMissing
from workers.store import schema
from workers.store.layout import NEWEST, Layout
from workers.store.mongo import MongoStore
from workers.store.schema import COLLECTION, READS, IndexMismatch

KEY = Key("a" * 8, "b" * 8)
INBOX_INDEX, KEY_INDEX = NEWEST.inbox_index, NEWEST.key_index
INDEXES = schema.indexes_of(NEWEST)
EVERY_INDEX = [(collection, name) for collection, names in INDEXES.items() for name in names]


@pytest.fixture(autouse=True)
def check_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the indexes on every call, without a pause."""
    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.READ_VERSION_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.CHECK_ALL_EVERY_S", 0.0)


def all_there(mongo: Messages) -> bool:
    """Return whether the database has all required indexes."""
    there = {
        (collection, name)
        for collection in INDEXES
        for name in mongo.database[collection].index_information()
    }
    return set(EVERY_INDEX) <= there


@pytest.mark.parametrize(("collection", "name"), EVERY_INDEX)
async def test_a_dropped_index_is_created_again(
    store: MongoStore, mongo: Messages, collection: str, name: str
) -> None:
    mongo.database[collection].drop_index(name)
    await store.keep_indexes()
    assert all_there(mongo)
    assert store.indexes.fault is None


@pytest.mark.parametrize("lost", ["messages", "reads", "database"])
async def test_a_dropped_collection_is_created_again(
    store: MongoStore, mongo: Messages, lost: str
) -> None:
    if lost == "database":
        mongo.database.client.drop_database(mongo.database.name)
    else:
        mongo.database.drop_collection(lost)
    await store.keep_indexes()
    assert all_there(mongo)


async def test_no_keyed_post_is_stored_without_the_unique_index(
    store: MongoStore, new_post: MakePost, mongo: Messages
) -> None:
    mongo.drop_index(KEY_INDEX)
    keyed, plain = new_post(key=KEY), new_post()
    refused, stored = await store.insert([keyed, plain])
    assert isinstance(refused, IndexMissing)
    assert stored is None
    assert mongo.count_documents({}) == 1


async def test_a_key_stays_unique_while_indexes_are_dropped(
    store: MongoStore, open_store: OpenStore, new_post: MakePost, mongo: Messages
) -> None:
    """Two nodes keep posting with one key while the unique index is dropped and created."""
    nodes = store, await open_store(node="other")
    stored: list[object] = []
    is_over = False

    async def post(node: MongoStore) -> None:
        while not is_over:
            stored.extend(await node.insert([new_post(key=KEY)]))
            # A node that misses the index refuses without asking the database.
            await asyncio.sleep(0.001)

    async def drop_and_make() -> None:
        nonlocal is_over
        for _ in range(8):
            with suppress(OperationFailure):  # It was dropped already.
                await asyncio.to_thread(mongo.drop_index, KEY_INDEX)
            await asyncio.sleep(0.01)
            for node in nodes:
                await node.keep_indexes()
        is_over = True

    await asyncio.gather(post(nodes[0]), post(nodes[1]), post(nodes[1]), drop_and_make())
    for node in nodes:
        # A post of the last round may have missed the index and reported it late.
        await node.keep_indexes()
        stored.extend(await node.insert([new_post(key=KEY)]))
    assert mongo.count_documents({"key.hash": KEY.hash}) == 1
    assert stored.count(None) == 1


async def test_a_missing_inbox_index_is_reported_and_created(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    mongo: Messages,
    registry: CollectorRegistry,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mongo.drop()
    await store.insert([new_post()])
    with pytest.raises(IndexMissing):
        await store.find_unread(["bob"], 10, clock.now_ms())
    assert store.indexes.fault is not None
    assert registry.get_sample_value("chat_indexes_missing") == 1
    await store.keep_indexes()
    assert store.indexes.fault is None
    assert registry.get_sample_value("chat_indexes_missing") == 0
    found = await store.find_unread(["bob"], 10, clock.now_ms())
    assert len(found.messages["bob"]) == 1


async def test_a_lost_ttl_index_is_noticed_without_an_operation(
    store: MongoStore, mongo: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make_nothing(*_: object) -> None:
        raise OperationFailure("not now")

    monkeypatch.setattr("workers.store.index_keeper.create_indexes", make_nothing)
    mongo.database[READS].drop_index("purge")
    with pytest.raises(Exception, match="not now"):
        await store.keep_indexes()
    assert store.indexes.fault is not None
    assert "reads.purge" in store.indexes.fault


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (KEY_INDEX, {"partialFilterExpression": {"key.hash": {"$exists": True}}}),
        ("purge", {"expireAfterSeconds": 3600}),
    ],
)
async def test_a_changed_index_refuses_keys_until_it_is_dropped(
    store: MongoStore, mongo: Messages, new_post: MakePost, name: str, options: dict[str, Any]
) -> None:
    mongo.drop_index(name)
    mongo.create_index(list(INDEXES[COLLECTION][name]["key"].items()), name=name, **options)
    await store.keep_indexes()
    assert store.indexes.fault is not None
    assert f"dropIndex('{name}')" in store.indexes.fault
    refused, stored = await store.insert([new_post(key=KEY), new_post()])
    assert (type(refused), stored) == (IndexMissing, None)
    mongo.drop_index(name)
    await store.keep_indexes()
    assert store.indexes.fault is None
    assert await store.insert([new_post(key=KEY)]) == [None]


async def test_duplicate_keys_are_reported_with_a_solution(
    open_store: OpenStore, new_post: MakePost, mongo: Messages
) -> None:
    mongo.insert_many([{"_id": f"m{n}", "key": {"hash": "same", "body": ""}} for n in range(3)])
    with pytest.raises(IndexMismatch) as caught:
        await open_store()
    reason = str(caught.value)
    assert "\n" not in reason
    assert "m0, m1, m2" in reason
    assert "docs/database.md" in reason
    assert "E11000" not in reason
    mongo.update_many({"_id": {"$in": ["m1", "m2"]}}, {"$unset": {"key": ""}})
    await open_store()


async def test_an_obsolete_index_is_dropped_after_a_rolling_update(
    store: MongoStore, mongo: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    (obsolete,) = schema.OBSOLETE[COLLECTION]
    mongo.create_index(
        [("username", 1), ("_id", 1)], name=obsolete, partialFilterExpression={"unread": True}
    )
    await store.keep_indexes()
    assert obsolete in mongo.index_information()
    monkeypatch.setattr("workers.store.index_keeper.OBSOLETE_AFTER_S", 0.0)
    await store.keep_indexes()
    assert obsolete not in mongo.index_information()
    assert INBOX_INDEX in mongo.index_information()


async def test_complete_indexes_are_rarely_listed(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0

    async def list_and_count(
        database: Any, layout: Layout, collections: Iterable[str]
    ) -> schema.Listing:
        nonlocal listed
        listed += 1
        return await schema.list_indexes(database, layout, collections)

    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 3600.0)
    monkeypatch.setattr("workers.store.index_keeper.list_indexes", list_and_count)
    for _ in range(20):
        await store.keep_indexes()
    assert listed == 1
    store.indexes.report("one is missing")
    await store.keep_indexes()
    assert listed == 2


async def test_indexes_that_only_free_space_are_seldom_listed(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: Counter[str] = Counter()

    async def list_and_count(
        database: Any, layout: Layout, collections: Iterable[str]
    ) -> schema.Listing:
        listed.update(list(collections))
        return await schema.list_indexes(database, layout, collections)

    monkeypatch.setattr("workers.store.index_keeper.CHECK_ALL_EVERY_S", 3600.0)
    monkeypatch.setattr("workers.store.index_keeper.list_indexes", list_and_count)
    for _ in range(20):
        await store.keep_indexes()
    assert listed == {schema.COLLECTION: 20, schema.READS: 1}
    store.indexes.check_soon()
    await store.keep_indexes()
    assert listed[schema.READS] == 2
