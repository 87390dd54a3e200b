"""The last day of several processes: their sums survive crashes, replacements and restarts."""

import os
import signal
import socket
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.process.test_dashboard import ask
from tests.support.client import ChatClient
from tests.support.code_path import CODE_PATH
from tests.support.server import Server, mongods_on
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


async def test_an_outage_is_down_and_leaves_no_gap(server: Server, tmp_path: Path) -> None:
    server.environ["CHAT_MONGO_TIMEOUT_S"] = "1"
    with server:
        await post(server, 3)
        (mongod,) = mongods_on(tmp_path / "data")
        os.kill(mongod, signal.SIGSTOP)
        try:

            async def is_down() -> bool:
                client = ChatClient(server.base)
                body = b'{"username":"bob","text":"x"}'
                assert (await client.request("POST", "/chat", body)).code in (201, 503)
                client.close()
                state = (await ask(server.port))["state"]
                names = [each["name"] for each in state["conditions"]]
                return names[:1] == ["database-unavailable"] and state["severity"] == "down"

            await eventually(is_down, 30)
            began = time.time()

            async def goes_on() -> bool:
                return await rows_since(server, began) >= 3

            await eventually(goes_on)
        finally:
            os.kill(mongod, signal.SIGCONT)

        async def is_available() -> bool:
            return bool((await ask(server.port))["node"]["database"]["state"] == "available")

        await eventually(is_available)

        # The other process may have to notice it, too.
        async def is_accepted() -> bool:
            client = ChatClient(server.base)
            answer = await client.request("POST", "/chat", b'{"username":"bob","text":"x"}')
            client.close()
            return answer.code == 201

        await eventually(is_accepted)

        async def away() -> list[float]:
            document = await ask(server.port, "/ops/history?range=day")
            place = document["series"].index("chat_database_away") + 1
            (run,) = document["processes"]
            return [row[place] for row in run["samples"] if row[place] is not None]

        # The next rows may still be about samples of the outage.
        async def is_over() -> bool:
            return (await away())[-1] == 0

        await eventually(is_over)
        assert max(await away()) == 1


async def rows_since(server: Server, moment: float) -> int:
    """Return how many rows were recorded after a time, in seconds since 1970."""
    document = await ask(server.port, "/ops/history?range=day")
    return sum(row[0] > moment for each in document["processes"] for row in each["samples"])
