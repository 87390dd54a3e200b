"""Fixtures with an emulated router over two real mongods."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest
from pymongo import MongoClient
from tornado.ioloop import IOLoop

from tests.conftest import OpenStore
from tests.mongos.router import Cluster, Router
from tests.store.conftest import new_post
from tests.support.mongod import running_mongod
from workers.store.driver import Document
from workers.store.mongo import MongoStore

__all__ = ["new_post"]

OpenRouter: TypeAlias = Callable[[], Awaitable[Router]]


@pytest.fixture(scope="session")
def second_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of the mongod that is the second database shard."""
    with running_mongod(tmp_path_factory.mktemp("second")) as uri:
        yield uri


@pytest.fixture
def open_router(io_loop: IOLoop, mongo_uri: str, second_uri: str) -> Iterator[OpenRouter]:
    """Starts routers in front of the same two database shards. Stops them at the end."""
    cluster = Cluster((mongo_uri, second_uri))
    routers: list[Router] = []

    async def start() -> Router:
        routers.append(await Router(cluster).__aenter__())
        return routers[-1]

    yield start
    for router in routers:
        io_loop.run_sync(lambda each=router: each.__aexit__(None, None, None))
    io_loop.run_sync(cluster.close)


@pytest.fixture
def router(io_loop: IOLoop, open_router: OpenRouter) -> Router:
    """One router."""
    started: Router = io_loop.run_sync(open_router, timeout=120)
    return started


@pytest.fixture
def mongods(mongo_uri: str, second_uri: str) -> Iterator[list[MongoClient[Document]]]:
    """Clients of the two mongods, past the router."""
    with MongoClient[Document](mongo_uri) as first, MongoClient[Document](second_uri) as second:
        yield [first, second]


@pytest.fixture
def open_store(router: Router, open_store: OpenStore) -> OpenStore:
    """Opens stores behind the router, unless another connection string is given."""

    async def make(uri: str = router.uri, **options: Any) -> MongoStore:
        return await open_store(uri, **options)

    return make


@pytest.fixture
def any_store(store: MongoStore) -> MongoStore:
    """The store behind the router, for the tests of every store."""
    return store
