"""Fixtures for tests of the Python clients: each story runs with both."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import pytest
from tornado.ioloop import IOLoop

from chat_inbox import ChatClient, SyncChatClient
from chat_service.service import Service
from tests.http.conftest import access_file as access_file
from tests.http.conftest import guarded as guarded
from tests.support.middleman import base_of
from tests.support.threaded import Threaded

#: Creates a client for a base URL. It is closed at the end of the test.
NewClient: TypeAlias = Callable[..., ChatClient]


@pytest.fixture(params=["asyncio", "threads"])
def new_client(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[NewClient]:
    """Creates clients of either kind. Those for threads are called in threads."""
    clients: list[ChatClient] = []

    def make(base: str, **options: Any) -> ChatClient:
        if request.param == "asyncio":
            client = ChatClient(base, **options)
        else:
            client = cast(ChatClient, Threaded(SyncChatClient(base, **options)))
        clients.append(client)
        return client

    yield make

    async def close() -> None:
        for client in clients:
            await client.close()

    io_loop.run_sync(close)


@pytest.fixture
def client(service: Service, new_client: NewClient) -> ChatClient:
    """A client of the service."""
    return new_client(base_of(service))
