"""Clients that attack a service, in a separate process so that they do not slow down honest ones.

usage: python -m tests.faults.attackers NAME PORT SECONDS

Prints one JSON object: the number of answers by status as `answers`, and the amount sent as `sent`.
Run by `tests.faults.attacks`.
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

#: Number of sockets of each attack.
_PINGERS, _HALF_SENT, _CHUNKERS, _EXPENSIVE, _BATCHES, _IDLE = 4, 120, 4, 6, 12, 300
_HALF_BYTES = 4_000_000
#: A client's ping: a masked frame without a payload.
_PING = bytes((0x89, 0x80)) + bytes(4)
#: Seconds for which an attacker waits for an answer.
_ANSWER_S = 15.0


class Attacker:
    """The sockets of one attack, and its results."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._until = time.monotonic() + seconds
        self.answers: Counter[int] = Counter()
        self.sent = 0

    @property
    def goes_on(self) -> bool:
        """Whether the attack continues."""
        return time.monotonic() < self._until

    async def many(self, sockets: int, act: Callable[[], Awaitable[None]]) -> None:
        """Run `act` on this many sockets, again and again until the attack ends."""

        async def live() -> None:
            while self.goes_on:
                # The service may close an attacker's connection.
                with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                    await act()
                await asyncio.sleep(0.02)

        await asyncio.gather(*(live() for _ in range(sockets)))

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, request: bytes) -> int:
        """Send one request on a new connection. Return the status of the answer."""
        reader, writer = await self.open()
        try:
            writer.write(request)
            await writer.drain()
            return await self.status(reader)
        finally:
            writer.close()

    async def stay(self, reader: asyncio.StreamReader) -> None:
        """Send nothing until the service closes the connection or the attack ends."""
        async with asyncio.timeout(max(self._until - time.monotonic(), 0)):
            await reader.read(1)

    async def status(self, reader: asyncio.StreamReader) -> int:
        """Return the status of the next answer. Leave its body unread."""
        async with asyncio.timeout(_ANSWER_S):
            line = await reader.readline()
        status = int(line.split()[1]) if line else 0
        self.answers[status] += 1
        self.sent += 1
        return status


async def pings(attacker: Attacker) -> None:
    """Flood WebSockets with pings."""

    async def flood() -> None:
        reader, writer = await attacker.open()
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /chat/pinged/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            "".encode()
        )
        await attacker.status(reader)

        async def swallow() -> None:
            while await reader.read(1 << 16):
                pass

        swallowing = asyncio.create_task(swallow())
        try:
            while attacker.goes_on and not swallowing.done():
                writer.write(_PING * 4000)
                attacker.sent += 4000
                async with asyncio.timeout(_ANSWER_S):
                    await writer.drain()
                await asyncio.sleep(0)
        finally:
            swallowing.cancel()
            writer.close()

    await attacker.many(_PINGERS, flood)


async def origins(attacker: Attacker) -> None:
    """Send requests as pages of other sites do, to the inbox of an honest client."""
    foreign = (
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Referer: http://evil.example/page\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://localhost:1\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
    )
    body = json.dumps({"text": "x", "username": "guarded"})
    numbers = count()

    async def forge() -> None:
        header = foreign[next(numbers) % len(foreign)]
        for what in ("GET /chat/guarded", "POST /chat/guarded/read", "POST /chat/guarded/lease"):
            await attacker.ask(
                f"{what} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: 0\r\n\r\n".encode()
            )
        await attacker.ask(
            f"POST /chat HTTP/1.1\r\nHost: localhost\r\n{header}Content-Type: text/plain\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    await attacker.many(4, forge)


async def disk(attacker: Attacker) -> None:
    """Post the largest texts, as many as the service accepts."""
    # Random bytes, which cannot be compressed.
    text = base64.b64encode(os.urandom(45_000)).decode()
    body = json.dumps({"text": text, "username": "hoard", "timeout": 86_400})
    request = (
        f"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()

    async def hoard() -> None:
        if await attacker.ask(request) != 201:
            await asyncio.sleep(0.05)

    await attacker.many(8, hoard)


async def unfinished(attacker: Attacker) -> None:
    """Send bodies without their last byte."""

    async def send() -> None:
        reader, writer = await attacker.open()
        writer.write(
            f"POST /chat/batch HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {_HALF_BYTES}\r\n\r\n[".encode()
        )
        try:
            for _ in range(_HALF_BYTES // 100_000 - 1):
                writer.write(b" " * 100_000)
                attacker.sent += 100_000
                async with asyncio.timeout(_ANSWER_S):
                    await writer.drain()
            await attacker.stay(reader)
        finally:
            writer.close()

    await attacker.many(_HALF_SENT, send)


async def expensive(attacker: Attacker) -> None:
    """Send requests that are cheap to send and expensive to serve."""
    nested = b'{"username":"expensive","text":[' + b"{}," * 100_000 + b"{}]}"
    requests = (
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /chat/expensive HTTP/1.1\r\nHost: localhost\r\nPrefer: " + b"," * 7000 + b"\r\n\r\n",
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(nested), nested),
    )
    numbers = count()

    async def request() -> None:
        await attacker.ask(requests[next(numbers) % len(requests)])

    await attacker.many(_EXPENSIVE, request)


async def chunks(attacker: Attacker) -> None:
    """Send bodies in chunks of one byte."""
    head = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = head + b"1\r\n \r\n" * 100_000

    async def dribble() -> None:
        await attacker.ask(request)

    await attacker.many(_CHUNKERS, dribble)


async def heads(attacker: Attacker) -> None:
    """Count a full inbox."""
    lines = json.dumps([{"text": "x", "username": "full", "timeout": 3600}] * 500)
    batch = (
        f"POST /chat/batch HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(lines)}\r\n\r\n{lines}"
    ).encode()
    for _ in range(30):
        await attacker.ask(batch)

    async def look() -> None:
        await attacker.ask(b"HEAD /chat/full HTTP/1.1\r\nHost: localhost\r\n\r\n")

    await attacker.many(4, look)


async def batches(attacker: Attacker) -> None:
    """Post batches of 500 messages on 12 connections."""
    numbers = count()

    async def fill() -> None:
        lines = json.dumps(
            [{"text": "x", "username": f"batch-{next(numbers)}", "timeout": 60}] * 500
        )
        await attacker.ask(
            f"POST /chat/batch HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(lines)}\r\n\r\n{lines}".encode()
        )

    await attacker.many(_BATCHES, fill)


async def idle(attacker: Attacker) -> None:
    """Open more sockets than the service has file descriptors, and send nothing."""

    async def sit() -> None:
        reader, writer = await attacker.open()
        attacker.sent += 1
        try:
            await attacker.stay(reader)
        finally:
            writer.close()

    await attacker.many(_IDLE, sit)


ATTACKS = {
    act.__name__: act
    for act in (pings, origins, disk, unfinished, expensive, chunks, heads, batches, idle)
}


def main() -> int:
    """Attack for the given time, and print the results."""
    name, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    attacker = Attacker(port, seconds)
    asyncio.run(ATTACKS[name](attacker))
    sys.stdout.write(json.dumps({"answers": attacker.answers, "sent": attacker.sent}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
