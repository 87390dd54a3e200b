"""A database changes its schema while nodes use it; every step can be interrupted."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, PyMongoError, WriteError
from tornado.ioloop import IOLoop

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support import schema_1
from tests.support.proxy import MongoProxy
from tests.support.secured_mongod import SecuredMongod
from tests.support.waiting import eventually
from workers.commands import Key
from workers.errors import ServiceError
from workers.routing import route_of
from workers.store import migration, migration_record
from workers.store.backfill import _set_routes
from workers.store.driver import Client, Document, Driver, close_client, open_client
from workers.store.migration import STEPS, Migration, _is_temporary
from workers.store.migration_plan import Plan, make_plan
from workers.store.migration_record import MigrationRecord, MigrationRefused
from workers.store.mongo import MongoStore

_NEW_INDEXES = {"inbox_by_route", "idempotency_by_inbox"}
_OLD_INDEXES = {"inbox", "idempotency"}
_USERS = ("plain", "admin")
_BOTH = [(2, step) for step in STEPS[2]] + [(1, step) for step in STEPS[1]]

Migrate: TypeAlias = Callable[..., Migration]


class Reporter:
    """Calls a function when a step begins, and remembers what it was told."""

    def __init__(self, on_step: Callable[[str], None] = lambda step: None) -> None:
        self._on_step = on_step
        self.steps: list[str] = []
        self.notes: list[str] = []

    def progress(self, step: str, done: float, total: float) -> None:
        assert 0 <= done <= total
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            self._on_step(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def client(io_loop: IOLoop, mongo_uri: str, driver: Driver) -> Iterator[Client]:
    """A client of the command."""

    async def make() -> Client:
        return open_client(driver, mongo_uri)

    opened: Client = io_loop.run_sync(make)
    yield opened
    io_loop.run_sync(lambda: close_client(opened))


@pytest.fixture
def migrate(client: Client, database: str) -> Migrate:
    """Makes migrations that wait for no node."""

    def make(to: int, report: Reporter | None = None, node: str = "host/1") -> Migration:
        return Migration(client, database, to, node, report or Reporter(), notice_s=0.0)

    return make


@pytest.fixture
def old(mongo: Messages) -> Messages:
    """The messages of an old node: 300 unread ones, 30 of them with a key, in 7 inboxes."""
    schema_1.create_indexes(mongo)
    ids = schema_1.ids(age_s=60)
    mongo.insert_many(
        [
            schema_1.document(next(ids), f"user-{n % 7}", f"{n}", f"key-{n}" if n % 10 == 0 else "")
            for n in range(300)
        ]
    )
    return mongo


async def read_all(store: MongoStore, users: int = 7) -> list[str]:
    """Return the texts of all unread messages, as a node finds them."""
    names = [f"user-{n}" for n in range(users)]
    found = await store.find_unread(names, 10_000, 0)
    assert set(found.complete) == set(names)
    return sorted(each.message.text for inbox in found.messages.values() for each in inbox)


def everything(mongo: Messages) -> object:
    """Return all that the database has, apart from the leader and the nodes."""
    database = mongo.database
    return (
        list(mongo.find(sort=[("_id", 1)])),
        mongo.index_information(),
        list(database.list_collections(filter={"name": "messages"})),
        list(database["fleet"].find({"_id": "schema"})),
    )


def is_whole(mongo: Messages, version: int) -> None:
    """Check that a database has this schema and nothing of another one."""
    old_part, new_part = (
        (_OLD_INDEXES, _NEW_INDEXES) if version == 1 else (_NEW_INDEXES, _OLD_INDEXES)
    )
    names = set(mongo.index_information())
    assert old_part <= names
    assert not new_part & names
    assert mongo.database["fleet"].find_one({"_id": "schema"}) == {
        "_id": "schema",
        "version": version,
    }
    assert mongo.options().get("validator", {}) == (
        {} if version == 1 else {"route": {"$exists": True}}
    )
    if version == 2:
        wrong = [each for each in mongo.find() if each.get("route") != route_of(each["username"])]
        assert wrong == []


async def test_a_dry_run_changes_nothing(client: Client, old: Messages) -> None:
    before = everything(old)
    plan = await make_plan(client, old.database.name, 2, are_nodes_new=False)
    assert everything(old) == before
    assert (plan.version, plan.messages, plan.without_route, plan.old_ids) == (1, 300, 300, 300)
    assert (set(plan.build), set(plan.drop)) == (_NEW_INDEXES, _OLD_INDEXES)
    assert not plan.is_done
    assert plan.obstacles == []


async def test_each_message_gets_its_route(
    old: Messages, migrate: Migrate, open_store: OpenStore
) -> None:
    before = list(old.find(sort=[("_id", 1)]))
    report = Reporter()
    await migrate(2, report).run()
    is_whole(old, 2)
    assert report.steps == list(STEPS[2])
    # Nothing else has changed.
    assert list(old.find({}, {"route": 0}, sort=[("_id", 1)])) == before
    assert await read_all(await open_store()) == sorted(map(str, range(300)))


async def test_the_guard_refuses_what_an_old_node_stores(old: Messages, migrate: Migrate) -> None:
    await migrate(2).run()
    with pytest.raises(WriteError, match="failed validation"):
        old.insert_one(schema_1.document(next(schema_1.ids()), "user-1", "late"))


async def test_back_and_forth_leaves_the_database_as_it_was(
    old: Messages, migrate: Migrate, open_store: OpenStore
) -> None:
    before = old.index_information()
    for _ in range(2):
        await migrate(2).run()
        await migrate(1).run()
        is_whole(old, 1)
        assert {name: part["key"] for name, part in old.index_information().items()} == {
            name: part["key"] for name, part in before.items()
        }
        # An old node may be started again.
        old.insert_one(schema_1.document(next(schema_1.ids()), "user-1", "300"))
        assert "300" in await read_all(await open_store())
        old.delete_one({"text": "300"})


@pytest.mark.parametrize(
    ("to", "step", "end"),
    [(*each, "cancelled") for each in _BOTH]
    + [(2, step, "killed") for step in ("fill", "guard", "switch")],
)
async def test_an_interrupted_step_is_continued(
    old: Messages,
    migrate: Migrate,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    to: int,
    step: str,
    end: str,
) -> None:
    if to == 1:
        await migrate(2).run()
    if end == "killed":
        # What a process leaves that is gone without a word: its lease, which ends later.
        monkeypatch.setattr(migration_record, "LEASE_S", 0.2)
        monkeypatch.setattr(MigrationRecord, "let_go", lambda _: asyncio.sleep(0))

    def stop(begun: str) -> None:
        if begun == step:
            task.cancel()

    task = asyncio.create_task(migrate(to, Reporter(stop)).run())
    with pytest.raises(asyncio.CancelledError):
        await task
    left = old.database["fleet"].find_one({"_id": "schema"})
    assert left is not None
    assert left["migration"]["step"] == step
    # At every moment, a node finds everything.
    assert await read_all(await open_store()) == sorted(map(str, range(300)))
    report = Reporter()
    await migrate(to, report).run()
    is_whole(old, to)
    assert await read_all(await open_store()) == sorted(map(str, range(300)))
    assert "fill" not in report.steps or step == "fill", "it does not begin again"


@pytest.mark.parametrize(("to", "step"), _BOTH)
async def test_an_interrupted_migration_can_go_back(
    old: Messages, migrate: Migrate, to: int, step: str
) -> None:
    if to == 1:
        await migrate(2).run()

    def stop(begun: str) -> None:
        if begun == step:
            task.cancel()

    task = asyncio.create_task(migrate(to, Reporter(stop)).run())
    with pytest.raises(asyncio.CancelledError):
        await task
    await migrate(3 - to).run()
    is_whole(old, 3 - to)


async def test_what_old_nodes_store_meanwhile_is_found(
    old: Messages, migrate: Migrate, open_store: OpenStore
) -> None:
    ids, stored, refused = schema_1.ids(), [], []

    def store(step: str) -> None:
        # With a new id, and one from before the scan, such as that of a post that was repeated.
        for message_id in (f"0{step.encode().hex():0<31}"[:32], next(ids)):
            try:
                old.insert_one(schema_1.document(message_id, "user-3", f"at {step}"))
                stored.append(f"at {step}")
            except WriteError:
                refused.append(step)

    await migrate(2, Reporter(store)).run()
    is_whole(old, 2)
    assert set(refused) == {"check", "switch", "drop"}
    texts = await read_all(await open_store())
    assert texts == sorted([*map(str, range(300)), *stored])
    assert len(stored) == 8


async def test_a_running_node_follows_the_version(
    old: Messages, migrate: Migrate, open_store: OpenStore, new_post: MakePost
) -> None:
    node = await open_store()
    for to in (2, 1, 2):
        await migrate(to).run()
        # Its indexes are gone. The database refuses the statement, and the node looks again.
        node.indexes.check_soon()
        await node.keep_indexes()
        assert await node.insert([new_post("user-2", f"in {to}")]) == [None]
        assert len(await read_all(node)) == old.count_documents({"unread": True})


async def test_a_key_in_two_inboxes_prevents_the_way_back(
    client: Client, old: Messages, migrate: Migrate
) -> None:
    await migrate(2).run()
    twice = {**schema_1.document(next(schema_1.ids()), "user-6", "x", "key-10")}
    old.insert_one({**twice, "route": route_of("user-6")})
    before = everything(old)
    plan = await make_plan(client, old.database.name, 1, are_nodes_new=False)
    assert twice["_id"] in plan.obstacles[0]
    with pytest.raises(MigrationRefused, match=twice["_id"]):
        await migrate(1).run()
    record = old.database["fleet"].find_one({"_id": "schema"})
    assert record is not None
    assert record["version"] == 2
    assert set(old.index_information()) >= _NEW_INDEXES
    old.delete_one({"_id": twice["_id"]})
    await migrate(1).run()
    is_whole(old, 1)
    assert before != everything(old)


async def test_a_key_of_another_inbox_waits_for_the_drop(
    open_store: OpenStore, mongo: Messages, new_post: MakePost
) -> None:
    node = await open_store(timeout_s=1.0)
    # As while the version changes: both unique indexes exist.
    keys, options = schema_1.INDEXES["idempotency"]
    mongo.create_index(keys, name="idempotency", **options)
    assert await node.insert([new_post("one", key=Key("hash", "body"))]) == [None]
    (outcome,) = await node.insert([new_post("two", key=Key("hash", "other"))])
    assert isinstance(outcome, ServiceError)
    assert mongo.count_documents({}) == 1
    mongo.drop_index("idempotency")
    assert await node.insert([new_post("two", key=Key("hash", "other"))]) == [None]


async def test_two_migrations_exclude_each_other(
    old: Messages, migrate: Migrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_record, "RENEW_EVERY_S", 0.1)
    first = asyncio.create_task(migrate(2, node="one/1").run())
    held = MigrationRecord._change

    async def hold(record: MigrationRecord, change: Any) -> None:
        # The first one only renews its lease.
        if isinstance(change, dict):
            await asyncio.sleep(3600)
        await held(record, change)

    monkeypatch.setattr(MigrationRecord, "_change", hold)

    async def has_begun() -> bool:
        return old.database["fleet"].find_one({"migration.node": "one/1"}) is not None

    await eventually(has_begun)
    for to in (2, 1):
        with pytest.raises(MigrationRefused, match="one/1 migrates this database"):
            await migrate(to, node="two/2").run()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_migration_that_was_replaced_stops(
    old: Messages, migrate: Migrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steal(step: str) -> None:
        if step == "index":
            old.database["fleet"].update_one(
                {"_id": "schema"}, {"$set": {"migration.token": "another"}}
            )

    with pytest.raises(MigrationRefused, match="taken over"):
        await migrate(2, Reporter(steal)).run()
    record = old.database["fleet"].find_one({"_id": "schema"})
    assert record is not None
    assert record["version"] == 1
    assert record["migration"]["token"] == "another"


@pytest.mark.parametrize("app", ["chat/4711", "chat/1/4711"])
async def test_a_connected_old_node_stops_the_switch(
    client: Client, old: Messages, migrate: Migrate, mongo_uri: str, app: str
) -> None:
    with MongoClient[Document](mongo_uri, appname=app, heartbeatFrequencyMS=500) as node:
        node.admin.command("ping")
        plan = await make_plan(client, old.database.name, 2, are_nodes_new=True)
        assert "process 4711" in plan.obstacles[0]
        with pytest.raises(MigrationRefused, match="process 4711"):
            await migrate(2).run()
    assert old.count_documents({"route": None}) == 0

    async def is_gone() -> bool:
        plan = await make_plan(client, old.database.name, 2, are_nodes_new=True)
        return not plan.obstacles

    await eventually(is_gone)
    report = Reporter()
    await migrate(2, report).run()
    assert report.steps[0] == "nodes"
    is_whole(old, 2)


async def test_a_finished_migration_has_nothing_left_to_do(
    client: Client, old: Messages, migrate: Migrate
) -> None:
    async def plan(to: int) -> Plan:
        return await make_plan(client, old.database.name, to, are_nodes_new=False)

    assert (await plan(1)).is_done
    await migrate(2).run()
    assert (await plan(2)).is_done
    assert not (await plan(1)).is_done
    # If something was changed by hand, there is.
    old.database.command({"collMod": "messages", "validator": {}})
    assert not (await plan(2)).is_done
    await migrate(2).run()
    is_whole(old, 2)
    assert (await plan(2)).is_done


async def test_a_new_database_needs_no_migration(
    client: Client, database: str, open_store: OpenStore
) -> None:
    await open_store()
    assert (await make_plan(client, database, 2, are_nodes_new=False)).is_done


def test_each_step_of_a_migration_is_tested() -> None:
    assert {step for _, step in _BOTH} == {*STEPS[1], *STEPS[2]}


async def test_lost_replies_do_not_stop_a_migration(
    io_loop: IOLoop,
    mongo_uri: str,
    driver: Driver,
    old: Messages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migration, "_REPEAT_AFTER_S", 0.01)
    commands = ("update", "aggregate", "createIndexes", "collMod", "dropIndexes", "find")
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        lossy = open_client(driver, proxy.uri)
        try:
            for to in (2, 1):
                proxy.lose_rate = dict.fromkeys(commands, 0.1)
                proxy.cut_rate = dict.fromkeys(commands, 0.05)
                report = Reporter()
                change = Migration(lossy, old.database.name, to, "host/1", report, notice_s=0.0)
                for _ in range(50):
                    # What happens before the first step is not repeated.
                    with contextlib.suppress(PyMongoError):
                        await change.run()
                        break
                is_whole(old, to)
            assert proxy.faults > 1
        finally:
            await close_client(lossy)
    assert old.count_documents({}) == 300


async def test_a_lost_reply_to_the_last_write_is_no_refusal(
    old: Messages, migrate: Migrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several renewals are due before the write is repeated.
    monkeypatch.setattr(migration_record, "RENEW_EVERY_S", 0.01)
    monkeypatch.setattr(migration, "_REPEAT_AFTER_S", 0.2)
    finish = MigrationRecord.finish
    lost: list[MigrationRecord] = []

    async def lose_once(record: MigrationRecord) -> None:
        await finish(record)
        if not lost:
            lost.append(record)
            raise AutoReconnect("the connection was lost")

    monkeypatch.setattr(MigrationRecord, "finish", lose_once)
    await migrate(2).run()
    assert lost
    is_whole(old, 2)


async def test_a_database_that_is_away_ends_a_migration(
    mongo_uri: str,
    driver: Driver,
    old: Messages,
    migrate: Migrate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migration, "_REPEAT_AFTER_S", 0.01)
    monkeypatch.setattr(migration, "PATIENCE_S", 0.1)
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        cut = open_client(driver, proxy.uri)

        def go_away(step: str) -> None:
            if step == "guard":
                proxy.cut_rate = dict.fromkeys(("listCollections", "collMod"), 1.0)

        try:
            report = Reporter(go_away)
            with pytest.raises(PyMongoError):
                await Migration(cut, old.database.name, 2, "a/1", report, notice_s=0.0).run()
        finally:
            await close_client(cut)
    assert any("trying again" in note for note in report.notes)
    await migrate(2).run()
    is_whole(old, 2)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredMongod]:
    """A MongoDB that asks for a user."""
    with SecuredMongod(tmp_path_factory.mktemp("secured"), requires_tls=False) as running:
        running.create_user("plain", [{"role": "readWrite", "db": "chat"}])
        roles = [{"role": "readWrite", "db": "chat"}, {"role": "dbAdmin", "db": "chat"}]
        running.create_user("admin", [*roles, {"role": "clusterMonitor", "db": "admin"}])
        yield running


async def test_a_migration_says_which_right_it_lacks(
    driver: Driver, secured: SecuredMongod
) -> None:
    with secured.administrator() as root:
        root.drop_database("chat")
        schema_1.create_indexes(root["chat"]["messages"])
        root["chat"]["messages"].insert_one(schema_1.document(next(schema_1.ids()), "a", "x"))
        clients = {name: open_client(driver, secured.uri(name, "secret-word")) for name in _USERS}
        try:
            plan = await make_plan(clients["plain"], "chat", 2, are_nodes_new=False)
            assert "inprog" in plan.obstacles[0]
            assert "collMod" in plan.warnings[0]

            def change(user: str, to: int, *, are_nodes_new: bool = False) -> Migration:
                # Another client of this mongod may be seen as an old node.
                return Migration(
                    clients[user],
                    "chat",
                    to,
                    "a/1",
                    report,
                    are_nodes_new=are_nodes_new,
                    notice_s=0.0,
                )

            report = Reporter()
            with pytest.raises(MigrationRefused, match="--no-old-nodes"):
                await change("plain", 2).run()
            await change("plain", 2, are_nodes_new=True).run()
            assert "collMod" in report.notes[0]
            assert "validator" not in root["chat"]["messages"].options()
            # A user with the rights adds what is missing.
            await change("admin", 2).run()
            is_whole(root["chat"]["messages"], 2)
            plan = await make_plan(clients["plain"], "chat", 1, are_nodes_new=False)
            assert "collMod" in plan.obstacles[0]
            with pytest.raises(MigrationRefused, match="dbAdmin"):
                await change("plain", 1).run()
            await change("admin", 1).run()
            is_whole(root["chat"]["messages"], 1)
        finally:
            for each in clients.values():
                await close_client(each)


@pytest.mark.parametrize(
    "failure",
    [
        {"writeConcernError": {"code": 189, "errmsg": "stepped down while it waited"}},
        {"writeErrors": [{"index": 0, "code": 10107, "errmsg": "not primary"}]},
    ],
    ids=["unconfirmed", "refused"],
)
async def test_an_election_inside_a_slice_is_waited_for(failure: Document) -> None:
    class Elected:
        async def command(self, *_: object) -> Document:
            return {"ok": 1.0, **failure}

    database: Any = Elected()
    with pytest.raises(PyMongoError) as caught:
        await _set_routes(database, [{"_id": "a", "username": "bob"}])
    assert _is_temporary(caught.value)
