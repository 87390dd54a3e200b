"""What `chat doctor` finds in a database, part by part, and that it changes nothing."""

import time
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support import schema_1
from workers.commands import Key
from workers.store import diagnostics
from workers.store.diagnostics import _clock, _compatibility, _deployment, examine
from workers.store.driver import Client, Document, Driver, close_client, open_client
from workers.store.finding import Finding
from workers.store.layout import NEWEST
from workers.store.schema import COLLECTION, OBSOLETE, indexes_of


async def findings(uri: str, driver: Driver, database: str) -> dict[str, Finding]:
    """Return the findings about a database, by part."""
    found = [each async for each in examine(uri, driver, database, 4.0)]
    return {each.what: each for each in found}


async def test_a_good_database_has_nothing_to_fix(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore
) -> None:
    await open_store()
    found = await findings(mongo_uri, driver, database)
    assert {each.state for each in found.values()} == {"ok"}
    assert list(found) == [
        "database",
        "compatibility",
        "majority",
        "schema",
        "indexes",
        "leader",
        "history",
        "clock",
    ]
    count = sum(map(len, indexes_of(NEWEST).values()))
    assert found["indexes"].detail == f"all {count} exist and are correct"
    assert found["database"].detail.endswith("primary of replica set chat, 1 member(s)")
    assert found["compatibility"].detail.endswith(", as the server")


async def test_the_node_that_leads_is_named(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore
) -> None:
    store = await open_store(node="web1/123")
    nobody = Finding("leader", "ok", "none: no node uses this database now")
    assert (await findings(mongo_uri, driver, database))["leader"] == nobody
    await store.lead(None)
    found = (await findings(mongo_uri, driver, database))["leader"]
    assert found == Finding("leader", "ok", "web1/123 leads the nodes on this database")
    await store.resign()
    assert (await findings(mongo_uri, driver, database))["leader"] == nobody


async def test_an_empty_database_stays_empty(
    mongo_uri: str, driver: Driver, database: str, mongo: Messages
) -> None:
    found = await findings(mongo_uri, driver, database)
    assert found["indexes"] == Finding(
        "indexes", "ok", f"none in {database} yet: the first start creates them"
    )
    assert mongo.database.list_collection_names() == []


async def test_a_wrong_index_fails_with_its_command(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore, mongo: Messages
) -> None:
    await open_store()
    mongo.drop_index("purge")
    mongo.create_index("purge_at", name="purge", expireAfterSeconds=60)
    found = (await findings(mongo_uri, driver, database))["indexes"]
    assert found.state == "fail"
    assert 'db.messages.dropIndex("purge")' in found.detail
    assert "'expireAfterSeconds': 60" in found.detail


async def test_missing_indexes_are_named(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore, mongo: Messages
) -> None:
    await open_store()
    mongo.drop_index(NEWEST.key_index)
    found = (await findings(mongo_uri, driver, database))["indexes"]
    assert found == Finding(
        "indexes",
        "warn",
        f"missing: {COLLECTION}.{NEWEST.key_index}; a running service creates them within seconds",
    )


async def test_duplicate_keys_that_bar_an_index_fail(
    mongo_uri: str,
    driver: Driver,
    database: str,
    open_store: OpenStore,
    mongo: Messages,
    new_post: MakePost,
) -> None:
    store = await open_store()
    await store.insert([new_post(key=Key("k" * 64, "content"))])
    mongo.drop_index(NEWEST.key_index)
    document = mongo.find_one({"key": {"$exists": True}})
    assert document is not None
    mongo.insert_one({**document, "_id": "f" * 32})
    found = (await findings(mongo_uri, driver, database))["indexes"]
    assert found.state == "fail"
    assert found.detail.startswith(f"missing: {COLLECTION}.{NEWEST.key_index}; ")
    assert "f" * 32 in found.detail, "it names the messages"


async def test_what_an_older_version_left_on_schema_2_is_a_warning(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore, mongo: Messages
) -> None:
    await open_store()
    schema_1.create_indexes(mongo)
    found = (await findings(mongo_uri, driver, database))["indexes"]
    assert found.state == "warn"
    assert "chat migrate --apply" in found.detail


