"""Presses a service with posts and reads, and says of every request what became of it.

Closed loop: each connection sends its next request once the last is answered. Open loop: requests
are sent at their moments whatever becomes of earlier ones, and a latency counts from the moment at
which the request was due, so that a stall counts for all that it held up.

Speaks just enough HTTP for that, so that it costs little beside what it presses. Used by
`chat load`, and by the generator of the benchmark in tests/bench.
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

#: A connection that was lost is made again after so long, in seconds.
_AGAIN_AFTER_S = 0.2
#: What is open at the end is waited for so long, in seconds.
_LAST_ANSWERS_S = 5.0


class Load(msgspec.Struct, frozen=True):
    """What to send. `posts` is their share; `rate` is in requests a second, 0 for a closed loop.

    The users are taken at random, or in turn.
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
    """What became of a request: its status, 0 where its connection was lost, and the answer; when
    it was due and when it was answered (`time.perf_counter` seconds).
    """

    status: int
    answer: bytes
    due: float
    at: float


class LoadGenerator:
    """One load. `connect`, then `run`, then `close`; each outcome is told to `on`."""

    def __init__(self, load: Load, on: Callable[[Outcome], None]) -> None:
        self._load = load
        self._on = on
        self._stream = requests(load)
        self._connections: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()
        self._late: deque[tuple[bytes, float]] = deque()
        self._is_over = self._is_closed = False
        self._again: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Make all connections. Raises OSError where the service is not there."""
        for _ in range(self._load.connections):
            await self._connect()

    async def run(self, began: float, seconds: float) -> None:
        """LoadGenerator for so long from that moment on, then wait for the last answers."""
        rate = self._load.rate
        if not rate:
            while self._idle:
                self._idle.popleft().send(next(self._stream), time.perf_counter())
            await asyncio.sleep(began + seconds - time.perf_counter())
        else:
            await self._run_at(rate, began, began + seconds)
        await self.finish()

    async def finish(self) -> None:
        """Begin no more requests, and wait for the last answers."""
        self._is_over = True
        end = time.perf_counter() + _LAST_ANSWERS_S
        while self._late or any(each.is_asking for each in self._connections):
            if time.perf_counter() > end:
                break
            await asyncio.sleep(0.01)

    async def ask(self, asked: list[bytes]) -> None:
        """Send these, as fast as it goes, and wait for their answers.

        Gives up where for some seconds there is no connection, and none can be made.
        """
        now = time.perf_counter()
        self._late.extend((request, now) for request in asked)
        while self._late and self._idle:
            self._idle.popleft().send(*self._late.popleft())
        connected = now
        while self._late or any(each.is_asking for each in self._connections):
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            if self._connections:
                connected = now
            elif now - connected > _LAST_ANSWERS_S:
                return

    async def close(self) -> None:
        """Close all connections."""
        self._is_over = self._is_closed = True
        for task in self._again:
            task.cancel()
        await asyncio.gather(*self._again, return_exceptions=True)
        for connection in self._connections:
            connection.close()

    async def _run_at(self, rate: float, began: float, end: float) -> None:
        sent = 0
        while (now := time.perf_counter()) < end:
            while (due := began + sent / rate) <= now:
                sent += 1
                if self._idle:
                    self._idle.popleft().send(next(self._stream), due)
                else:
                    self._late.append((next(self._stream), due))
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
        self._on(outcome)
        self._next(connection)

    def _next(self, connection: "_Connection") -> None:
        if self._late:
            connection.send(*self._late.popleft())
        elif self._load.rate or self._is_over or not connection.has_asked:
            self._idle.append(connection)
        else:
            connection.send(next(self._stream), time.perf_counter())

    def _lost(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.is_asking:
            self._on(Outcome(0, b"", connection.due, time.perf_counter()))
        if not self._is_closed:
            task = asyncio.get_running_loop().create_task(self._connect_again(connection))
            self._again.add(task)
            task.add_done_callback(self._again.discard)

    async def _connect_again(self, lost: "_Connection") -> None:
        """A connection in the place of one that was lost, as soon as there can be one."""
        while not self._is_closed:
            await asyncio.sleep(_AGAIN_AFTER_S)
            try:
                await self._connect()
            except OSError:
                if not self._load.rate and not self._is_over:
                    # In a closed loop, an attempt is a request.
                    now = time.perf_counter()
                    self._on(Outcome(0, b"", now, now))
                continue
            if not self._load.rate and self._idle and not self._is_over:
                self._idle.popleft().send(next(self._stream), time.perf_counter())
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
        self.is_asking = False
        self.has_asked = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at a moment."""
        self.due = due
        self.is_asking = self.has_asked = True
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
        # A body in chunks ends with an empty one.
        is_whole = len(data) >= self._wanted if self._wanted else data.endswith(b"0\r\n\r\n")
        if not is_whole:
            self._buffer = data
            return
        self._buffer = b""
        self._wanted = 0
        self.is_asking = False
        self._on_answer(self, Outcome(int(data[9:12]), data, self.due, time.perf_counter()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_closed:
            self._on_lost(self)

    def close(self) -> None:
        self._is_closed = True
        self._transport.close()


def requests(load: Load) -> Iterator[bytes]:
    """Requests without end, over the users at random or in turn."""
    rng = random.Random(load.seed)
    text = "x" * load.text_bytes
    posts = []
    for number in range(load.users):
        user = f"{load.prefix}-{number}"
        body = json.dumps({"text": text, "username": user, "timeout": 3600}).encode()
        head = f"POST /chat HTTP/1.1\r\nHost: {_host(load)}\r\nContent-Type: application/json\r\n"
        posts.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    reads = reads_of(load)
    for number in itertools.count():
        kind = posts if rng.random() < load.posts else reads
        yield kind[number % load.users if load.in_turn else int(rng.random() * load.users)]


def reads_of(load: Load) -> list[bytes]:
    """A read of each inbox."""
    head = f"HTTP/1.1\r\nHost: {_host(load)}\r\n\r\n"
    return [f"GET /chat/{load.prefix}-{number} {head}".encode() for number in range(load.users)]


def _host(load: Load) -> str:
    host = f"[{load.host}]" if ":" in load.host else load.host
    return f"{host}:{load.port}"
