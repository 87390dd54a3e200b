"""Messages without a route, which nodes of earlier versions store: refused, and noticed."""

from typing import Any

import pytest
from pymongo.errors import OperationFailure, WriteError

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages, set_version
from tests.store.test_schema_version import create, drop, version_of
from workers.store.diagnostics import examine
from workers.store.driver import Driver
from workers.store.finding import Finding
from workers.store.layout import LAYOUT_1, LAYOUT_2
from workers.store.mongo import MongoStore
from workers.store.schema import VALIDATOR

UNROUTED = {"_id": "a", "username": "bob", "unread": True}


@pytest.fixture(autouse=True)
def check_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the schema and the indexes on every call, without a pause."""
    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.READ_VERSION_EVERY_S", 0.0)


async def test_a_collection_made_by_an_old_node_is_guarded(
    open_store: OpenStore, mongo: Messages
) -> None:
    set_version(mongo, 2)
    create(mongo, LAYOUT_1)
    await open_store()
    with pytest.raises(WriteError, match="failed validation"):
        mongo.insert_one(UNROUTED)


async def test_a_collection_made_by_an_insert_is_guarded(
    store: MongoStore, mongo: Messages, new_post: MakePost
) -> None:
    mongo.drop()
    await store.insert([new_post()])
    await store.keep_indexes()
    assert mongo.options()["validator"] == VALIDATOR


async def test_an_operators_own_validator_stays(open_store: OpenStore, mongo: Messages) -> None:
    own = {"username": {"$type": "string"}}
    mongo.database.create_collection(mongo.name, validator=own)
    await open_store()
    assert mongo.options()["validator"] == own


async def test_schema_1_accepts_messages_of_old_nodes(
    open_store: OpenStore, mongo: Messages
) -> None:
    create(mongo, LAYOUT_1)
    await open_store()
    mongo.insert_one(UNROUTED)


async def test_a_running_node_keeps_the_schema_of_old_nodes(
    open_store: OpenStore, mongo: Messages
) -> None:
    create(mongo, LAYOUT_1)
    store = await open_store()
    drop(mongo, LAYOUT_1)
    await store.keep_indexes()
    assert (store._layout, version_of(mongo)) == (LAYOUT_1, 1)
    mongo.insert_one(UNROUTED)


@pytest.mark.parametrize("is_refused", [True, False])
async def test_if_the_guard_cannot_be_set_a_store_opens(
    open_store: OpenStore, mongo: Messages, monkeypatch: pytest.MonkeyPatch, *, is_refused: bool
) -> None:
    async def refuse(*_: object) -> bool:
        if is_refused:
            return False
        raise OperationFailure("an index build is in progress", 12586)

    monkeypatch.setattr("workers.store.guard.set_validator", refuse)
    set_version(mongo, 2)
    create(mongo, LAYOUT_2)
    warned: list[str] = []
    monkeypatch.setattr(
        "workers.store.index_keeper.log.warning", lambda text, **_: warned.append(text)
    )
    await open_store()
    assert len(warned) == 1
    assert "chat migrate --apply" in warned[0]


@pytest.fixture
def found(mongo: Messages, mongo_uri: str, driver: Driver) -> Any:
    """Returns what the doctor says about routes, or None."""

    async def find() -> Finding | None:
        findings = [each async for each in examine(mongo_uri, driver, mongo.database.name, 5.0)]
        return {each.what: each for each in findings}.get("routes")

    return find


async def test_the_doctor_finds_messages_that_no_node_finds(
    store: MongoStore, mongo: Messages, new_post: MakePost, found: Any
) -> None:
    await store.insert([new_post()])
    assert await found() is None
    mongo.database.command({"collMod": mongo.name, "validator": {}})
    mongo.insert_one(UNROUTED)
    finding = await found()
    assert finding.state == "fail"
    assert "chat migrate --apply" in finding.detail


async def test_the_doctor_warns_of_a_missing_guard(
    store: MongoStore, mongo: Messages, found: Any
) -> None:
    mongo.database.command({"collMod": mongo.name, "validator": {}})
    assert (await found()).state == "warn"
