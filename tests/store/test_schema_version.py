"""The schema version: new databases get the newest one, nodes follow it, and refuse one to come."""

import asyncio
import threading
from collections import Counter
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from pymongo import IndexModel, monitoring
from pymongo.errors import OperationFailure, WriteError

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages, set_version
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import Key, Revoke, Track
from workers.routing import route_of
from workers.store.connection import StoreMisconfigured
from workers.store.diagnostics import examine
from workers.store.driver import Driver
from workers.store.layout import LAYOUT_1, LAYOUT_2, LAYOUTS, NEWEST, Layout
from workers.store.mongo import MongoStore
from workers.store.schema import COLLECTION, VALIDATOR, indexes_of
from workers.store.schema_version import find_layout


@pytest.fixture
def check_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the schema and the indexes on every call, without a pause."""
    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.READ_VERSION_EVERY_S", 0.0)


BOTH = pytest.mark.parametrize(
    "layout", LAYOUTS.values(), ids=lambda each: f"schema {each.version}"
)


def create(mongo: Messages, layout: Layout) -> None:
    """Create the indexes of a layout, like a node of any version."""
    for name, wanted in indexes_of(layout)[COLLECTION].items():
        options = {option: value for option, value in wanted.items() if option != "key"}
        mongo.create_index(list(wanted["key"].items()), name=name, **options)


def drop(mongo: Messages, layout: Layout) -> None:
    """Drop the indexes that only this layout has."""
    for name in layout.indexes:
        mongo.drop_index(name)


def version_of(mongo: Messages) -> int | None:
    document = mongo.database["fleet"].find_one({"_id": "schema"})
    return None if document is None else document["version"]


async def test_a_new_database_gets_the_newest_schema(
    open_store: OpenStore, mongo: Messages
) -> None:
    await asyncio.gather(*(open_store() for _ in range(4)))
    assert version_of(mongo) == NEWEST.version
    assert mongo.index_information().keys() == {"_id_", *indexes_of(NEWEST)[COLLECTION]}
    assert mongo.options()["validator"] == VALIDATOR


async def test_the_database_refuses_messages_without_a_route(
    store: MongoStore, new_post: MakePost, mongo: Messages
) -> None:
    await store.insert([new_post()])
    document = mongo.find_one()
    assert document is not None
    assert document.pop("route") == route_of("bob")
    with pytest.raises(WriteError, match="failed validation"):
        mongo.insert_one({**document, "_id": "f" * 32})


async def test_an_old_database_keeps_its_schema(
    open_store: OpenStore, mongo: Messages, new_post: MakePost
) -> None:
    create(mongo, LAYOUT_1)
    store = await open_store()
    assert (store._layout, version_of(mongo)) == (LAYOUT_1, None)
    assert mongo.index_information().keys() == {"_id_", *indexes_of(LAYOUT_1)[COLLECTION]}
    await store.insert([new_post()])
    document = mongo.find_one()
    assert document is not None
    assert document["route"] == route_of("bob"), "it needs no work when the schema changes"


async def test_messages_without_indexes_are_of_the_old_schema(
    open_store: OpenStore, mongo: Messages
) -> None:
    mongo.insert_one({"_id": "a", "username": "bob"})
    assert (await open_store())._layout is LAYOUT_1


@BOTH
async def test_without_a_version_the_indexes_decide(
    open_store: OpenStore, mongo: Messages, layout: Layout
) -> None:
    create(mongo, layout)
    assert (await open_store())._layout is layout


async def test_with_the_indexes_of_both_the_old_schema_holds(
    open_store: OpenStore, mongo: Messages
) -> None:
    create(mongo, LAYOUT_2)
    create(mongo, LAYOUT_1)
    assert (await open_store())._layout is LAYOUT_1


async def test_a_newer_schema_is_refused_at_the_start(
    open_store: OpenStore, mongo: Messages
) -> None:
    set_version(mongo, NEWEST.version + 1)
    with pytest.raises(StoreMisconfigured) as caught:
        await open_store()
    reason = str(caught.value)
    assert "schema version 3" in reason
    assert "use the version of the service that changed it" in reason
    assert "\n" not in reason
    assert COLLECTION not in mongo.database.list_collection_names()


@pytest.mark.usefixtures("check_always")
async def test_a_newer_schema_stops_the_work_on_indexes(
    store: MongoStore, mongo: Messages, new_post: MakePost
) -> None:
    set_version(mongo, NEWEST.version + 1)
    drop(mongo, NEWEST)
    await store.keep_indexes()
    assert "schema version 3" in str(store.indexes.fault)
    assert not mongo.index_information().keys() & NEWEST.indexes.keys()
    (refused,) = await store.insert([new_post(key=Key("a" * 8, "b" * 8))])
    assert "schema version 3" in str(refused)
    set_version(mongo, NEWEST.version)
    await store.keep_indexes()
    assert store.indexes.fault is None


@pytest.mark.usefixtures("check_always")
@pytest.mark.parametrize(("old", "new"), [(LAYOUT_1, LAYOUT_2), (LAYOUT_2, LAYOUT_1)])
async def test_a_running_node_follows_the_schema(
    open_store: OpenStore,
    mongo: Messages,
    new_post: MakePost,
    clock: DatabaseClock,
    old: Layout,
    new: Layout,
) -> None:
    set_version(mongo, old.version)
    store = await open_store()
    await store.insert([new_post(), new_post("eve")])
    create(mongo, new)
    set_version(mongo, new.version)
    await store.keep_indexes()
    assert store._layout is new
    drop(mongo, old)
    await store.keep_indexes()
    found = await store.find_unread(["bob", "eve"], 10, clock.now_ms())
    assert found.messages.keys() == {"bob", "eve"}
    assert not mongo.index_information().keys() & old.indexes.keys(), "nothing creates them again"


@pytest.mark.parametrize(("old", "new"), [(LAYOUT_1, LAYOUT_2), (LAYOUT_2, LAYOUT_1)])
async def test_a_late_node_creates_no_index_of_the_old_schema(
    open_store: OpenStore,
    mongo: Messages,
    monkeypatch: pytest.MonkeyPatch,
    registry: CollectorRegistry,
    old: Layout,
    new: Layout,
) -> None:
    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 0.0)
    set_version(mongo, old.version)
    store = await open_store()
    create(mongo, new)
    set_version(mongo, new.version)
    drop(mongo, old)
    # It is time to list the indexes, and not to read the version.
    await store.keep_indexes()
    await store.keep_indexes()
    assert store._layout is new
    assert not mongo.index_information().keys() & old.indexes.keys()
    assert registry.get_sample_value("chat_indexes_missing") == 0


@pytest.mark.parametrize(("old", "new"), [(LAYOUT_1, LAYOUT_2), (LAYOUT_2, LAYOUT_1)])
async def test_a_late_node_follows_when_it_misses_an_index(
    open_store: OpenStore,
    mongo: Messages,
    new_post: MakePost,
    clock: DatabaseClock,
    registry: CollectorRegistry,
    old: Layout,
    new: Layout,
) -> None:
    set_version(mongo, old.version)
    store = await open_store()
    await store.insert([new_post()])
    create(mongo, new)
    set_version(mongo, new.version)
    drop(mongo, old)
    await store.keep_indexes()
    assert store._layout is old, "it is not time for a look"
    refused = await store.insert([new_post(key=Key("a" * 8, "b" * 8)), new_post()])
    assert (type(refused[0]).__name__, refused[1]) == ("IndexMissing", None)
    await store.keep_indexes()
    assert store._layout is new
    assert registry.get_sample_value("chat_indexes_missing") == 0
    assert await store.insert([new_post(key=Key("a" * 8, "b" * 8))]) == [None]
    assert len((await store.find_unread(["bob"], 10, clock.now_ms())).messages["bob"]) == 3


@pytest.mark.usefixtures("check_always")
async def test_an_index_of_another_schema_is_not_created_again(
    store: MongoStore, mongo: Messages
) -> None:
    mongo.drop_index("purge")
    await store.keep_indexes()
    assert mongo.index_information().keys() == {"_id_", *indexes_of(LAYOUT_2)[COLLECTION]}


class Sent(monitoring.CommandListener):
    """Counts the commands of all clients in this process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Count a command."""
        self._counts[event.command_name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Do nothing."""

    def take(self) -> Counter[str]:
        """Return how many of each command were sent since the last call."""
        found, self._counts = self._counts, Counter()
        return found


