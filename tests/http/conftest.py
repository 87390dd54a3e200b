"""Fixtures for tests of the Python client, and of access."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from chat_service.client import ChatClient
from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import PATHS, everybody, write
from tests.support.middleman import base_of


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> bytes:
    """The header that selects a path."""
    return PATHS[request.param]


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    """The access file, with all holders and without anonymous requests."""
    file = tmp_path / "access.toml"
    write(file, everybody())
    return file


@pytest.fixture
def guarded(io_loop: IOLoop, start_service: StartService, access_file: Path) -> Service:
    """A service that takes tokens."""

    async def start() -> Service:
        return await start_service(access="tokens", access_file=str(access_file))

    service: Service = io_loop.run_sync(start, timeout=120)
    return service


@pytest.fixture
def connect_client(io_loop: IOLoop) -> Iterator[Callable[..., ChatClient]]:
    """Creates clients for a base URL. Closes them at the end."""
    clients: list[ChatClient] = []

    def make(base: str, tries: int = 10) -> ChatClient:
        clients.append(ChatClient(base, tries=tries))
        return clients[-1]

    yield make
    for client in clients:
        io_loop.run_sync(client.close)


@pytest.fixture
def client(service: Service, connect_client: Callable[..., ChatClient]) -> ChatClient:
    """A Python client of the service."""
    return connect_client(base_of(service))
