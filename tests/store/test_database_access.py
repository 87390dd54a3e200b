"""MongoDB with passwords, TLS and certificates, and a user with no more rights than it needs."""

import asyncio
import contextlib
import inspect
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography import x509
from pymongo import monitoring
from pymongo.errors import OperationFailure
from structlog.testing import capture_logs

from config.settings import PROJECT_ROOT
from tests.conftest import Connect, StartService
from tests.store.conftest import MakePost
from tests.support.certificates import Authority
from tests.support.client import ChatClient
from tests.support.secured_mongod import SecuredMongod
from tests.support.stores import new_batch, new_claim
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.commands import (
    Acknowledge,
    Extend,
    Held,
    Key,
    KeyedClaim,
    Release,
    Resume,
    Revoke,
    Track,
)
from workers.errors import ServiceError
from workers.metrics import WorkerMetrics
from workers.store import schema
from workers.store.base import Store
from workers.store.connection import StoreMisconfigured, StoreOptions
from workers.store.diagnostics import examine
from workers.store.driver import Driver
from workers.store.finding import Finding
from workers.store.mongo import MongoStore

NAME: Final = "service"
WORD: Final = "secret-word"


class Refusals(monitoring.CommandListener):
    """Collects the commands that any database refuses for lack of a privilege."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.commands: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Do nothing."""

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Note the command if the database refused it."""
        if event.failure.get("code") == 13:
            with self._lock:
                self.commands.append(event.command_name)

    def take(self) -> set[str]:
        """Return the names of the commands that were refused since the last call."""
        with self._lock:
            found, self.commands = {*self.commands}, []
        return found


#: The driver cannot forget a listener, so there is one for the whole run.
REFUSALS: Final = Refusals()
monitoring.register(REFUSALS)


def documented_role() -> dict[str, Any]:
    """Return the command of docs/database.md that creates the service's role."""
    page = (PROJECT_ROOT / "docs" / "database.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"runCommand\((\{\n.*?\n\})\)\n```", page, re.DOTALL)
    command: dict[str, Any] = json.loads(text)
    return command


ROLE: Final = documented_role()
#: What the role does not allow, and the doctor does without: it says that it may not see it.
OPTIONAL: Final = {"getParameter"}
#: Each privilege of it: the collection, and what is allowed there.
PRIVILEGES: Final = [
    (each["resource"]["collection"], action)
    for each in ROLE["privileges"]
    for action in each["actions"]
]


class Secured(NamedTuple):
    """A database in which the service's user has the documented role."""

    mongod: SecuredMongod
    uri: str

    def allow(self, *, all_but: tuple[str, str] | None = None) -> None:
        """Give the role all its privileges but one."""
        privileges = []
        for each in ROLE["privileges"]:
            place = each["resource"]["collection"]
            actions = [action for action in each["actions"] if (place, action) != all_but]
            if actions:
                privileges.append({"resource": each["resource"], "actions": actions})
        with self.mongod.administrator() as client:
            client["chat"].command("updateRole", ROLE["createRole"], privileges=privileges)


@pytest.fixture(scope="module")
def tls_mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredMongod]:
    """A MongoDB with users, passwords and TLS."""
    with SecuredMongod(tmp_path_factory.mktemp("tls-mongod"), requires_tls=True) as mongod:
        with mongod.administrator() as client:
            client["chat"].command(ROLE)
        mongod.create_user(NAME, [{"role": ROLE["createRole"], "db": "chat"}], WORD)
        yield mongod


@pytest.fixture
def secured(tls_mongod: SecuredMongod) -> Secured:
    """That MongoDB, where the user has all documented privileges, and nothing was refused."""
    found = Secured(tls_mongod, tls_mongod.uri(NAME, WORD))
    found.allow()
    REFUSALS.take()
    return found


@contextlib.asynccontextmanager
async def opened(
    uri: str,
    driver: Driver,
    clock: DatabaseClock,
    metrics: WorkerMetrics,
    timeout_s: float = 4.0,
) -> AsyncIterator[MongoStore]:
    options = StoreOptions(driver, "chat", timeout_s, 200, 3600, "test")
    store = MongoStore(uri, options, clock, metrics)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def use_everything(
    store: MongoStore, uri: str, driver: Driver, new_post: MakePost, clock: DatabaseClock
) -> None:
    """Call each method of a store, and the doctor. Errors are left to the refusals."""
    now_ms = clock.now_ms()
    receipt = new_post(receipt="hash of a receipt")
    posts = [new_post(), new_post(key=Key(f"key {now_ms}", "body")), receipt]
    ids = [post.id for post in posts]
    batch = new_batch(f"batch {now_ms}", "bob", (ids[0],), now_ms + 60_000)
    over = new_batch(batch.key, "bob", (ids[0],), now_ms - 60_000)
    lease = new_claim(["bob"], ids, now_ms, lease_ms=60_000)
    keyed = KeyedClaim(batch.token, ("bob",), (ids[0],), now_ms, now_ms, batch.key, batch.token)
    store.count_later(keyed, keyed.ids)
    calls = [
        store.open(),
        store.insert(posts),
        store.insert([new_post(key=Key(f"key {now_ms}", "body"))]),
        store.find_unread(["bob"], 10, now_ms),
        _confirm(store),
        store.count_unread(["bob"], now_ms),
        store.measure_inbox("bob", 10, True, now_ms),
        store.claim(lease),
        store.extend(Extend("bob", lease.token, 90_000), now_ms),
        store.held(Held("bob", lease.token), now_ms),
        store.acknowledge(Acknowledge("bob", lease.token, (ids[0],)), now_ms),
        store.audit(Acknowledge("bob", lease.token, (ids[0],)), now_ms),
        store.release(Release("bob", lease.token), now_ms),
        store.resume(Resume("bob", ids[0]), now_ms),
        store.claim(new_claim(["bob"], ids, now_ms)),
        store.void(new_claim(["bob"], ids, now_ms), ids),
        store.unclaim(new_claim(["bob"], ids, now_ms), ids),
        # A batch that is over is replaced.
        store.record_batch([over], now_ms - 90_000),
        store.record_batch([batch], now_ms),
        store.find_batches([batch.key], now_ms),
        store.mark_delivered(batch),
        store.keyed_messages(batch, now_ms),
        store.discard_batch(batch),
        store.track(Track(receipt.id, receipt.receipt), now_ms),
        store.revoke(Revoke(receipt.id, receipt.receipt), now_ms),
        store.lead(None),
        store.save_history("vm:8080", now_ms // 3600_000, b"content", now_ms),
        store.load_history("vm:8080"),
        store.forget_nodes(now_ms),
        store.resign(),
        store.end_leases(now_ms),
        store.expire(now_ms),
        store.retire(now_ms),
        store.count_pending(),
        store.count_resolved(),
        store.keep_indexes(),
        store.measure_clock(),
        store.measure_storage(),
        store.ping(),
        _report_arrivals(store),
        _examine(uri, driver),
    ]
    for call in calls:
        # `keep_indexes` passes the driver's errors on.
        with contextlib.suppress(ServiceError, StoreMisconfigured, OperationFailure):
            await call


async def _report_arrivals(store: MongoStore) -> None:
    arrivals = await store.arrivals(["bob"])
    await arrivals.next()
    await arrivals.close()


async def _examine(uri: str, driver: Driver) -> list[Finding]:
    return [finding async for finding in examine(uri, driver, "chat", 4.0)]


async def _confirm(store: MongoStore) -> None:
    """Confirm a search, as if the replica set had more members than this one."""
    store._had_peers = store._can_confirm = True
    await store.confirm()


def test_every_method_of_a_store_is_called_here() -> None:
    called = set(re.findall(r"store\.(\w+)\(", inspect.getsource(use_everything)))
    called |= set(re.findall(r"store\.(\w+)\(", inspect.getsource(_confirm)))
    called |= set(re.findall(r"store\.(\w+)\(", inspect.getsource(_report_arrivals)))
    methods = {name for name, value in vars(Store).items() if inspect.isfunction(value)}
    assert {name for name in methods if not name.startswith("_")} <= called


def lose_indexes(secured: Secured) -> None:
    """Drop an index of each collection, and the validator. The store then creates them again."""
    with secured.mongod.administrator() as client:
        client["chat"].command("collMod", "messages", validator={})
        for collection in ("messages", "reads"):
            client["chat"][collection].drop_index("purge")


@pytest.fixture
def with_an_obsolete_index(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An index of an earlier version, which is due to be dropped."""
    monkeypatch.setattr("workers.store.index_keeper.CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.READ_VERSION_EVERY_S", 0.0)
    monkeypatch.setattr("workers.store.index_keeper.OBSOLETE_AFTER_S", 0.0)
    (name,) = schema.OBSOLETE["messages"]
    with secured.mongod.administrator() as client:
        client["chat"]["messages"].create_index([("username", 1)], name=name)
        yield
        # Dropped, unless that was not allowed.
        with contextlib.suppress(OperationFailure):
            client["chat"]["messages"].drop_index(name)


@pytest.mark.usefixtures("with_an_obsolete_index")
async def test_the_documented_role_suffices_for_everything(
    secured: Secured,
    driver: Driver,
    new_post: MakePost,
    clock: DatabaseClock,
    metrics: WorkerMetrics,
) -> None:
    async with opened(secured.uri, driver, clock, metrics) as store:
        lose_indexes(secured)
        await use_everything(store, secured.uri, driver, new_post, clock)
        with secured.mongod.administrator() as client:
            (name,) = schema.OBSOLETE["messages"]
            assert name not in client["chat"]["messages"].index_information()
            assert client["chat"]["messages"].options()["validator"] == schema.VALIDATOR
    assert REFUSALS.take() == OPTIONAL


@pytest.mark.usefixtures("with_an_obsolete_index")
@pytest.mark.parametrize(("collection", "action"), PRIVILEGES)
async def test_each_privilege_of_the_role_is_needed(
    secured: Secured,
    driver: Driver,
    new_post: MakePost,
    clock: DatabaseClock,
    metrics: WorkerMetrics,
    collection: str,
    action: str,
) -> None:
    # A refused write is repeated until its time is over, because an earlier try may have succeeded.
    async with opened(secured.uri, driver, clock, metrics, timeout_s=1.0) as store:
        REFUSALS.take()
        lose_indexes(secured)
        secured.allow(all_but=(collection, action))
        await use_everything(store, secured.uri, driver, new_post, clock)
    assert REFUSALS.take() - OPTIONAL


async def test_a_configuration_that_is_hidden_is_a_remark(secured: Secured, driver: Driver) -> None:
    actions = ["replSetGetConfig", "replSetGetStatus"]
    privileges = [{"resource": {"cluster": True}, "actions": actions}]
    with secured.mongod.administrator() as client, contextlib.ExitStack() as stack:
        config = client.admin.command("replSetGetConfig")["config"]
        version, members = config["version"], config["members"]
        # A member that does not exist and is not needed.
        other = {"_id": 1, "host": "127.0.0.1:1", "priority": 0, "votes": 0}
        both = {**config, "version": version + 1, "members": [*members, other]}
        client.admin.command("replSetReconfig", both)
        one = {**config, "version": version + 2}
        stack.callback(client.admin.command, "replSetReconfig", one)
        found = {each.what: each for each in await _examine(secured.uri, driver)}
        assert found["members"].state == "ok"
        assert "not checked: this user may not see the configuration" in found["members"].detail
        assert not {"failover", "journal"} & found.keys()
        client.admin.command("createRole", "chatDoctor", privileges=privileges, roles=[])
        stack.callback(client.admin.command, "dropRole", "chatDoctor")
        client.admin.command("grantRolesToUser", NAME, roles=["chatDoctor"])
        found = {each.what: each for each in await _examine(secured.uri, driver)}
        assert {found[each].state for each in ("members", "failover")} == {"warn"}


async def test_without_dbstats_the_store_says_so_once(
    secured: Secured, driver: Driver, clock: DatabaseClock, metrics: WorkerMetrics
) -> None:
    async with opened(secured.uri, driver, clock, metrics) as store:
        assert await store.measure_storage() is not None
        secured.allow(all_but=("", "dbStats"))
        with capture_logs() as logged:
            assert await store.measure_storage() is None
            assert await store.measure_storage() is None
        assert [entry["log_level"] for entry in logged] == ["warning"]
        secured.allow()
        assert await store.measure_storage() is not None


async def test_without_the_right_a_history_is_one_warning(
    secured: Secured, driver: Driver, clock: DatabaseClock, metrics: WorkerMetrics
) -> None:
    async with opened(secured.uri, driver, clock, metrics) as store:
        for action in ("find", "insert"):
            store._is_history_hidden = False
            secured.allow(all_but=("history", action))
            with capture_logs() as logged:
                for _ in range(2):
                    await store.save_history("vm:8080", 1, b"content", 1)
                    await store.load_history("vm:8080")
                    await store.forget_nodes(clock.now_ms())
            assert [entry["log_level"] for entry in logged] == ["warning"]
            assert "collection history" in logged[0]["event"]


async def test_without_dbstats_the_service_accepts_posts(
    secured: Secured, start_service: StartService, connect: Connect
) -> None:
    secured.allow(all_but=("", "dbStats"))
    service = await start_service(mongo_uri=secured.uri, mongo_database="chat")
    chat = connect(service)
    await chat.post("eve", "hello")
    assert await chat.texts("eve") == ["hello"]
    assert await chat.metric("chat_storage_full") == 0


async def test_without_change_streams_other_nodes_posts_arrive(
    secured: Secured, start_service: StartService, connect: Connect
) -> None:
    secured.allow(all_but=("messages", "changeStream"))
    changes = {"mongo_uri": secured.uri, "mongo_database": "chat"}
    here, there = [connect(await start_service(**changes)) for _ in range(2)]
    with capture_logs() as logged:
        for text in ("one", "two"):
            read = asyncio.create_task(here.texts("eve", "?wait=20"))
            await _post_later(here, there, text)
            assert await read == [text]
    told = [entry for entry in logged if "change stream" in entry["event"]]
    assert [entry["log_level"] for entry in told] == ["warning"]


async def _post_later(here: ChatClient, there: ChatClient, text: str) -> None:
    """Post through one node once a client waits at the other."""

    async def waits() -> bool:
        return await here.metric("chat_waiters") == 1

    await eventually(waits)
    await there.post("eve", text)


def _user_with_a_certificate(mongod: SecuredMongod, name: str) -> str:
    """Create a user whose password is a certificate. Return its connection string."""
    pair = mongod.authority.issue(name, is_client=True, organization="example", unit="services")
    both = pair.together(pair.certificate.with_suffix(".both"))
    subject = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).subject
    mongod.create_user(
        subject.rfc4514_string(), [{"role": ROLE["createRole"], "db": "chat"}], password=None
    )
    options = f"{mongod.options}&tlsCertificateKeyFile={both}"
    return f"mongodb://{mongod.host}/?{options}&authMechanism=MONGODB-X509&authSource=$external"


async def test_a_certificate_takes_the_place_of_a_password(
    secured: Secured, start_service: StartService, connect: Connect, driver: Driver
) -> None:
    uri = _user_with_a_certificate(secured.mongod, f"chat-{driver}")
    chat = connect(await start_service(mongo_uri=uri, mongo_database="chat"))
    await chat.post("mallory", "hello")
    assert await chat.texts("mallory") == ["hello"]


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
async def test_a_user_with_a_password_is_served(
    secured: Secured, start_service: StartService, connect: Connect, mechanism: str
) -> None:
    uri = f"{secured.uri}&authMechanism={mechanism}"
    chat = connect(await start_service(mongo_uri=uri, mongo_database="chat"))
    await chat.post("trudy", "hello")
    assert await chat.texts("trudy") == ["hello"]


def _mistakes(secured: Secured, other: Authority) -> Mapping[str, tuple[str, str]]:
    """Return connection strings with a mistake, and what the error says about each."""
    mongod, right = secured.mongod, secured.uri
    trusted = f"tlsCAFile={mongod.authority.certificate}"
    return {
        "a wrong password": (right.replace(WORD, "wrong-word"), "refuses the user"),
        "a wrong name": (right.replace(NAME, "nobody"), "refuses the user"),
        "no user": (right.replace(f"{NAME}:{WORD}@", ""), "requires a user"),
        "another authority": (
            right.replace(trusted, f"tlsCAFile={other.certificate}"),
            "tlsCAFile",
        ),
        "no authority": (right.replace(f"&{trusted}", ""), "tlsCAFile"),
        "no TLS": (
            right.replace(f"&tls=true&{trusted}", ""),
            "the server closed the connection; if it requires TLS, add tls=true",
        ),
        "an authority that is missing": (
            right.replace(trusted, "tlsCAFile=/nowhere.pem"),
            "/nowhere.pem",
        ),
    }


MISTAKES: Final = (
    *("a wrong password", "a wrong name", "no user", "another authority", "no authority"),
    *("no TLS", "an authority that is missing"),
)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_one_line_without_the_password(
    secured: Secured,
    driver: Driver,
    clock: DatabaseClock,
    metrics: WorkerMetrics,
    tmp_path: Path,
    mistake: str,
) -> None:
    uri, said = _mistakes(secured, Authority(tmp_path, "other"))[mistake]
    with pytest.raises((StoreMisconfigured, ServiceError)) as raised:
        async with opened(uri, driver, clock, metrics):
            pass
    (found,) = [each for each in await _examine(uri, driver) if each.state == "fail"]
    for line in (str(raised.value), found.detail):
        assert said in line
        assert "\n" not in line
        for secret in (WORD, "wrong-word"):
            assert secret not in line


async def test_tls_that_the_server_lacks_is_one_line(
    mongo_uri: str, driver: Driver, clock: DatabaseClock, metrics: WorkerMetrics
) -> None:
    uri = f"{mongo_uri}&tls=true"
    with pytest.raises((StoreMisconfigured, ServiceError)) as raised:
        async with opened(uri, driver, clock, metrics, timeout_s=1.0):
            pass
    (found,) = [each for each in await _examine(uri, driver) if each.state == "fail"]
    for line in (str(raised.value), found.detail):
        assert "the server closed the connection; if it does not use TLS, remove tls=true" in line
        assert "\n" not in line


async def test_a_missing_role_is_one_line_at_the_start(
    secured: Secured, driver: Driver, clock: DatabaseClock, metrics: WorkerMetrics
) -> None:
    async with opened(secured.uri, driver, clock, metrics):
        lose_indexes(secured)
    secured.allow(all_but=("messages", "createIndex"))
    with pytest.raises(StoreMisconfigured, match="createIndexes in chat: grant"):
        async with opened(secured.uri, driver, clock, metrics):
            pass
    secured.allow(all_but=("messages", "update"))
    (found,) = [each for each in await _examine(secured.uri, driver) if each.state == "fail"]
    assert "update in chat: grant" in found.detail
