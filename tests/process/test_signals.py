"""Signals, including inherited ignored ones."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually

#: Runs a command with ignored signals, as `nohup` or a shell's `&` does.
IGNORING = (
    "import os, signal, sys; signal.signal({}, signal.SIG_IGN); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def server(tmp_path: Path, mongo_uri: str, database: str) -> Server:
    """A server that was not started yet."""
    return Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)


async def serves(server: Server) -> bool:
    """Return whether the service accepts a message and returns it."""
    chat = ChatClient(server.base)
    try:
        await chat.post("bob", "x")
        return await chat.texts("bob") == ["x"]
    finally:
        chat.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
async def test_a_signal_ignored_at_the_start_stays_ignored(
    server: Server, number: signal.Signals
) -> None:
    server.wrapper = (server.command[0], "-c", IGNORING.format(int(number)))
    with server:
        server.signal(number)
        server.signal(signal.SIGUSR1)

        async def later_signal_is_handled() -> bool:
            return "SIGUSR1" in server.errors()

        # Of two pending signals, the one with the lower number is delivered first, so USR1 is last.
        await eventually(later_signal_is_handled)
        assert await serves(server)
        assert "stopping" not in server.errors()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def test_sigterm_stops_a_server_that_inherited_it_as_ignored(server: Server) -> None:
    server.wrapper = (server.command[0], "-c", IGNORING.format(int(signal.SIGTERM)))
    with server:
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert "drained" in server.errors()


async def test_sighup_under_nohup_still_rolls_several_processes(server: Server) -> None:
    server.command += ["--processes", "2"]
    server.wrapper = (server.command[0], "-c", IGNORING.format(int(signal.SIGHUP)))
    with server:
        server.signal(signal.SIGHUP)

        async def is_rolled() -> bool:
            return "rolling restart done" in server.errors()

        await eventually(is_rolled, 30)
        assert await serves(server)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_usr_and_pipe_signals_stop_nothing(server: Server, processes: str) -> None:
    server.command += ["--processes", processes]
    with server:
        for pid in (server.process.pid, *server.members()):
            for number in (signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)

        async def all_are_noted() -> bool:
            count = 1 + len(server.members())
            said = server.errors()
            return said.count("SIGUSR1") == said.count("SIGUSR2") == count

        await eventually(all_are_noted)
        assert await serves(server)
        assert server.process.poll() is None


async def test_sigquit_drains(server: Server) -> None:
    with server:
        server.signal(signal.SIGQUIT)
        assert await asyncio.to_thread(server.wait) == 0
        assert "drained" in server.errors()
