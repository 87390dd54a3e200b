"""Clients that disconnect, clients that do not read, and a service that stops under load."""

import asyncio
import socket
from pathlib import Path

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.waiting import eventually


async def only_this_request_is_open(chat: ChatClient) -> bool:
    """Return whether the request for the metrics is the only open one."""
    return await chat.metric("chat_http_requests_open") == 1


async def test_a_client_that_left_before_its_turn_consumes_nothing(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, shards=1)
        chat = connect(service)
        message_id = await chat.post("bob", "x")
        proxy.hold["find"] = b"text"
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /chat/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await proxy.held.wait()
        writer.transport.abort()
        await eventually(lambda: only_this_request_is_open(chat))
        proxy.release()
        assert await chat.read("bob") == [("x", message_id)]
        assert await chat.metric("chat_messages_undelivered_total") == 0
        await service.stop()


async def test_messages_claimed_for_a_client_that_left_are_unread(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, shards=1)
        chat = connect(service)
        await chat.post("bob", "x")
        proxy.hold["update"] = b"token"
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /chat/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await proxy.held.wait()
        writer.transport.abort()
        await eventually(lambda: only_this_request_is_open(chat))
        proxy.release()

        async def is_released() -> bool:
            return await chat.metric("chat_messages_released_total") == 1

        await eventually(is_released)
        assert await chat.texts("bob") == ["x"]
        assert await chat.metric("chat_messages_read_total") == 1
        await service.stop()


async def test_a_stalled_reader_is_cut_off_and_the_rest_is_unread(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(slice_max=20, write_timeout_s=0.3))
    text = "x" * 60_000
    for _ in range(15):
        await asyncio.gather(*(chat.post("bob", text) for _ in range(20)))
    sock = socket.create_connection(("127.0.0.1", int(chat.base.rpartition(":")[2])))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(b"GET /chat/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async def is_cut_off() -> bool:
        return await chat.metric("chat_messages_undelivered_total") > 0

    await eventually(is_cut_off)
    sock.close()
    claimed = await chat.metric("chat_messages_read_total")
    assert claimed < 300
    assert len(await chat.read("bob")) == 300 - claimed


async def test_draining_answers_every_request_that_was_accepted(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service()
    chat, observer = connect(service), connect(await start_service())
    answered: list[str] = []
    refused = 0

    async def post_until_refused(client: ChatClient, name: str) -> None:
        nonlocal refused
        while True:
            try:
                answered.append(await client.post(name, "x"))
            except ConnectionRefusedError:
                # The listening socket is closed. No answer was lost.
                refused += 1
                return

    posting = [asyncio.create_task(post_until_refused(chat, f"u{n}")) for n in range(20)]

    async def is_busy() -> bool:
        return len(answered) >= 100

    await eventually(is_busy)
    async with asyncio.timeout(20):
        assert await service.drain()
        await service.stop()
        await asyncio.gather(*posting)
    assert refused == 20
    stored = [message.id for n in range(20) for message in await observer.read(f"u{n}")]
    assert sorted(stored) == sorted(answered)


async def test_draining_answers_connections_not_yet_accepted(
    start_service: StartService,
) -> None:
    service = await start_service(drain_delay_s=0)
    # The loop does not run between these calls and the drain, so none is accepted yet.
    waiting = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(5)]
    for sock in waiting:
        sock.sendall(b"GET /chat/bob HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await service.drain()
    for sock in waiting:
        with sock:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")


async def test_starting_and_stopping_many_times_leaves_nothing(
    start_service: StartService, connect: Connect
) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(5):
        service = await start_service()
        await connect(service).post("bob", "x")
        assert await service.drain()
        await service.stop()
        await service.stop()

    async def nothing_is_left() -> bool:
        return len(asyncio.all_tasks()) <= before

    await eventually(nothing_is_left)
