"""Server-Sent Events: only messages that the client did not confirm are delivered again."""

import asyncio
import json
import socket
import struct

import pytest

from chat_service.handlers import stream as stream_handler
from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.events import EventStream
from tests.support.raw import get, unharmed
from tests.support.waiting import eventually


async def nothing_streams(chat: ChatClient) -> None:
    """Wait until the service has seen every stream close."""

    async def closed() -> bool:
        return await chat.metric("chat_waiters") == 0

    await eventually(closed)


async def acknowledged(chat: ChatClient) -> float:
    answer = await chat.request("GET", "/metrics")
    name = b'chat_lease_messages_total{end="acknowledged"} '
    (line,) = (line for line in answer.body.splitlines() if line.startswith(name))
    return float(line[len(name) :])


async def test_a_stream_delivers_old_and_new_messages(service: Service, chat: ChatClient) -> None:
    await chat.post("bob", "zero")
    await chat.post("bob", "one\r\nevent: message\n\n\u2028")
    async with EventStream(service.port) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert stream.headers["Cache-Control"] == "no-store"
        assert await stream.texts(2) == ["zero", "one\r\nevent: message\n\n\u2028"]
        for number in range(5):
            await chat.post("bob", str(number))
            assert await stream.texts(1) == [str(number)]
        # The stream leases them, so no other reader gets them.
        assert await chat.texts("bob") == []


async def test_closing_a_stream_releases_unacknowledged_messages(
    service: Service, chat: ChatClient
) -> None:
    await chat.post("bob", "hello")
    async with EventStream(service.port) as stream:
        assert await stream.texts(1) == ["hello"]
    assert await chat.texts("bob", "?wait=10") == ["hello"]
    assert await chat.metric("chat_messages_undelivered_total") == 0


