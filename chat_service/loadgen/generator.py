"""Sends posts and reads to a service, and reports the outcome of every request.

In a closed loop, each connection sends its next request when the previous one is answered. In an
open loop, requests are sent on schedule whether or not earlier ones are answered. Latency is then
measured from the time at which a request was due, so a stall counts for every request that it
delayed.

It implements only the HTTP that it needs, so it uses little CPU beside the service. Used by
`chat load` and by tests/bench.
"""

import asyncio
import itertools
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import msgspec

#: Time before a lost connection is replaced, in seconds.
_RECONNECT_AFTER_S = 0.2
#: At the end, time to wait for open requests, in seconds.
_FINISH_S = 5.0


class Load(msgspec.Struct, frozen=True):
    """What to send.

    `posts` is the share of posts, from 0 to 1. `rate` is in requests per second; 0 means a closed
    loop. Inboxes are chosen at random, or in turn with `in_turn`.
    """

    port: int
    connections: int
    seconds: float
    warm_up_s: float = 1.0
    posts: float = 0.5
    users: int = 1000
    prefix: str = ""
    text_bytes: int = 32
    rate: float = 0.0
    seed: int = 0
    in_turn: bool = False
    host: str = "127.0.0.1"
    tls: bool = False


class Outcome(NamedTuple):
    """The outcome of a request.

    `status` is 0 if the connection was lost. `due` and `at` are when the request was due and when
    it was answered, in seconds of `time.perf_counter`.
    """

    status: int
    answer: bytes
    due: float
    at: float


