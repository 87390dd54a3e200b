"""How late scheduled messages reach their readers.

`tests.bench.measurements` uses this. The id of a scheduled message has its due time by the
database's clock, which is that of this machine.
"""

import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager

from tests.bench.results import Waking
from tests.bench.waiting import ask

#: The inboxes, each with one reader, which does the same again and again.
INBOXES = 300
#: The messages of one request, and how many requests post at the same time.
_BATCH, _POSTERS = 500, 2
_WAIT_S = 25
_ID = re.compile(rb"^id: ([0-9a-f]{32})\n", re.MULTILINE)


class Arrivals:
    """The messages that readers have received, and how late each was, in seconds."""

    def __init__(self, expected: int) -> None:
        self.late_s: list[float] = []
        self.all_there = asyncio.Event()
        self._expected = expected

    def add(self, message_id: str) -> None:
        """Note a message that has just been received."""
        self.late_s.append(time.time() - int(message_id[:12], 16) / 1000)
        if len(self.late_s) == self._expected:
            self.all_there.set()


async def lateness(port: int, way: str, messages: int, within_s: float) -> Waking:
    """Schedule messages over `within_s` seconds, and measure how late readers have them.

    `way` is one of `READERS`.
    """
    arrivals = Arrivals(messages)
    readers = [
        asyncio.create_task(READERS[way](port, f"due-{number}", arrivals))
        for number in range(INBOXES)
    ]
    try:
        # Nothing is due before all of it is posted.
        await _post(port, messages, messages / 2500 + 2, within_s)
        await asyncio.wait(
            (*readers, asyncio.create_task(arrivals.all_there.wait())),
            return_when=asyncio.FIRST_COMPLETED,
        )
        for reader in readers:
            if reader.done():
                # A reader ends only by an error.
                reader.result()
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    late = sorted(arrivals.late_s)
    assert late[0] >= 0, "a message came before its time"
    p50, p99 = statistics.median(late), late[int(len(late) * 0.99)]
    name = f"{messages:,} messages due within {within_s:g} s, {way}"
    return Waking(name, messages, p50 * 1e3, p99 * 1e3, late[-1] * 1e3)


async def _post(port: int, messages: int, after_s: float, within_s: float) -> None:
    """Post messages that are due at random times, the first one in `after_s` seconds."""
    rng, begins = random.Random(0), time.monotonic() + after_s
    batches = iter([_BATCH] * (messages // _BATCH) + [messages % _BATCH] * (messages % _BATCH > 0))

    async def post_some() -> None:
        async with _connection(port) as (reader, writer):
            for size in batches:
                early_s = begins - time.monotonic()
                posts = [
                    {
                        "text": "x" * 100,
                        "username": f"due-{rng.randrange(INBOXES)}",
                        "timeout": 600,
                        "delay": early_s + rng.uniform(0, within_s),
                    }
                    for _ in range(size)
                ]
                answer = json.loads(await ask(reader, writer, _request("/chat/batch", posts)))
                assert all("id" in each for each in answer["results"])

    await asyncio.gather(*(post_some() for _ in range(_POSTERS)))
    assert time.monotonic() < begins, "posting took longer than planned"


@asynccontextmanager
async def _connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        # Nothing is left to write, and the service may send more.
        writer.transport.abort()


async def _poll(port: int, name: str, arrivals: Arrivals) -> None:
    request = f"GET /chat/{name}?wait={_WAIT_S} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with _connection(port) as (reader, writer):
        while True:
            for message in json.loads(await ask(reader, writer, request)):
                arrivals.add(message["id"])


async def _lease(port: int, name: str, arrivals: Arrivals) -> None:
    async with _connection(port) as (reader, writer):
        while True:
            path = f"/chat/{name}/lease?wait={_WAIT_S}"
            taken = json.loads(await ask(reader, writer, _request(path, {})))
            for message in taken["messages"]:
                arrivals.add(message["id"])
            if taken["lease"]:
                asked = _request(f"/chat/{name}/ack", {"lease": taken["lease"]})
                assert b"acknowledged" in await ask(reader, writer, asked)


async def _stream(port: int, name: str, arrivals: Arrivals) -> None:
    async with _connection(port) as (reader, writer):
        writer.write(f"GET /chat/{name}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while True:
            event = await reader.readuntil(b"\n\n")
            if found := _ID.search(event):
                arrivals.add(found[1].decode())


LONG_POLL = "a long poll"
#: The ways to read.
READERS: Mapping[str, Callable[[int, str, Arrivals], Coroutine[None, None, None]]] = {
    LONG_POLL: _poll,
    "a lease and an acknowledgement": _lease,
    "an event stream": _stream,
}


def _request(path: str, document: object) -> bytes:
    body = json.dumps(document).encode() if document else b""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
