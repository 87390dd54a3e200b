"""The dashboard of several processes: each process answers for all live processes."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


@pytest.fixture
def ops_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path, ops_port: int) -> Iterator[Server]:
    """Start two processes that serve /ops only on the operators' port."""
    data_dir = str(tmp_path / "data")
    arguments = ("--processes", "2", "--data-dir", data_dir)
    with Server(tmp_path, *arguments, CHAT_OPS_PORT=str(ops_port), CHAT_OPS="off") as started:
        yield started


async def ask(port: int, path: str = "/ops/history") -> dict[str, Any]:
    """Return the answer on a new connection, which any of the processes may serve."""
    ops = ChatClient(f"http://127.0.0.1:{port}")
    answer = await ops.request("GET", path)
    ops.close()
    assert answer.code == 200, (answer.code, answer.body)
    document: dict[str, Any] = json.loads(answer.body)
    return document


def total(document: dict[str, Any], name: str) -> float:
    """Return the sum of the last values of a series over all processes."""
    place = document["series"].index(name) + 1
    return sum(float(each["samples"][-1][place]) for each in document["processes"])


async def test_each_process_answers_for_all_processes(server: Server, ops_port: int) -> None:
    await asyncio.gather(*(ChatClient(server.base).post(f"u{n}", "x") for n in range(60)))

    async def all_are_there() -> bool:
        document = await ask(ops_port)
        return total(document, "chat_messages_accepted_total") == 60

    await eventually(all_are_there)
    for _ in range(6):
        document = await ask(ops_port)
        assert [each["pid"] for each in document["processes"]] == server.members()
        assert total(document, "chat_messages_accepted_total") == 60
    main = ChatClient(server.base)
    main.contract = None
    for path in ("/ops", "/ops/history", "/metrics"):
        assert (await main.request("GET", path)).code == 404
    main.close()


async def test_a_killed_process_is_replaced_on_the_dashboard(server: Server, ops_port: int) -> None:
    killed, other = server.members()
    os.kill(killed, signal.SIGKILL)

    async def is_replaced() -> bool:
        document = await ask(ops_port)
        pids = {each["pid"] for each in document["processes"]}
        return len(pids) == 2 and killed not in pids and document["restarts"] == 1

    # The killed process may have accepted the connection.
    await eventually(is_replaced)
    assert other in {each["pid"] for each in (await ask(ops_port))["processes"]}


async def test_a_rolling_restart_keeps_the_operators_port_open(
    server: Server, ops_port: int
) -> None:
    before = server.members()
    server.signal(signal.SIGHUP)

    async def all_are_new() -> bool:
        pids = [each["pid"] for each in (await ask(ops_port))["processes"]]
        return len(pids) == 2 and not set(pids) & set(before)

    await eventually(all_are_new, 30)


async def test_the_operators_port_answers_during_a_drain(tmp_path: Path, ops_port: int) -> None:
    arguments = ("--processes", "2", "--data-dir", str(tmp_path / "data"))
    with Server(
        tmp_path, *arguments, CHAT_DRAIN_DELAY_S="60", CHAT_OPS_PORT=str(ops_port)
    ) as server:
        server.signal(signal.SIGTERM)
        ops = ChatClient(f"http://127.0.0.1:{ops_port}")

        async def says_so() -> bool:
            answer = await ops.request("GET", "/readyz")
            return answer.code == 503 and json.loads(answer.body)["accepting"] is False

        await eventually(says_so)
        assert (await ask(ops_port))["processes"]
        ops.close()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_operators_port_in_use_is_named_with_its_setting(tmp_path: Path, processes: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        data_dir = str(tmp_path / "data")
        arguments = ("--processes", processes, "--data-dir", data_dir)
        server = Server(tmp_path, *arguments, CHAT_OPS_PORT=str(port))
        with pytest.raises(AssertionError, match="did not start"):
            server.start()
    assert server.process.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in server.errors()
    assert "ops_port" in server.errors()
