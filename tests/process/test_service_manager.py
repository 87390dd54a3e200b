"""A service manager learns what the service does, and that its event loop turns.

Each test is the service manager: it has a socket for notifications, as systemd has.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from chat_service.cli.commands.notify import Notifier
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually

#: The time of the watchdog, in microseconds: longer than a busy machine makes a process wait.
WATCHDOG_USEC = 4_000_000
#: As `sitecustomize`, blocks the event loop on a signal that the service does not use, until a file
#: is gone. It blocks in a handler of Python, which runs wherever the loop is.
STALLING = """
import os, pathlib, signal, time
def stall(*_):
    stalled = pathlib.Path(os.environ["TEST_STALLED"])
    stalled.write_text(str(os.getpid()))
    while stalled.exists():
        time.sleep(0.01)
signal.signal(signal.SIGRTMIN, stall)
"""


class Manager:
    """The socket on which a service manager receives notifications."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @property
    def address(self) -> str:
        """The value of NOTIFY_SOCKET."""
        name: str | bytes = self._sock.getsockname()
        return name if isinstance(name, str) else "@" + name[1:].decode()

    def next(self) -> dict[str, str]:
        """Wait for a message and return its variables."""
        lines = self._sock.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, variable: str) -> list[dict[str, str]]:
        """Return the messages up to the first one with a variable."""
        messages = [self.next()]
        while variable not in messages[-1]:
            messages.append(self.next())
        return messages

    def waiting(self) -> list[dict[str, str]]:
        """Return the messages that have come and were not taken yet."""
        messages = []
        self._sock.setblocking(False)
        try:
            while True:
                messages.append(self.next())
        except BlockingIOError:
            return messages
        finally:
            self._sock.settimeout(30 * PATIENCE)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager without a watchdog, with a socket in Linux's abstract namespace."""
    yield from _manager(tmp_path, is_abstract=True)


def _manager(folder: Path, *, is_abstract: bool = False) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0test-{folder}" if is_abstract else str(folder / "notify"))
        sock.settimeout(30 * PATIENCE)
        yield Manager(sock)


@pytest.fixture
def watching(tmp_path: Path, server: Server) -> Iterator[Manager]:
    """A service manager with a watchdog and a socket in the file system.

    Its service can be stalled.
    """
    (tmp_path / "sitecustomize.py").write_text(STALLING, encoding="utf-8")
    server.environ |= {
        "WATCHDOG_USEC": str(WATCHDOG_USEC),
        "TEST_STALLED": str(tmp_path / "stalled"),
        "PYTHONPATH": f"{tmp_path}:{server.environ['PYTHONPATH']}",
        "PYTHONFAULTHANDLER": "1",
    }
    for manager in _manager(tmp_path):
        server.environ["NOTIFY_SOCKET"] = manager.address
        yield manager


@pytest.fixture
def server(tmp_path: Path, mongo_uri: str, database: str) -> Server:
    """A server that was not started yet."""
    return Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_the_manager_learns_of_each_state(
    server: Server, manager: Manager, processes: str
) -> None:
    server.command += ["--processes", processes]
    server.environ["NOTIFY_SOCKET"] = manager.address
    with server:
        starting = manager.until("READY")
        assert starting[0]["STATUS"] == "starting"
        assert int(starting[0]["EXTEND_TIMEOUT_USEC"]) > 2_000_000
        serving = "serving" if processes == "1" else "serving with 2 processes"
        assert starting[-1] == {"READY": "1", "STATUS": serving}
        if processes == "2":
            server.signal(signal.SIGHUP)
            reloading = manager.until("RELOADING")[-1]
            assert int(reloading["MONOTONIC_USEC"]) > 0
            messages = manager.until("READY")
            assert "EXTEND_TIMEOUT_USEC" not in messages[-2]
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        messages = manager.waiting()
        assert {"STOPPING": "1"} in messages
        assert not [message for message in messages if "WATCHDOG" in message]


