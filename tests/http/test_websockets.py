"""Streams as WebSockets, tested with a client from another project."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from chat_service.service import Service
from chat_service.streaming import websocket
from chat_service.streaming.subscription import Subscription
from tests.conftest import Connect, StartService
from tests.support.cases import each_case
from tests.support.client import ChatClient
from tests.support.raw import errors_logged, get, unharmed
from tests.support.waiting import eventually
from workers.commands import Message


@asynccontextmanager
async def stream(
    service: Service, username: str = "bob", **options: object
) -> AsyncIterator[ClientConnection]:
    """Open a WebSocket on an inbox."""
    url = f"ws://127.0.0.1:{service.port}/chat/{username}/stream"
    async with connect(url, **options) as socket:  # type: ignore[arg-type]
        yield socket


async def message(socket: ClientConnection) -> dict[str, Any]:
    received: dict[str, Any] = json.loads(await socket.recv())
    assert received["type"] == "message"
    return received


async def acknowledge(socket: ClientConnection, message_id: str) -> None:
    await socket.send(json.dumps({"type": "ack", "id": message_id}))


async def closed(socket: ClientConnection) -> int | None:
    """Return the code with which the server closes the WebSocket."""
    await socket.wait_closed()
    return socket.close_code


async def test_only_unacknowledged_messages_are_delivered_again(
    service: Service, chat: ChatClient
) -> None:
    async with stream(service) as socket:
        for text in ("one", "two", "three"):
            await chat.post("bob", text)
        received = [await message(socket) for _ in range(3)]
        assert [each["text"] for each in received] == ["one", "two", "three"]
        # Acknowledgements are cumulative, so the first message is read as well.
        await acknowledge(socket, received[1]["id"])
        assert await chat.texts("bob") == []
    async with stream(service) as socket:
        assert (await message(socket))["text"] == "three"
    assert await chat.texts("bob", "?wait=10") == ["three"]


async def test_an_open_websocket_keeps_its_messages_leased(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.LEASE_S", 0.6)
    monkeypatch.setattr(websocket, "BEAT_S", 0.1)
    await chat.post("bob", "hello")
    async with stream(service) as socket:
        received = await message(socket)
        assert await chat.texts("bob", "?wait=2") == []
        await acknowledge(socket, received["id"])

        async def read() -> bool:
            return await chat.metric("chat_messages_read_total") == 1

        await eventually(read)


@pytest.mark.parametrize(
    "sent", ["", "x", "[]", "7", '{"type": "ack"}', '{"type": "nack", "id": "x"}', '{"id": 1}']
)
async def test_a_bad_acknowledgement_gets_an_error(
    service: Service, chat: ChatClient, sent: str
) -> None:
    async with stream(service) as socket:
        await socket.send(sent)
        assert json.loads(await socket.recv())["type"] == "error"
        await acknowledge(socket, "of nothing")
        assert json.loads(await socket.recv())["type"] == "error"
        await chat.post("bob", "still open")
        assert (await message(socket))["text"] == "still open"


#: Frames, and the code that the WebSocket is closed with.
BAD_FRAMES: Final = {
    "a long frame": (1009, [Frame(Opcode.TEXT, b"x" * 20_000)]),
    "long fragments": (
        1009,
        [
            Frame(Opcode.TEXT, b"x" * 9000, fin=False),
            Frame(Opcode.CONT, b"x" * 9000, fin=False),
        ],
    ),
    "many fragments": (
        1009,
        [
            Frame(Opcode.TEXT, b"x", fin=False),
            *[Frame(Opcode.CONT, b"", fin=False)] * 20,
        ],
    ),
    "invalid UTF-8": (1007, [Frame(Opcode.TEXT, b"\xff\xfe")]),
    "a binary frame": (1003, [Frame(Opcode.BINARY, b"\x00")]),
    "a continuation of no message": (1002, [Frame(Opcode.CONT, b"x")]),
}


@each_case(BAD_FRAMES)
async def test_a_bad_frame_closes_with_the_right_code(
    case: tuple[int, list[Frame]], service: Service
) -> None:
    code, frames = case
    async with stream(service) as socket:
        for frame in frames:
            data = frame.serialize(mask=True)
            socket.transport.write(data)
        assert await closed(socket) == code


@pytest.mark.parametrize("kind", ["pings", "pongs", "nonsense", "unknown ids", "empty fragments"])
async def test_a_flood_of_frames_is_closed_with_1008(
    service: Service, chat: ChatClient, kind: str
) -> None:
    frames = {
        "pings": Frame(Opcode.PING, b""),
        "pongs": Frame(Opcode.PONG, b""),
        "nonsense": Frame(Opcode.TEXT, b"x"),
        "unknown ids": Frame(Opcode.TEXT, b'{"type":"ack","id":"x"}'),
        "empty fragments": Frame(Opcode.CONT, b"", fin=False),
    }
    flood = frames[kind].serialize(mask=True) * 20_000
    # Without a limit on its queue, the client reads up to the close frame.
    async with stream(service, max_queue=None) as socket:
        if kind == "empty fragments":
            # A message may have only a few fragments, so send many such messages.
            first = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
            last = Frame(Opcode.CONT, b"x").serialize(mask=True)
            flood = (first + frames[kind].serialize(mask=True) * 15 + last) * 1200
        socket.transport.write(flood)
        assert await closed(socket) == 1008
    await chat.post("bob", "hello")
    assert await chat.texts("bob") == ["hello"]


async def test_each_message_may_be_acknowledged_alone(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "FRAMES_AT_ONCE", 2)
    monkeypatch.setattr(websocket, "FRAMES_PER_S", 0)
    for number in range(50):
        await chat.post("bob", str(number))
    async with stream(service) as socket:
        received = [await message(socket) for _ in range(50)]
        for each in received:
            await acknowledge(socket, each["id"])

        async def read() -> bool:
            return await chat.metric("chat_messages_read_total") == 50

        await eventually(read)


async def test_floods_leave_the_loop_to_others_in_every_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Disable the limit on frames, which would end the floods early.
    monkeypatch.setattr(websocket, "FRAMES_AT_ONCE", 1 << 40)
    flood = Frame(Opcode.PING, b"").serialize(mask=True) * 20_000
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(stream(service)) for _ in range(4)]
        # The client does not read, so that reading cannot lengthen the measured turns.
        for socket in sockets:
            socket.transport.pause_reading()
        for socket in sockets:
            socket.transport.write(flood)
        longest, answered = 0.0, 0
        protocol_sends = Protocol.data_to_send

        def count(self: Protocol) -> list[bytes]:
            nonlocal answered
            data = protocol_sends(self)
            if self.side is Side.SERVER:
                answered += len(data)
            return data

        monkeypatch.setattr(Protocol, "data_to_send", count)
        while answered < 4 * 20_000:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
        # A whole flood takes a fifth of a second, and one read of it a tenth of that; leave room
        # for a garbage collection.
        assert longest < 0.1
        for socket in sockets:
            socket.transport.abort()


async def test_an_acknowledgement_may_come_in_fragments(service: Service, chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    async with stream(service) as socket:
        received = await message(socket)
        text = json.dumps({"type": "ack", "id": received["id"]})
        await socket.send([text[:5], text[5:9], text[9:]])

        async def read() -> bool:
            return await chat.metric("chat_messages_read_total") == 1

        await eventually(read)


async def test_a_client_that_answers_no_ping_is_gone(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "BEAT_S", 0.05)
    await chat.post("bob", "hello")
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(
            get(
                b"/chat/bob/stream",
                *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        )
        # This client neither reads nor writes, so its message soon goes to another reader.
        assert await chat.texts("bob", "?wait=10") == ["hello"]
        await connection.close()


async def test_unacknowledged_deliveries_are_bounded(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.UNACKED_MAX", 2)
    async with stream(service) as socket:
        for text in ("one", "two"):
            await chat.post("bob", text)
        await message(socket)
        second = await message(socket)
        await chat.post("bob", "three")
        assert await chat.texts("bob") == ["three"]
        await chat.post("bob", "four")
        await acknowledge(socket, second["id"])
        assert (await message(socket))["text"] == "four"


@pytest.mark.parametrize("most", [1, 1000], ids=["full", "with room"])
async def test_a_service_that_stops_says_so(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.UNACKED_MAX", most)
    service, other = await start_service(), await start_service()
    await connect(service).post("bob", "hello")
    async with stream(service) as socket:
        await message(socket)
        draining = asyncio.create_task(service.drain())
        assert await closed(socket) == 1001
        assert await draining
    await service.stop()
    assert await connect(other).texts("bob") == ["hello"]


async def test_a_message_for_a_leaving_client_stays_unread(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = asyncio.Event()
    take_next, flush = Subscription.next, websocket._Socket._flush

    async def take_next_then_wait(self: Subscription, wait_s: float) -> Sequence[Message]:
        messages = await take_next(self, wait_s)
        await leaving.wait()
        return messages

    async def flush_slowly(self: websocket._Socket) -> None:
        if self._protocol.close_expected():
            leaving.set()
            await asyncio.sleep(0.05)
        await flush(self)

    monkeypatch.setattr(Subscription, "next", take_next_then_wait)
    monkeypatch.setattr(websocket._Socket, "_flush", flush_slowly)
    await chat.post("bob", "hello")
    with errors_logged() as errors:
        async with stream(service) as socket:
            await socket.close()
        assert await chat.texts("bob", "?wait=10") == ["hello"]
    assert not errors


async def test_an_ack_just_before_closing_counts(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    acknowledge_upto = Subscription.acknowledge_upto

    async def acknowledge_slowly(self: Subscription, message_id: str) -> bool:
        begun.set()
        await asyncio.sleep(0.1)
        return await acknowledge_upto(self, message_id)

    monkeypatch.setattr(Subscription, "acknowledge_upto", acknowledge_slowly)
    for text in ("one", "two"):
        await chat.post("bob", text)
    async with stream(service) as socket:
        received = [await message(socket) for _ in range(2)]
        acks = [json.dumps({"type": "ack", "id": each["id"]}).encode() for each in received]
        frames = [Frame(Opcode.TEXT, ack) for ack in acks]
        frames.append(Frame(Opcode.CLOSE, b"\x03\xe8"))
        socket.transport.write(b"".join(frame.serialize(mask=True) for frame in frames))
        await begun.wait()
        await chat.post("bob", "three")
        assert await chat.texts("bob", "?wait=10") == ["three"]


async def test_an_expired_message_acknowledges_those_before_it(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.streaming.subscription.UNACKED_MAX", 3)
    async with stream(service) as socket:
        for text, timeout in (("one", 600), ("two", 600), ("three", 1)):
            await chat.post("bob", text, timeout)
        last = [await message(socket) for _ in range(3)][-1]

        async def has_expired() -> bool:
            return await chat.metric("chat_messages_expired_unread_total") == 1

        await eventually(has_expired)
        await acknowledge(socket, last["id"])
        assert json.loads(await socket.recv())["type"] == "error"
    assert await chat.metric("chat_messages_read_total") == 2
    assert await chat.texts("bob", "?wait=0.5") == []


async def test_pages_of_other_sites_open_none(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(allowed_origins=("https://friend.test",))
    host = f"127.0.0.1:{service.port}"
    for origin in (f"http://{host}", "https://friend.test"):
        # As browsers describe a page of another site.
        headers = {"Sec-Fetch-Site": "same-origin" if host in origin else "cross-site"}
        async with stream(service, origin=origin, additional_headers=headers) as socket:
            await socket.close()
    for origin in ("http://evil.test", "https://friend.test.evil", "null"):
        with pytest.raises(InvalidStatus) as refused:
            async with stream(service, origin=origin):
                pass
        assert refused.value.response.status_code == 403


async def test_one_that_is_opened_at_the_inbox_itself_reads_nothing(
    service: Service, chat: ChatClient
) -> None:
    await chat.post("bob", "hello")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{service.port}/chat/bob"):
            pass
    assert refused.value.response.status_code == 400
    assert b"/chat/:username/stream" in refused.value.response.body
    assert await chat.texts("bob") == ["hello"]


async def test_a_repeated_acknowledgement_is_no_error(service: Service, chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    async with stream(service) as socket:
        received = await message(socket)
        for _ in range(3):
            await acknowledge(socket, received["id"])
        await chat.post("bob", "next")
        assert (await message(socket))["text"] == "next"


@pytest.mark.parametrize(
    "headers",
    [
        (b"Upgrade: websocket",),
        (b"Upgrade: websocket", b"Connection: Upgrade"),
        (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: x"),
        (
            *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 8"),
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
    ],
)
async def test_an_invalid_handshake_is_refused(
    service: Service, headers: tuple[bytes, ...]
) -> None:
    async with unharmed(service) as wire:
        answer = await (await wire.connect()).ask(get(b"/chat/bob/stream", *headers))
        assert answer.status == 400
        assert answer.document["type"].endswith("bad-request")
