"""A client's rate over HTTP: kept by several processes together, also when they are replaced."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.raw import Wire, get
from tests.support.server import Server
from tests.support.waiting import eventually

PROCESSES, BURST = 4, 20


@pytest.fixture
def rate() -> float:
    """The requests per second that each client may send."""
    return 40


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path, rate: float) -> Iterator[Server]:
    """Four processes that limit each client."""
    server = Server(
        *(tmp_path, "--mongo-uri", mongo_uri, "--processes", str(PROCESSES)),
        CHAT_MONGO_DATABASE=database,
        CHAT_ALLOWED_HOSTS="good.test",
        CHAT_CLIENT_REQUESTS_PER_S=str(rate),
        CHAT_CLIENT_BURST=str(BURST),
        CHAT_LOG_REQUESTS_PER_S="0",
    )
    with server:
        yield server


async def served(server: Server, seconds: float, connections: int = 16) -> tuple[int, float]:
    """Send reads over many connections without a pause, for some time.

    Return how many were served, and the seconds that it took.
    """
    wire = Wire(server.port)
    began = time.monotonic()
    counts = {200: 0, 429: 0}

    async def ask() -> None:
        connection = await wire.connect()
        while time.monotonic() < began + seconds:
            answer = await connection.ask(get(b"/chat/nobody"))
            counts[answer.status] += 1
            if answer.status == 429:
                # Far more often than the rate, and without using all of the machine.
                await asyncio.sleep(0.005)

    await asyncio.gather(*(ask() for _ in range(connections)))
    ended = time.monotonic()
    await wire.close()
    assert counts[429] > 0
    return counts[200], ended - began


async def test_four_processes_keep_a_rate_together(server: Server, rate: float) -> None:
    shares: list[float] = []
    # A busy machine may stop a process in the middle of a charge, and so lose those of others.
    while len(shares) < 3 and not (shares and 0.75 <= shares[-1] <= 1.25):
        count, seconds = await served(server, 3)
        shares.append((count - BURST) / (rate * seconds))
        # The bucket is full again for the next try.
        await asyncio.sleep(1)
    assert 0.75 <= shares[-1] <= 1.25, shares


@pytest.mark.parametrize("rate", [0.001])
async def test_processes_that_are_replaced_fill_no_bucket(server: Server) -> None:
    # At most one charge for each further process is lost.
    count, _ = await served(server, 1)
    assert BURST <= count < BURST + PROCESSES
    before = set(server.members())
    os.kill(min(before), signal.SIGKILL)
    server.signal(signal.SIGHUP)

    async def is_replaced() -> bool:
        members = set(server.members())
        return len(members) == PROCESSES and not members & before

    await eventually(is_replaced, 60)
    count, _ = await served(server, 1)
    assert count == 0