async def test_the_service_is_ready_only_once_it_listens(server: Server, tmp_path: Path) -> None:
    """The database appears late, so that the moments before it are long enough to look at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--mongo-uri", f"mongodb://127.0.0.1:{port}/?replicaSet=rs0"]
    waiting = Server(tmp_path, *arguments, CHAT_MONGO_WAIT_S="30")
    for manager in _manager(tmp_path):
        waiting.environ["NOTIFY_SOCKET"] = manager.address
        waiting.spawn()
        try:
            messages = [manager.next()]
            while "waiting for the database" not in messages[-1].get("STATUS", ""):
                messages.append(manager.next())
            # It says so again and again while it waits, so that the start may go on.
            for _ in range(2):
                messages.append(manager.until("EXTEND_TIMEOUT_USEC")[-1])
            assert not [message for message in messages if "READY" in message]
        finally:
            waiting.signal(signal.SIGTERM)
            assert await asyncio.to_thread(waiting.wait) == 0
        assert not [message for message in manager.waiting() if "READY" in message]


async def test_a_stalled_loop_is_silent(server: Server, watching: Manager, tmp_path: Path) -> None:
    stalled = tmp_path / "stalled"
    with server:
        watching.until("READY")
        for _ in range(3):
            watching.until("WATCHDOG")
        server.signal(signal.SIGRTMIN)
        await has_stalled(stalled)
        watching.waiting()
        # The time after which systemd ends it. Nothing can come, however long this takes.
        await asyncio.sleep(WATCHDOG_USEC / 1e6)
        assert watching.waiting() == []
        stalled.unlink()
        watching.until("WATCHDOG")
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0


async def has_stalled(mark: Path) -> None:
    """Return once the event loop of a service is blocked."""

    async def exists() -> bool:
        return await asyncio.to_thread(mark.exists)

    await eventually(exists)


def variables_of(pid: int) -> set[str]:
    """Return the names in the environment of a process."""
    environ = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
    return {each.partition("=")[0] for each in environ}


async def test_a_stalled_process_of_several_is_replaced(
    server: Server, watching: Manager, tmp_path: Path
) -> None:
    server.command += ["--processes", "2"]
    stalled = tmp_path / "stalled"
    with server:
        before = server.members()
        assert len(before) == 2
        os.kill(before[0], signal.SIGRTMIN)
        await has_stalled(stalled)

        async def is_replaced() -> bool:
            now = server.members()
            return len(now) == 2 and before[0] not in now and before[1] in now

        await eventually(is_replaced, 30)
        said = server.errors()
        assert said.count("the event loop of a process is stuck") == 1
        # It says where it was stuck.
        assert "Fatal Python error: Aborted" in said
        assert "in stall" in said
        chat = ChatClient(server.base)
        await chat.post("bob", "x")
        assert await chat.texts("bob") == ["x"]
        chat.close()
        # The supervisor itself was not silent.
        assert [message for message in watching.waiting() if "WATCHDOG" in message]


async def test_no_child_process_has_the_managers_variables(
    server: Server, watching: Manager
) -> None:
    server.command += ["--processes", "2"]
    with server:
        watching.until("READY")
        members = server.members()
        assert len(members) == 2
        for pid in members:
            names = variables_of(pid)
            assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
            assert "TEST_STALLED" in names


async def test_a_service_manager_that_is_not_there_stops_nothing(
    server: Server, tmp_path: Path
) -> None:
    server.environ["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    with server:
        chat = ChatClient(server.base)
        await chat.post("bob", "x")
        chat.close()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        # One line, although there were several messages.
        assert server.errors().count("could not notify the service manager") == 1


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        # It is for another process.
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_taken_from_the_environment(
    environ: dict[str, str], watchdog_s: float
) -> None:
    environ = {**environ, "NOTIFY_SOCKET": "/run/notify", "HOME": "/"}
    assert Notifier.from_environment(environ).watchdog_s == watchdog_s
    assert environ == {"HOME": "/"}


async def test_nothing_is_sent_without_a_service_manager() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000"})
    assert notifier.watchdog_s == 0
    # It ends at once, because nobody would hear it.
    await notifier.keep(lambda: "starting", 1.0)
    notifier.ready("serving")


async def test_a_busy_manager_still_learns_of_each_change(tmp_path: Path) -> None:
    for manager in _manager(tmp_path):
        notifier = Notifier(manager.address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            # The kernel keeps only so many messages that were not received.
            with suppress(BlockingIOError):
                while True:
                    other.sendto(b"OTHER=1", manager.address)
        notifier.ready("serving")
        notifier.stopping()
        assert all(message == {"OTHER": "1"} for message in manager.waiting())
        keeping = asyncio.create_task(notifier.keep(lambda: "draining", 1.0))
        await eventually(partial(_is_told, notifier))
        keeping.cancel()
        ready, stopping, status = manager.waiting()
        assert ready == {"READY": "1", "STATUS": "serving"}
        assert stopping == {"STOPPING": "1"}
        assert status == {"STATUS": "draining"}


async def _is_told(notifier: Notifier) -> bool:
    return notifier._told == "draining"