async def test_messages_a_stream_cannot_write_are_unread_at_once(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = stream_handler._encode
    client = socket.create_connection(("127.0.0.1", service.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sendall(get(b"/chat/bob/stream"))

    def leaves_just_before(message: object) -> bytes:
        client.close()
        return encode(message)

    async def waits() -> bool:
        return await chat.metric("chat_waiters") == 1

    await eventually(waits)
    # The write fails before the loop notices the closed connection. Either ends the stream.
    monkeypatch.setattr(stream_handler, "_encode", leaves_just_before)
    await chat.post("bob", "hello")
    assert await chat.texts("bob", "?wait=10") == ["hello"]


async def test_a_reconnecting_stream_acknowledges_what_it_received(
    service: Service, chat: ChatClient
) -> None:
    for text in ("one", "two", "three"):
        await chat.post("bob", text)
    async with EventStream(service.port) as stream:
        first, second = await stream.next(), await stream.next()
        stream.cut()
    async with EventStream(service.port, last_event_id=second.id) as stream:
        assert await stream.texts(1) == ["three"]
        await chat.post("bob", "four")
        assert await stream.texts(1) == ["four"]
    assert await acknowledged(chat) == 2
    assert first.id < second.id


async def test_a_stream_may_reconnect_before_its_end_was_noticed(
    start_service: StartService, connect: Connect
) -> None:
    here, there = await start_service(), await start_service()
    chat = connect(here)
    for text in ("one", "two"):
        await chat.post("bob", text)
    # The first connection stays half open.
    async with EventStream(here.port) as hanging:
        first = await hanging.next()
        async with EventStream(there.port, last_event_id=first.id) as stream:

            async def resumed() -> bool:
                return await acknowledged(connect(there)) == 1

            await eventually(resumed)
            hanging.cut()
            assert await stream.texts(1) == ["two"]


async def test_messages_on_an_open_stream_count_as_read_in_the_end(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_handler, "ACKNOWLEDGED_AFTER_S", 0.1)
    await chat.post("bob", "hello")
    async with EventStream(service.port) as stream:
        assert await stream.texts(1) == ["hello"]

        async def read() -> bool:
            return await acknowledged(chat) == 1

        await eventually(read)
    # The client returns without a Last-Event-ID, and still does not get the old message again.
    async with EventStream(service.port) as stream:
        await chat.post("bob", "new")
        assert await stream.texts(1) == ["new"]


async def test_a_streams_messages_are_acknowledged_by_its_lease(
    service: Service, chat: ChatClient
) -> None:
    await chat.post("bob", "one")
    async with EventStream(service.port) as stream:
        await stream.texts(1)
        await chat.post("bob", "two")
        second = await stream.next()
        body = json.dumps({"lease": stream.lease, "ids": [second.id]}).encode()
        answer = await chat.request("POST", "/chat/bob/ack", body)
        assert json.loads(answer.body) == {"acknowledged": 1}
    assert await chat.texts("bob", "?wait=10") == ["one"]


async def test_streams_of_one_inbox_share_its_messages(service: Service, chat: ChatClient) -> None:
    async with EventStream(service.port) as one, EventStream(service.port) as other:
        texts = []
        reads = {asyncio.create_task(stream.next()): stream for stream in (one, other)}
        for number in range(20):
            await chat.post("bob", str(number))
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                stream = reads.pop(read)
                texts.append(read.result().data["text"])
                reads[asyncio.create_task(stream.next())] = stream
        for read in reads:
            read.cancel()
        assert texts == [str(number) for number in range(20)]


async def test_a_silent_stream_says_that_it_is_there(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_handler, "KEEP_ALIVE_S", 0.05)
    async with EventStream(service.port) as stream:
        assert [(await stream.next()).name for _ in range(3)] == ["comment"] * 3
        await chat.post("bob", "hello")
        while (event := await stream.next()).name == "comment":
            pass
        assert event.data["text"] == "hello"


@pytest.mark.parametrize("last", ["nonsense", "0" * 32, "$gt", "x" * 5000, "é"])
async def test_an_unknown_last_event_id_is_ignored(
    service: Service, chat: ChatClient, last: str
) -> None:
    await chat.post("bob", "hello")
    async with EventStream(service.port, last_event_id=last) as stream:
        assert await stream.texts(1) == ["hello"]


async def test_stopping_ends_streams_and_keeps_undelivered_messages(
    start_service: StartService, connect: Connect
) -> None:
    service, other = await start_service(), await start_service()
    await connect(service).post("bob", "hello")
    async with EventStream(service.port) as stream:
        assert await stream.texts(1) == ["hello"]
        assert await service.drain()
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.next()
    await service.stop()
    assert await connect(other).texts("bob") == ["hello"]


async def test_a_long_answer_over_http_1_0_ends_by_closing(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(slice_max=5)
    chat = connect(service)
    for number in range(12):
        await chat.post("bob", str(number))
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /chat/bob HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = await reader.read()
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])) == 12
    writer.close()


async def test_a_stream_over_the_waiter_limit_is_refused_at_once(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(waiters_max=1)
    async with EventStream(service.port):

        async def waits() -> bool:
            return await connect(service).metric("chat_waiters") == 1

        await eventually(waits)
        async with EventStream(service.port) as stream:
            assert stream.status == 503


async def test_a_stream_holds_a_bounded_number_of_messages(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.UNACKED_MAX", 3)
    monkeypatch.setattr(stream_handler, "KEEP_ALIVE_S", 0.2)
    async with EventStream(service.port) as stream:
        for number in range(3):
            await chat.post("bob", str(number))
        assert await stream.texts(3) == ["0", "1", "2"]
        await chat.post("bob", "3")
        assert (await stream.next()).name == "comment"
        assert await chat.texts("bob") == ["3"]


async def test_an_ack_through_any_node_makes_room(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.UNACKED_MAX", 3)
    monkeypatch.setattr(stream_handler, "ACKNOWLEDGED_AFTER_S", 1000.0)
    streaming, other = [await start_service() for _ in range(2)]
    elsewhere = connect(other)
    async with EventStream(streaming.port) as stream:
        for number in range(0, 12, 3):
            for each in range(number, number + 3):
                await elsewhere.post("bob", str(each))
            assert await stream.texts(3) == [str(each) for each in range(number, number + 3)]
            body = json.dumps({"lease": stream.lease}).encode()
            answer = await elsewhere.request("POST", "/chat/bob/ack", body)
            assert json.loads(answer.body) == {"acknowledged": 3}


async def test_a_stream_is_had_by_old_clients_too(service: Service, chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /chat/bob/stream HTTP/1.0\r\n\r\n")
    assert b" 200 " in await reader.readline()
    assert b"chunked" not in await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b'"text":"hello"')
    writer.close()


@pytest.mark.parametrize(
    "header",
    [b"Sec-Purpose: prefetch", b"Sec-Fetch-Site: cross-site", b"Origin: http://evil.test"],
)
async def test_an_unintended_stream_is_refused(
    service: Service, chat: ChatClient, header: bytes
) -> None:
    await chat.post("bob", "hello")
    async with unharmed(service) as wire:
        answer = await (await wire.connect()).ask(get(b"/chat/bob/stream", header))
        assert answer.status == 403
    await nothing_streams(chat)
    assert await chat.texts("bob") == ["hello"]


async def test_a_hundred_streams_that_are_cut_lose_nothing(
    service: Service, chat: ChatClient
) -> None:
    received: set[str] = set()
    for number in range(100):
        await chat.post("bob", str(number))
    for number in range(30):
        async with EventStream(service.port) as stream:
            # Close the stream while it delivers.
            event = await stream.next()
            if number % 3:
                body = json.dumps({"lease": stream.lease, "ids": [event.id]}).encode()
                answer = await chat.request("POST", "/chat/bob/ack", body)
                assert json.loads(answer.body) == {"acknowledged": 1}
                received.add(event.data["text"])
    assert len(received) == 20
    rest: list[str] = []
    # A stream's messages may be released a moment after it is seen to close.
    while len(rest) < 80 and (texts := await chat.texts("bob", "?wait=10")):
        rest += texts
    rest += await chat.texts("bob")
    assert sorted(received.union(rest), key=int) == [str(number) for number in range(100)]
    assert not received.intersection(rest)
