"""The clients wait for longer than the service lets one request wait, and can be interrupted."""

import asyncio
import inspect
from contextlib import suppress

import pytest

from chat_inbox import ChatClient, Message, OutcomeUnknown, SyncChatClient
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.conftest import Connect, StartService
from tests.support.middleman import Middleman, base_of
from tests.support.waiting import eventually


async def test_a_wait_goes_on_over_many_requests(
    start_service: StartService, new_client: NewClient
) -> None:
    service = await start_service(max_wait_s=0.05)
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        waiting = asyncio.ensure_future(client.wait("bob", 600))

        async def has_asked_thrice() -> bool:
            return len(between.heads) > 2

        await eventually(has_asked_thrice)
        posted = await client.post("bob", "at last")
        assert await waiting == [Message("at last", posted.id)]


async def test_a_wait_ends_with_its_time(client: ChatClient) -> None:
    assert await client.wait("bob", 0.05) == []
    assert await client.wait("bob", 0) == []
    posted = await client.post("bob", "x")
    assert await client.wait("bob", 0) == [Message("x", posted.id)]


async def test_a_wait_that_is_cancelled_takes_nothing(service: Service, connect: Connect) -> None:
    metrics = connect(service)

    async def is_open(count: int) -> bool:
        return await metrics.metric("chat_http_requests_open") == count

    async with ChatClient(base_of(service)) as client:
        reading = asyncio.create_task(client.wait("bob", 20))
        # The second one is the request for the metrics.
        await eventually(lambda: is_open(2))
        reading.cancel()
        await asyncio.wait((reading,))
        await eventually(lambda: is_open(1))
        posted = await client.post("bob", "x")
        assert await client.read("bob") == [Message("x", posted.id)]


async def test_an_answer_that_takes_too_long_is_given_up(new_client: NewClient) -> None:
    over = asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each part arrives in time; the whole answer does not.
        asking = asyncio.create_task(reader.read())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not asking.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        writer.close()
        over.set()

    server = await asyncio.start_server(stall, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = new_client(f"http://127.0.0.1:{port}", tries=1, timeout_s=0.3)
    with pytest.raises(OutcomeUnknown, match="no answer in time"):
        await client.post("bob", "x")
    await over.wait()
    server.close()


async def test_a_wait_for_a_connection_is_not_the_services(new_client: NewClient) -> None:
    body = b'{"lease":null,"ttl":1,"messages":[]}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(0.6)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = new_client(f"http://127.0.0.1:{port}", tries=1, timeout_s=2.5, connections=1)
    # The last ones wait longer for a connection than an answer may take.
    leases = await asyncio.gather(*(client.lease("bob") for _ in range(5)))
    assert [lease.name for lease in leases] == [None] * 5
    await client.close()
    server.close()


async def test_one_client_serves_many_requests_at_once(client: ChatClient) -> None:
    await asyncio.gather(*(client.post("bob", str(number)) for number in range(200)))
    read = await client.read("bob")
    assert sorted(int(message.text) for message in read) == list(range(200))


async def test_sequential_requests_share_a_connection(
    service: Service, new_client: NewClient, connect: Connect
) -> None:
    client = new_client(base_of(service))
    metrics = connect(service)
    before = await metrics.metric("chat_http_connections")
    for _ in range(5):
        await client.post("bob", "x")
        await client.count("bob")
    assert await metrics.metric("chat_http_connections") == before + 1


async def test_a_closed_idle_connection_is_replaced(
    start_service: StartService, new_client: NewClient
) -> None:
    service = await start_service(idle_timeout_s=0.05)
    client = new_client(base_of(service), tries=1)
    for _ in range(3):
        await client.post("bob", "x")
        await asyncio.sleep(0.3)
    assert await client.count("bob") == 3


def test_both_clients_have_the_same_methods() -> None:
    for name, method in inspect.getmembers(ChatClient, inspect.isfunction):
        if name.startswith("_"):
            continue
        other = getattr(SyncChatClient, name)
        assert list(inspect.signature(method).parameters.values()) == list(
            inspect.signature(other).parameters.values()
        )