#: The driver cannot forget a listener, so there is one for the whole run.
SENT: Final = Sent()
monitoring.register(SENT)


async def test_a_start_with_all_indexes_creates_none(open_store: OpenStore) -> None:
    SENT.take()
    await open_store()
    assert SENT.take()["createIndexes"] == 2, "one for each collection"
    await open_store()
    sent = SENT.take()
    names = ("find", "listIndexes", "createIndexes", "create")
    assert [sent[name] for name in names] == [1, 2, 0, 0]


def being_built(mongo: Messages) -> bool:
    answer = mongo.database.command({"listIndexes": mongo.name, "includeIndexBuildInfo": True})
    return any("indexBuildInfo" in each for each in answer["cursor"]["firstBatch"])


async def test_a_start_waits_for_an_index_that_is_being_built(
    open_store: OpenStore, mongo: Messages
) -> None:
    await open_store()
    mongo.drop_index(NEWEST.inbox_index)
    mongo.insert_many(
        [{"route": 1, "username": "bob", "unread": True} for _ in range(20_000)], ordered=False
    )
    index = NEWEST.indexes[NEWEST.inbox_index]
    model = IndexModel(
        list(index["key"].items()),
        name=NEWEST.inbox_index,
        partialFilterExpression=index["partialFilterExpression"],
    )
    with mongo.database.client.start_session() as session:
        building = threading.Thread(target=mongo.create_indexes, args=([model],))
        building.start()
        while not being_built(mongo):
            assert building.is_alive()
        # The end of a build waits for transactions.
        session.start_transaction()
        mongo.insert_one({"route": 1}, session=session)
        assert being_built(mongo)
        opening = asyncio.ensure_future(open_store())
        _, waiting = await asyncio.wait([opening], timeout=0.5)
        session.abort_transaction()
    assert waiting, "the start did not wait"
    await opening
    assert not being_built(mongo)
    building.join()