async def test_an_index_of_an_earlier_version_is_fine(
    mongo_uri: str, driver: Driver, database: str, open_store: OpenStore, mongo: Messages
) -> None:
    await open_store()
    (name,) = OBSOLETE[COLLECTION]
    mongo.create_index("old", name=name)
    found = (await findings(mongo_uri, driver, database))["indexes"]
    assert found.state == "ok"
    assert f"some of an earlier version: {COLLECTION}.{name}" in found.detail


async def test_a_bad_string_ends_the_examination(driver: Driver, database: str) -> None:
    found = [each async for each in examine("nonsense://", driver, database, 1.0)]
    (only,) = found
    assert (only.what, only.state) == ("database", "fail")
    assert "correct --mongo-uri (CHAT_MONGO_URI)" in only.detail


async def test_a_database_without_an_answer_fails(driver: Driver, database: str) -> None:
    found = [each async for each in examine("mongodb://127.0.0.1:1/", driver, database, 0.2)]
    (only,) = found
    assert (only.what, only.state) == ("database", "fail")
    assert "is it running" in only.detail


async def test_a_refused_user_fails(
    mongo_uri: str, driver: Driver, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(client: Client) -> Document:
        # Stands for a command that the user is not allowed to run.
        return dict(await client.admin.command("createUser", "x", pwd="", roles=[]))

    monkeypatch.setattr(diagnostics, "hello", refused)
    found = [each async for each in examine(mongo_uri, driver, database, 4.0)]
    (only,) = found
    assert only.state == "fail"
    assert "check name, password and authSource" in only.detail


@pytest.mark.parametrize(
    ("server", "version", "state", "detail"),
    [
        ({"setName": "rs0"}, "5.0.9", "fail", "MongoDB 5.0.9: 6.0 or newer is needed"),
        ({"msg": "isdbgrid"}, "8.0.1", "ok", "MongoDB 8.0.1, through mongos"),
        ({}, "7.0.0", "fail", "a single mongod without a replica set: start it with --replSet"),
        (
            {"setName": "rs0", "hosts": ["a", "b", "c"]},
            "6.0.5",
            "ok",
            "MongoDB 6.0.5, primary of replica set rs0, 3 member(s)",
        ),
    ],
)
def test_each_deployment_is_judged(
    server: dict[str, Any], version: str, state: str, detail: str
) -> None:
    found = _deployment(server, version)
    assert found.state == state
    assert found.detail.startswith(detail)


async def test_a_clock_that_differs_is_a_warning(
    mongo_uri: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(driver, mongo_uri)
    assert (await _clock(client)).state == "ok"
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 5)
    found = await _clock(client)
    assert found.state == "warn"
    assert found.detail == "the database's clock differs by +5.0 s: check NTP"
    await close_client(client)


async def test_a_single_mongod_ends_the_examination(
    mongo_uri: str, driver: Driver, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def alone(client: Client) -> Document:
        return {"isWritablePrimary": True}

    monkeypatch.setattr(diagnostics, "hello", alone)
    found = [each async for each in examine(mongo_uri, driver, database, 4.0)]
    assert [(each.what, each.state) for each in found] == [("database", "fail")]


class Answering:
    """A client whose commands have this answer, or raise this error."""

    def __init__(self, answer: Document | Exception) -> None:
        self._answer = answer

    @property
    def admin(self) -> "Answering":
        return self

    async def command(self, command: Document) -> Document:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (OperationFailure("not authorized", 13), "ok", "this user is not allowed to see it"),
        ({"featureCompatibilityVersion": {"version": "7.0"}}, "ok", "7.0, as the server"),
        ({"featureCompatibilityVersion": {"version": "6.0"}}, "warn", "6.0, but the server is 7.0"),
    ],
    ids=["hidden", "the same", "older"],
)
async def test_the_compatibility_version_is_judged(
    answer: Document | Exception, state: str, detail: str
) -> None:
    client: Any = Answering(answer)
    found = await _compatibility(client, "7.0.12", 1.0)
    assert found.state == state
    assert found.detail.startswith(detail)
