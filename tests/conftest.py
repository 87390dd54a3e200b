"""Fixtures for all tests: one real mongod for the run; a database, store or service per test."""

import asyncio
import os
import signal
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tornado.ioloop import IOLoop

from chat_service.service import Service
from config import Settings
from tests.support.client import ChatClient
from tests.support.mongod import running_mongod
from tests.support.server import Server
from workers.clock import DatabaseClock
from workers.dead_letters import DeadLetters
from workers.metrics import WorkerMetrics
from workers.store.connection import StoreOptions
from workers.store.driver import Driver
from workers.store.mongo import MongoStore

#: These tests need packages of tox's environment `clients`: a browser driver, and a renderer of
#: terminals. Those of deploy/ need validators, which only its environment `deploy` has; those of
#: generated clients need a generator, which only `generators` has.
_CLIENTS_ONLY = (
    *("pages", "examples", "clients/test_below_a_path.py", "clients/test_docs_site.py"),
    "docs/test_recording.py",
)
collect_ignore = [] if find_spec("playwright") else [*_CLIENTS_ONLY]
if not find_spec("cfnlint"):
    collect_ignore.append("deploy")
if not find_spec("openapi_python_client"):
    collect_ignore.append("generators")
#: All tests of these folders have a mark: that of the environment which has what they need.
MARKED_FOLDERS = {
    **dict.fromkeys(("clients", "docs", "examples", "pages"), "clients"),
    "deploy": "deploy",
    "generators": "generators",
}
DRIVERS = os.environ.get("TEST_DRIVERS", "pymongo").split(",")
NO_DEAD_LETTERS = DeadLetters()
_databases = count()

StartService: TypeAlias = Callable[..., Awaitable[Service]]
Connect: TypeAlias = Callable[..., ChatClient]
OpenStore: TypeAlias = Callable[..., Awaitable[MongoStore]]


def pytest_configure() -> None:
    """Stop ignoring SIGINT, SIGQUIT and SIGHUP.

    A shell starts background jobs with the first two ignored, and nohup ignores the last one. The
    services that the tests start would inherit that.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of tox's environments that have what they need."""
    here = Path(__file__).parent
    for item in items:
        if mark := MARKED_FOLDERS.get(item.path.relative_to(here).parts[0]):
            item.add_marker(mark)


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """A loop for each test. Unlike that of pytest-tornasync, it lets connections finish closing."""
    loop = IOLoop()
    loop.make_current()
    yield loop
    loop.run_sync(lambda: asyncio.sleep(0.01))
    loop.clear_current()
    loop.close(all_fds=True)


@pytest.fixture(scope="session")
def mongo_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of the run's mongod. Without one, tests fail; none is skipped."""
    with running_mongod(tmp_path_factory.mktemp("mongod")) as uri:
        yield uri


@pytest.fixture
def database() -> str:
    """The name of a database that no other test uses."""
    return f"test_{os.getpid()}_{next(_databases)}"


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each driver under test: PyMongo, or Motor in tox's environment `motor`."""
    return cast(Driver, request.param)


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, mongo_uri: str, database: str, driver: Driver
) -> Settings:
    """The defaults, with the run's mongod, a separate database and a free port.

    The mark `settings` changes some of them for one test.
    """
    defaults = Settings(
        port=0,
        mongo_uri=mongo_uri,
        mongo_database=database,
        mongo_driver=driver,
        log_requests_per_s=0,
        # The host of requests that tests write by hand: tests.support.raw.HOST.
        allowed_hosts=("good.test",),
    )
    changes = [mark.kwargs for mark in request.node.iter_markers("settings")]
    return msgspec.structs.replace(defaults, **ChainMap(*changes))


@pytest.fixture(autouse=True)
def fresh_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the caching and slowing of metrics, because tests read them after each request."""
    monkeypatch.setattr("chat_service.service.METRICS_KEPT_S", 0.0)
    monkeypatch.setattr("chat_service.handlers.health.METRICS_AT_ONCE", 1 << 40)
    monkeypatch.setattr("chat_service.handlers.dashboard.HISTORY_AT_ONCE", 1 << 40)


@pytest.fixture
def start_service(io_loop: IOLoop, settings: Settings) -> Iterator[StartService]:
    """Starts services as in production, with some settings changed. Stops them at the end."""
    services: list[Service] = []

    async def start(**changes: Any) -> Service:
        service = Service(msgspec.structs.replace(settings, **changes))
        services.append(service)
        await service.start()
        return service

    yield start
    for service in services:
        io_loop.run_sync(service.stop, timeout=120)


@pytest.fixture
def connect(io_loop: IOLoop) -> Iterator[Connect]:
    """Creates clients for services. Closes them at the end."""
    clients: list[ChatClient] = []

    def make(service: Service, limit: int = 64) -> ChatClient:
        clients.append(ChatClient(f"http://127.0.0.1:{service.port}", limit))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def service(io_loop: IOLoop, start_service: StartService) -> Service:
    """One service with the default settings."""
    started: Service = io_loop.run_sync(start_service, timeout=120)
    return started


@pytest.fixture
def chat(service: Service, connect: Connect) -> ChatClient:
    """A client of that service."""
    return connect(service)


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service as a separate process, started as users start it."""
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database) as running:
        yield running


@pytest.fixture
def clock() -> DatabaseClock:
    """A clock that follows this machine's clock."""
    return DatabaseClock()


@pytest.fixture
def registry() -> CollectorRegistry:
    """The metrics registry of one test."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> WorkerMetrics:
    """The engine's metrics."""
    return WorkerMetrics(registry)


@pytest.fixture
def open_store(
    io_loop: IOLoop,
    mongo_uri: str,
    database: str,
    driver: Driver,
    clock: DatabaseClock,
    metrics: WorkerMetrics,
) -> Iterator[OpenStore]:
    """Opens stores on one database, as several nodes do. Closes them at the end."""
    stores: list[MongoStore] = []

    async def make(
        uri: str = mongo_uri,
        timeout_s: float = 4.0,
        node: str = "test",
        dead_letters: DeadLetters = NO_DEAD_LETTERS,
        is_sole: bool = False,
    ) -> MongoStore:
        options = StoreOptions(
            driver=driver,
            database=database,
            timeout_s=timeout_s,
            purge_grace_s=200,
            receipt_keep_s=3600,
            node=node,
            dead_letters=dead_letters,
            is_sole=is_sole,
        )
        store = MongoStore(uri, options, clock, metrics)
        stores.append(store)
        await store.open()
        return store

    yield make
    for store in stores:
        io_loop.run_sync(store.close, timeout=120)


@pytest.fixture
def store(io_loop: IOLoop, open_store: OpenStore) -> MongoStore:
    """One store."""
    opened: MongoStore = io_loop.run_sync(open_store, timeout=120)
    return opened