@BOTH
async def test_a_message_is_found_by_its_id(
    open_store: OpenStore, mongo: Messages, new_post: MakePost, clock: DatabaseClock, layout: Layout
) -> None:
    set_version(mongo, layout.version)
    store = await open_store()
    post = new_post(receipt="receipt")
    old = new_post(receipt="receipt")
    await store.insert([post, old])
    (document,) = mongo.find({"_id": old.id})
    mongo.delete_one({"_id": old.id})
    without_route = old.id[:12] + "0" + old.id[13:]
    mongo.insert_one({**document, "_id": without_route})
    for each in (post.id, without_route):
        status = await store.track(Track(each, "receipt"), clock.now_ms())
        assert status is not None
        assert status.status == "pending"
        assert (await store.revoke(Revoke(each, "receipt"), clock.now_ms()))[1] == 1


@BOTH
async def test_statements_for_an_inbox_name_its_route(
    open_store: OpenStore, mongo: Messages, new_post: MakePost, clock: DatabaseClock, layout: Layout
) -> None:
    """So mongos sends each to one database shard; in schema 1, documents may lack it."""
    set_version(mongo, layout.version)
    store = await open_store()
    post = new_post(key=Key("a" * 8, "b" * 8), receipt="receipt")
    mongo.database.command("profile", 2)
    await store.insert([post])
    await store.insert([new_post(key=Key("a" * 8, "b" * 8), receipt="another")])
    now_ms = clock.now_ms()
    await store.find_unread(["bob"], 10, now_ms)
    await store.count_unread(["bob"], now_ms)
    await store.measure_inbox("bob", 10, True, now_ms)
    claim = new_claim(["bob"], [post.id], now_ms)
    await store.claim(claim)
    await store.unclaim(claim, [post.id])
    await store.revoke(Revoke(post.id, "receipt"), now_ms)
    mongo.database.command("profile", 0)
    routes = [
        _filter_of(entry).get("route")
        for entry in mongo.database["system.profile"].find({"ns": mongo.full_name})
        if entry["op"] in ("query", "update", "command")
        and entry["command"].keys() & {"q", "filter", "pipeline"}
    ]
    assert len(routes) >= 9
    assert set(routes) == ({route_of("bob")} if layout.has_route else {None})


def _filter_of(entry: dict[str, Any]) -> dict[str, Any]:
    command = entry["command"]
    found: dict[str, Any] = command.get("q") or command.get("filter")
    return found or command["pipeline"][0]["$match"]


class HiddenFleet:
    """A database whose user may not read the collection `fleet`."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def __getitem__(self, name: str) -> Any:
        return self._database[name]

    def get_collection(self, name: str, **_: Any) -> "HiddenFleet":
        assert name == "fleet"
        return self

    async def find_one(self, *_: Any, **__: Any) -> None:
        raise OperationFailure("not authorized on fleet", 13)


@BOTH
async def test_a_hidden_version_is_that_of_the_indexes(
    open_store: OpenStore, mongo: Messages, layout: Layout
) -> None:
    set_version(mongo, layout.version)
    store = await open_store()
    assert store._client is not None
    database: Any = HiddenFleet(store._client[mongo.database.name])
    assert await find_layout(database) is layout


@pytest.mark.parametrize("seen", ["schema 1", "schema 2", "new"])
async def test_the_doctor_says_which_schema_there_is(
    open_store: OpenStore, mongo: Messages, mongo_uri: str, driver: Driver, seen: str
) -> None:
    if seen != "new":
        set_version(mongo, int(seen[-1]))
        await open_store()
    found = {each.what: each async for each in examine(mongo_uri, driver, mongo.database.name, 5.0)}
    assert (found["schema"].state, found["indexes"].state) == ("ok", "ok")
    said = {"schema 1": "`chat migrate`", "schema 2": "the newest", "new": "none yet"}
    assert said[seen] in found["schema"].detail


async def test_the_doctor_refuses_a_newer_schema(
    mongo: Messages, mongo_uri: str, driver: Driver
) -> None:
    set_version(mongo, NEWEST.version + 1)
    *_, last = [each async for each in examine(mongo_uri, driver, mongo.database.name, 5.0)]
    assert (last.what, last.state) == ("schema", "fail")
