"""The last day of several processes: their sums survive crashes, replacements and restarts."""

import os
import signal
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from tests.process.test_dashboard import ask
from tests.support.client import ChatClient
from tests.support.code_path import CODE_PATH
from tests.support.server import Server
from tests.support.waiting import eventually

ACCEPTED = "chat_messages_accepted_total"
#: As `sitecustomize`, records a row every second.
HURRY = """
from chat_service.metrics import day
day.DAY_EVERY_S = 1
"""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Two processes whose day has a row for each second."""
    (tmp_path / "sitecustomize.py").write_text(HURRY, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ("--processes", "2", "--data-dir", str(tmp_path / "data"))
    path = os.pathsep.join([str(tmp_path), CODE_PATH])
    return Server(tmp_path, *arguments, port=port, PYTHONPATH=path)


async def counts(server: Server) -> list[list[float]]:
    """Return how many messages were accepted at each row, for each run of the node."""
    document = await ask(server.port, "/ops/history?range=day")
    place = document["series"].index(ACCEPTED) + 1
    return [[row[place] for row in each["samples"]] for each in document["processes"]]


async def last_count(server: Server) -> float:
    """Return the last number of accepted messages."""
    found = await counts(server)
    return found[-1][-1] if found else 0


async def post(server: Server, number: int) -> None:
    """Post messages on connections of their own, so that both processes get some."""
    for each in range(number):
        client = ChatClient(server.base)
        await client.post(f"u{each}", "x")
        client.close()


async def test_a_day_survives_crashes_and_restarts(server: Server) -> None:
    with server:
        await post(server, 30)

        async def has(number: int) -> bool:
            return await last_count(server) == number

        await eventually(lambda: has(30))
        killed = server.members()[0]
        os.kill(killed, signal.SIGKILL)

        async def is_replaced() -> bool:
            return killed not in server.members() and len(server.members()) == 2

        await eventually(is_replaced)
        await post(server, 5)
        await eventually(lambda: has(35))
        before = server.members()
        server.signal(signal.SIGHUP)

        async def all_are_new() -> bool:
            return not {*server.members()} & {*before} and len(server.members()) == 2

        await eventually(all_are_new, 30)
        await post(server, 2)
        await eventually(lambda: has(37))
        (run,) = await counts(server)
        assert all(earlier <= later for earlier, later in pairwise(run))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    with server:

        async def is_there() -> bool:
            return len(await counts(server)) > 0

        await eventually(is_there)
        stored, *now = await counts(server)
        assert stored == run[: len(stored)] or stored[-1] == 37
        assert all(each[-1] == 0 for each in now)
        await post(server, 1)
        await eventually(lambda: has(1))
        assert len(await counts(server)) == 2
