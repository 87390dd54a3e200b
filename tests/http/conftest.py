"""Fixtures for tests of the Python client."""

from collections.abc import Callable, Iterator

import pytest
from tornado.ioloop import IOLoop

from chat_service.client import ChatClient
from chat_service.service import Service
from tests.support.middleman import base_of


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
