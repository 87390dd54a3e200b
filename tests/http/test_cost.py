"""The cost of a request, without a clock: database commands, and function calls.

A change that makes every request more expensive fails here, on any machine. `scripts/bench` has the
times.
"""

import asyncio
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests.conftest import Connect, StartService
from tests.support.proxy import MongoProxy
from tests.support.raw import get, message, post
from tests.support.waiting import eventually
from workers.queue import ShardQueue

CLIENTS = 100
#: Calls of Python and built-in functions per request in the thread of the loop: about 240, and up
#: to 260 on a slow machine, where the loop iterates more often for the same requests.
CALLS_MAX = 300


class Crowd(threading.Thread):
    """Clients in a separate thread. Each sends one request; then all wait for their answers."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        super().__init__()
        self.statuses: list[bytes] = []
        self._requests = requests
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in requests]

    def run(self) -> None:
        for sock, request in zip(self._sockets, self._requests, strict=True):
            sock.sendall(request)
        self.statuses = [sock.recv(65536).split(b" ")[1] for sock in self._sockets]

    def close(self) -> None:
        """Close all connections."""
        for sock in self._sockets:
            sock.close()


class Calls:
    """Counts the calls that this thread makes, and those that put a request in a queue."""

    def __init__(self) -> None:
        self.all = 0
        self.queued = 0

    def __enter__(self) -> "Calls":
        self._before = sys.getprofile()
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _on_event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self.all += 1
            self.queued += frame.f_code is ShardQueue.put_or_refuse.__code__
        elif event == "c_call":
            self.all += 1


async def test_100_waiting_requests_cost_three_commands(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    requests = [
        *(post(message(f"crowd-writer-{number}", "x")) for number in range(CLIENTS // 2)),
        *(get(f"/chat/crowd-reader-{number}".encode()) for number in range(CLIENTS // 2)),
    ]
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, shards=1)
        chat = connect(service)
        for number in range(CLIENTS // 2):
            await chat.post(f"crowd-reader-{number}", "x")
        # Serve one request of each kind first, so that nothing is counted that happens only once.
        assert await chat.texts("crowd-reader-0") == ["x"]
        await chat.post("crowd-reader-0", "x")
        # The others gather while each lane has a batch in flight.
        proxy.hold |= {"insert": b"text", "find": b"early-reader"}
        early: list[asyncio.Task[Any]] = [asyncio.create_task(chat.post("early-writer", "x"))]
        await proxy.held.wait()
        proxy.held.clear()
        early.append(asyncio.create_task(connect(service).texts("early-reader")))
        await proxy.held.wait()
        # Maintenance sends the same commands, but without usernames.
        proxy.sent.clear()
        proxy.naming = b"crowd-"
        crowd = Crowd(service.port, requests)

        async def all_are_connected() -> bool:
            return await chat.metric("chat_http_connections") >= CLIENTS

        await eventually(all_are_connected)
        with Calls() as calls:
            crowd.start()

            async def all_wait() -> bool:
                return calls.queued == CLIENTS

            await eventually(all_wait)
            proxy.release()
            await asyncio.gather(*early)
            await asyncio.to_thread(crowd.join)
        crowd.close()
        assert sorted(crowd.statuses) == [b"200"] * 50 + [b"201"] * 50
        assert +proxy.sent == Counter(insert=1, find=1, update=1)
        assert calls.all / CLIENTS <= CALLS_MAX
        await service.stop()
