"""Unfinished bodies share one memory budget, and do not harm other clients."""

import asyncio
import json
import socket
import tracemalloc
from pathlib import Path
from typing import Final

import pytest

from chat_service.server.body_budget import Body
from chat_service.server.chunks import read_chunks
from chat_service.server.http_stream import Awaiting, HttpStream
from chat_service.server.lingering import Lingering
from chat_service.service import Service
from tests.conftest import StartService
from tests.support.raw import (
    HOST,
    accepted,
    assert_not_http,
    chunked,
    message,
    post,
    request,
    unharmed,
)
from tests.support.server import Server
from tests.support.waiting import eventually

CHUNKED: Final = b"Transfer-Encoding: chunked"
MIB: Final = 1 << 20


class Unfinished:
    """A client that sends part of a body, then waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def send(cls, port: int, target: bytes, declared: int, size: int) -> "Unfinished":
        """Connect, declare a length, and send fewer bytes."""
        connection = cls(*await asyncio.open_connection("127.0.0.1", port))
        head = b"POST %b HTTP/1.1\r\n%b\r\nContent-Length: %d\r\n\r\n" % (target, HOST, declared)
        try:
            connection._writer.write(head + b"[" + b" " * (size - 1))
            await connection._writer.drain()
        except ConnectionError:
            # The answer can still be read.
            pass
        return connection

    async def answer(self, within_s: float = 0.01) -> bytes:
        """Return all bytes up to the end of the connection, or nothing if it is still open."""
        try:
            async with asyncio.timeout(within_s):
                return await self._reader.read()
        except TimeoutError:
            return b""

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


async def test_bodies_above_the_budget_are_answered_503(start_service: StartService) -> None:
    service = await start_service(bodies_max_bytes=2 * MIB)
    # The fast path keeps up to 64 KiB of a post. Tornado reads longer ones and batches.
    kinds = [(b"/chat", 60_000, 59_000)] * 60 + [(b"/chat/batch", 4 * MIB, 200_000)] * 20
    clients = [await Unfinished.send(service.port, *kind) for kind in kinds]
    bodies = service._bodies
    answers: list[bytes] = []
    for client in clients:
        answers.append(await client.answer())
        assert bodies.total <= 2 * MIB
    refused = [answer for answer in answers if answer]
    # They sent 7.5 MB, of which the service keeps 2 MiB.
    assert len(refused) >= 20
    for answer in refused:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 "), head
        assert b"\r\nRetry-After: 1\r\n" in head
        assert b"\r\nConnection: close" in head
        problem = json.loads(body)
        assert problem["type"] == "urn:chat:problem:overloaded"
        assert problem["stored"] is False
    async with unharmed(service) as wire:
        # Honest clients, whose bodies come in two pieces, in chunks, and in batches.
        connection = await wire.connect()
        sent = post(message("bob", "a"))
        await connection.send(sent[:-5], sent[-5:])
        posted = await connection.answer()
        assert posted is not None
        accepted(posted)
        accepted(await wire.ask(request(b"POST", b"/chat", CHUNKED) + chunked(message("bob", "b"))))
        batch = b"[" + message("bob", "c") + b"]"
        assert (await wire.ask(request(b"POST", b"/chat/batch", body=batch))).status == 200
        assert await wire.texts("bob") == ["a", "b", "c"]
        for client in clients:
            await client.close()

        async def nothing_is_held() -> bool:
            return bodies.total == 0

        await eventually(nothing_is_held)


async def test_a_body_given_up_is_never_taken_for_a_request(start_service: StartService) -> None:
    service = await start_service(bodies_max_bytes=2 * MIB)
    hidden = b"GET /chat/bob HTTP/1.1\r\n%b\r\n\r\n" % HOST
    async with unharmed(service) as wire:
        await wire.post("bob", "secret")
        clients = [await Unfinished.send(service.port, b"/chat", 60_000, 58_000) for _ in range(60)]
        for client in clients:
            client._writer.write(hidden * 10)
        for client in clients:
            assert b"secret" not in await client.answer()
            await client.close()
        assert await wire.texts("bob") == ["secret"]


async def test_a_body_whose_decoding_has_no_room_is_refused(start_service: StartService) -> None:
    service = await start_service(bodies_max_bytes=MIB)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    batch = b"[" + message("bob", "hi").ljust(700_000) + b"]"
    writer.write(request(b"POST", b"/chat/batch", body=batch))
    assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
    writer.close()
    async with unharmed(service) as wire:
        assert await wire.texts("bob") == []
    assert service._bodies.total == 0


async def test_small_and_brief_bodies_are_not_given_up(start_service: StartService) -> None:
    service = await start_service(bodies_max_bytes=4 * MIB)
    # These hold few bytes, on Tornado and on the fast path, while others fill the budget.
    small = [await Unfinished.send(service.port, b"/chat/batch", 100, 50) for _ in range(5)]
    small += [await Unfinished.send(service.port, b"/chat", 100, 50) for _ in range(5)]
    large = [
        await Unfinished.send(service.port, b"/chat/batch", 4 * MIB, 500_000) for _ in range(20)
    ]
    refused = [bool(await client.answer(0.05)) for client in large]
    assert sum(refused) >= 10
    assert not any([await client.answer() for client in small])
    for client in (*small, *large):
        await client.close()


async def test_a_stream_tells_its_time_on_the_loops_clock() -> None:
    ours, theirs = socket.socketpair()
    stream, loop = HttpStream(ours, Lingering()), asyncio.get_running_loop()
    before = loop.time()
    stream.now_awaits(Awaiting.BODY)
    assert before <= stream.since <= loop.time()
    stream.close()
    theirs.close()


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / MIB


async def test_sixty_unfinished_bodies_take_little_memory(server: Server) -> None:
    size = 4 * MIB - 4096
    for _ in range(2):
        clients = await asyncio.gather(
            *(Unfinished.send(server.port, b"/chat/batch", 4 * MIB, size) for _ in range(60))
        )
        assert resident_mib(server.process.pid) < 128
        for client in clients:
            await client.close()


def test_a_body_sent_byte_by_byte_needs_little_memory() -> None:
    body, size = Body(), 300_000
    tracemalloc.start()
    try:
        for _ in range(size):
            body.append(b"x")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2 * size
    assert body.take() == b"x" * size


async def test_a_body_in_one_byte_chunks_is_refused(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(request(b"POST", b"/chat", CHUNKED) + chunked(*[b"x"] * 100_000))
        assert_not_http(await connection.answer())
        assert await connection.answer() is None


@pytest.mark.parametrize("chunk", [b"12345", b"x" * 50_000], ids=["tiny", "large"])
async def test_chunks_of_one_connection_keep_no_other_waiting(chunk: bytes) -> None:
    ours, theirs = socket.socketpair()
    count = 20_000 if len(chunk) < 100 else 60
    stream, sent = HttpStream(ours, Lingering()), chunked(*[chunk] * count)
    turns, body = 0, bytearray()

    async def deliver(data: bytes) -> None:
        body.extend(data)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.create_task(count_turns())
    sending = asyncio.create_task(asyncio.to_thread(theirs.sendall, sent))
    await read_chunks(stream, deliver)
    await sending
    others.cancel()
    assert bytes(body) == chunk * count
    # Other tasks run after at most 1,024 chunks, and after at most 128 KiB.
    assert turns >= max(count // 1024, len(sent) >> 17)
    stream.close()
    theirs.close()


async def test_tiny_chunks_cost_the_service_little_time(server: Server) -> None:
    def seconds() -> float:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="ascii")
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / 100

    async def cost(sent: bytes) -> float:
        before = seconds()
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            await reader.readline()
            writer.close()
        return seconds() - before

    # The same number of bytes on the wire: in one chunk, and in chunks of five bytes.
    text = message("nobody", "x" * 50_000)
    whole = request(b"POST", b"/chat", CHUNKED) + chunked(b" " * len(text) + text)
    pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
    tiny = request(b"POST", b"/chat", CHUNKED) + chunked(*pieces)
    await cost(whole)
    assert await cost(tiny) < 20 * (await cost(whole)) + 0.5
