"""Presses one service and says what it did: a load generator for `scripts/bench`.

A process of its own, `python -m tests.bench.generator '{"port": ...}'`, so that what it costs is
not taken from the service's core and does not show in its processor time. Prints one JSON object.

Closed loop: each connection sends its next request once the last is answered. Open loop: requests
are sent at their moments whatever becomes of earlier ones, and a latency counts from the moment at
which the request was due, so that a stall counts for all that it held up.
"""

import asyncio
import gc
import itertools
import json
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import msgspec
import uvloop

#: What is printed once all connections are there and the load begins; its result follows.
READY = b"ready\n"


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


class Measured(msgspec.Struct, frozen=True):
    """What came of it. Times in seconds; `errors` counts all but 200 and 201."""

    requests: int
    errors: int
    seconds: float
    rate: float
    p50: float
    p90: float
    p99: float
    p999: float
    worst: float


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, on_answer: Callable[["_Connection", bool], None]) -> None:
        self._on_answer = on_answer
        self._buffer = b""
        self._wanted = 0
        self.due = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at a moment."""
        self.due = due
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
        is_good = data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201"))
        self._buffer = b""
        self._wanted = 0
        self._on_answer(self, is_good)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            raise SystemExit(f"a connection was lost: {exc}")

    def close(self) -> None:
        self._transport.close()


def requests(load: Load) -> Iterator[bytes]:
    """Requests without end, over the users at random or in turn."""
    rng = random.Random(load.seed)
    text = "x" * load.text_bytes
    posts, reads = [], []
    for number in range(load.users):
        user = f"{load.prefix}-{number}"
        body = json.dumps({"text": text, "username": user, "timeout": 3600}).encode()
        head = "POST /chat HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        posts.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        reads.append(f"GET /chat/{user} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    for number in itertools.count():
        kind = posts if rng.random() < load.posts else reads
        yield kind[number % load.users if load.in_turn else int(rng.random() * load.users)]


async def run(load: Load) -> Measured:
    """Press, and measure after the time to warm up."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    errors = 0
    stream = requests(load)
    clock = time.perf_counter
    start = math.inf
    is_over = False
    idle: deque[_Connection] = deque()
    late: deque[tuple[bytes, float]] = deque()

    def on_answer(connection: _Connection, is_good: bool) -> None:
        nonlocal errors
        now = clock()
        if connection.due >= start:
            latencies.append(now - connection.due)
            errors += not is_good
        if late:
            connection.send(*late.popleft())
        elif load.rate or is_over:
            idle.append(connection)
        else:
            connection.send(next(stream), now)

    connections = []
    for _ in range(load.connections):
        _, connection = await loop.create_connection(
            lambda: _Connection(on_answer), "127.0.0.1", load.port
        )
        connections.append(connection)
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    began = clock()
    start = began + load.warm_up_s
    end = start + load.seconds
    if not load.rate:
        for connection in connections:
            connection.send(next(stream), clock())
        await asyncio.sleep(end - clock())
    else:
        idle.extend(connections)
        sent = 0
        while (now := clock()) < end:
            while (due := began + sent / load.rate) <= now:
                sent += 1
                if idle:
                    idle.popleft().send(next(stream), due)
                else:
                    late.append((next(stream), due))
            await asyncio.sleep(max(began + sent / load.rate - clock(), 0))
    is_over = True
    measured = clock() - start
    count, bad = len(latencies), errors
    for _ in range(500):
        if len(idle) == len(connections) and not late:
            break
        await asyncio.sleep(0.01)
    for connection in connections:
        connection.close()
    if load.rate:
        # Those that were due and came late count, too.
        count, bad = len(latencies), errors
    ranked = sorted(latencies[:count])

    def rank(share: float) -> float:
        return ranked[min(int(len(ranked) * share), len(ranked) - 1)] if ranked else math.nan

    return Measured(
        *(count, bad, measured, count / measured),
        *(rank(0.5), rank(0.9), rank(0.99), rank(0.999), ranked[-1] if ranked else math.nan),
    )


def main() -> int:
    """Run what the only argument says."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    measured = uvloop.run(run(load))
    sys.stdout.buffer.write(msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