class LoadGenerator:
    """Generates one load: call `connect`, then `run`, then `close`.

    Passes each outcome to `on_outcome`.
    """

    def __init__(
        self, load: Load, on_outcome: Callable[[Outcome], None], token: str | None = None
    ) -> None:
        """`token` is sent with every request. It is not part of `load`, which may be printed."""
        self._load = load
        self._on_outcome = on_outcome
        self._requests = requests(load, token)
        self._connections: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()
        self._backlog: deque[tuple[bytes, float]] = deque()
        self._is_over = self._is_closed = False
        self._reconnects: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Open all connections. Raise OSError if the service cannot be reached."""
        for _ in range(self._load.connections):
            await self._connect()

    async def run(self, began: float, seconds: float) -> None:
        """Send requests from `began` on for `seconds`, then wait for the last answers."""
        rate = self._load.rate
        if not rate:
            while self._idle:
                self._idle.popleft().send(next(self._requests), time.perf_counter())
            await asyncio.sleep(began + seconds - time.perf_counter())
        else:
            await self._run_at(rate, began, began + seconds)
        await self.finish()

    async def finish(self) -> None:
        """Start no more requests, and wait a few seconds for the last answers."""
        self._is_over = True
        end = time.perf_counter() + _FINISH_S
        while self._backlog or any(each.is_busy for each in self._connections):
            if time.perf_counter() > end:
                break
            await asyncio.sleep(0.01)

    async def send_all(self, batch: list[bytes]) -> None:
        """Send these requests as fast as possible, and wait for their answers.

        Give up if there is no connection for some seconds.
        """
        now = time.perf_counter()
        self._backlog.extend((request, now) for request in batch)
        while self._backlog and self._idle:
            self._idle.popleft().send(*self._backlog.popleft())
        connected = now
        while self._backlog or any(each.is_busy for each in self._connections):
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            if self._connections:
                connected = now
            elif now - connected > _FINISH_S:
                return

    async def close(self) -> None:
        """Close all connections."""
        self._is_over = self._is_closed = True
        for task in self._reconnects:
            task.cancel()
        await asyncio.gather(*self._reconnects, return_exceptions=True)
        for connection in self._connections:
            connection.close()

    async def _run_at(self, rate: float, began: float, end: float) -> None:
        sent = 0
        while (now := time.perf_counter()) < end:
            while (due := began + sent / rate) <= now:
                sent += 1
                if self._idle:
                    self._idle.popleft().send(next(self._requests), due)
                else:
                    self._backlog.append((next(self._requests), due))
            await asyncio.sleep(max(began + sent / rate - time.perf_counter(), 0))

    async def _connect(self) -> None:
        load = self._load
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: _Connection(self._answered, self._lost),
            load.host,
            load.port,
            ssl=True if load.tls else None,
        )
        self._connections.add(connection)
        self._next(connection)

    def _answered(self, connection: "_Connection", outcome: Outcome) -> None:
        self._on_outcome(outcome)
        self._next(connection)

    def _next(self, connection: "_Connection") -> None:
        if self._backlog:
            connection.send(*self._backlog.popleft())
        elif self._load.rate or self._is_over or not connection.was_used:
            self._idle.append(connection)
        else:
            connection.send(next(self._requests), time.perf_counter())

    def _lost(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.is_busy:
            self._on_outcome(Outcome(0, b"", connection.due, time.perf_counter()))
        if not self._is_closed:
            task = asyncio.get_running_loop().create_task(self._reconnect(connection))
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)

    async def _reconnect(self, lost: "_Connection") -> None:
        """Replace a lost connection as soon as the service can be reached."""
        while not self._is_closed:
            await asyncio.sleep(_RECONNECT_AFTER_S)
            try:
                await self._connect()
            except OSError:
                if not self._load.rate and not self._is_over:
                    # In a closed loop, an attempt to connect counts as a request.
                    now = time.perf_counter()
                    self._on_outcome(Outcome(0, b"", now, now))
                continue
            if not self._load.rate and self._idle and not self._is_over:
                self._idle.popleft().send(next(self._requests), time.perf_counter())
            return


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(
        self,
        on_answer: Callable[["_Connection", Outcome], None],
        on_lost: Callable[["_Connection"], None],
    ) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._buffer = b""
        self._wanted = 0
        self._is_closed = False
        self.due = 0.0
        self.is_busy = False
        self.was_used = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's class.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at the time `due`."""
        self.due = due
        self.is_busy = self.was_used = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if not self._wanted:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            head = data[:end].lower()
            start = head.find(b"content-length: ")
            stop = head.find(b"\r", start)
            length = data[start + 16 : stop if stop > 0 else end] if start >= 0 else b""
            self._wanted = end + 4 + int(length) if length else 0
        # A chunked body ends with an empty chunk.
        is_whole = len(data) >= self._wanted if self._wanted else data.endswith(b"0\r\n\r\n")
        if not is_whole:
            self._buffer = data
            return
        self._buffer = b""
        self._wanted = 0
        self.is_busy = False
        self._on_answer(self, Outcome(int(data[9:12]), data, self.due, time.perf_counter()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_closed:
            self._on_lost(self)

    def close(self) -> None:
        self._is_closed = True
        self._transport.close()


def requests(load: Load, token: str | None = None) -> Iterator[bytes]:
    """Yield requests endlessly, for inboxes at random or in turn."""
    rng = random.Random(load.seed)
    text = "x" * load.text_bytes
    posts = []
    for number in range(load.users):
        user = f"{load.prefix}-{number}"
        body = json.dumps({"text": text, "username": user, "timeout": 3600}).encode()
        head = f"POST /chat HTTP/1.1\r\n{_headers(load, token)}Content-Type: application/json\r\n"
        posts.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    reads = reads_of(load, token)
    for number in itertools.count():
        kind = posts if rng.random() < load.posts else reads
        yield kind[number % load.users if load.in_turn else int(rng.random() * load.users)]


def reads_of(load: Load, token: str | None = None) -> list[bytes]:
    """Return one read of each inbox."""
    head = f"HTTP/1.1\r\n{_headers(load, token)}\r\n"
    return [f"GET /chat/{load.prefix}-{number} {head}".encode() for number in range(load.users)]


def _headers(load: Load, token: str | None) -> str:
    host = f"[{load.host}]" if ":" in load.host else load.host
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"Host: {host}:{load.port}\r\n{authorization}"
