"""The cost of waiting: memory of parked reads and open streams, and how fast they wake.

`tests.bench.measurements` uses these functions.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from chat_service.loadgen.generator import Load
from tests.bench.contenders import Contender
from tests.bench.results import Memory, Waking
from tests.support.waiting import eventually

#: Number of clients that wait at the same time in a full run, and the seconds that each waits
#: before it asks again.
PARKED = 10_000
_WAIT_S = 25
_UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
#: Kinds of waiting by name: the part of the path after the inbox, and the headers.
WAYS = {
    "a long poll": (f"?wait={_WAIT_S}", ""),
    "an event stream": ("/stream", ""),
    "a WebSocket": ("/stream", _UPGRADE),
}


async def memory_of(contender: Contender, way: str, count: int) -> Memory:
    """Return the memory per waiting client of a service that has been warmed up, in bytes."""
    await contender.load(Load(0, 64, 1, prefix="warm"))
    before = contender.memory()
    async with waiting(contender.port, way, count):
        return Memory(way, count, (contender.memory() - before) / count)


@asynccontextmanager
async def waiting(port: int, way: str, count: int) -> AsyncIterator[None]:
    """Open this many clients that wait, each for a separate inbox."""
    path, headers = WAYS[way]
    async with AsyncExitStack() as stack:
        for number in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            head = f"GET /chat/waited-{number}{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
            writer.write(head.encode())

        async def all_wait() -> bool:
            return await _waiters(port) >= count

        await eventually(all_wait, 30)
        # Let the service finish work that it postponed while they connected.
        await asyncio.sleep(0.5)
        yield


async def wakes(name: str, waits_at: int, posts_to: int, messages: int) -> Waking:
    """Measure the time from a message's acceptance until the waiting client has it."""
    waiter = await asyncio.open_connection("127.0.0.1", waits_at)
    poster = await asyncio.open_connection("127.0.0.1", posts_to)
    body = b'{"text": "x", "username": "woken"}'
    post = (
        b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    read = f"GET /chat/woken?wait={_WAIT_S} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    seconds = []
    for _ in range(messages):
        reading = asyncio.create_task(ask(*waiter, read))
        await asyncio.sleep(0.02)
        await ask(*poster, post)
        accepted = time.perf_counter()
        assert len(json.loads(await reading)) == 1
        seconds.append(time.perf_counter() - accepted)
    for _, writer in (waiter, poster):
        writer.close()
    seconds.sort()
    p99 = seconds[int(len(seconds) * 0.99)]
    return Waking(
        name, messages, *(1e3 * s for s in (statistics.median(seconds), p99, seconds[-1]))
    )


async def _waiters(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    values = (line.split()[1] for line in text.splitlines() if line.startswith("chat_waiters "))
    return float(next(values))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request, and return the body of its answer."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "transfer-encoding: chunked" not in head:
        length = int(head.partition("content-length: ")[2].partition("\r")[0])
        return await reader.readexactly(length)
    body = b""
    while length := int(await reader.readline(), 16):
        body += await reader.readexactly(length)
        await reader.readline()
    await reader.readline()
    return body
