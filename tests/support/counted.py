"""A service in a thread, on uvloop as in production, whose work is counted without a clock.

The caller's thread is the client. It sends requests while the service's thread is held, so that the
service finds all of them at once and serves them in one batch.
"""

import asyncio
import ctypes
import fcntl
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import msgspec
import uvloop

from chat_service.service import Service
from config import Settings
from tests.support.proxy import MongoProxy

_START_S = 60.0
_PR_SET_PTRACER, _ANY = 0x59616D61, -1
_SYSTEM_CALL = re.compile(r"(?:\d+ +)?(\w+)\(")

#: System calls that do not count. CPython before 3.12 makes the first one each time it looks for
#: the running loop, and threads that wait for the interpreter's lock make the other one.
_NOT_OURS = frozenset({"getpid", "futex"})


class CannotTrace(Exception):
    """System calls cannot be counted on this machine."""


class CountedService:
    """A service, its connections to one client, and what its thread does. Use as a context."""

    def __init__(self, settings: Settings, folder: Path, *, with_commands: bool = False) -> None:
        """Files go to `folder`. A proxy counts commands, which adds to the work of the thread."""
        self._settings = settings
        self._folder = folder
        self._with_commands = with_commands
        #: The number of each command that reached mongod and that names an inbox `crowd-...`.
        self.commands: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="service")
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.port = 0
        self._tid = 0
        #: The connections of the client.
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> "CountedService":
        self._thread.start()
        assert self._is_ready.wait(_START_S), "the service did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in self.sockets:
            sock.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tid = threading.get_native_id()
        async with AsyncExitStack() as stack:
            settings = self._settings
            if self._with_commands:
                proxy = MongoProxy(settings.mongo_uri, self._folder)
                proxy.naming, proxy.sent = b"crowd-", self.commands
                await stack.enter_async_context(proxy)
                settings = msgspec.structs.replace(settings, mongo_uri=proxy.uri)
            service = Service(settings)
            await service.start()
            stack.push_async_callback(service.stop)
            self.port = service.port
            self._is_ready.set()
            await self._stop.wait()

    def connect(self, count: int) -> None:
        """Open connections until there are `count`."""
        while len(self.sockets) < count:
            self.sockets.append(socket.create_connection(("127.0.0.1", self.port)))

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send requests, each on its own connection, and return their answers.

        The service finds all of them when it looks.
        """
        sockets = self.sockets[: len(requests)]
        if len(requests) == 1:
            sockets[0].sendall(requests[0])
            return [sockets[0].recv(65536)]
        reached, gate = threading.Lock(), threading.Lock()
        reached.acquire()
        gate.acquire()

        def hold() -> None:
            reached.release()
            gate.acquire()

        self._loop.call_soon_threadsafe(hold)
        reached.acquire()
        for sock, request in zip(sockets, requests, strict=True):
            sock.sendall(request)
        while any(map(_unacknowledged, sockets)):
            # The kernel may deliver some of them late.
            time.sleep(0.001)
        gate.release()
        return [sock.recv(65536) for sock in sockets]

    @contextmanager
    def calls(self) -> Iterator[Counter[str]]:
        """Count the calls of Python and built-in functions in the service's thread, by name."""
        counted: Counter[str] = Counter()

        def on_event(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                counted[frame.f_code.co_qualname] += 1
            elif event == "c_call":
                counted[getattr(argument, "__qualname__", "?")] += 1

        self._in_thread(sys.setprofile, on_event)
        try:
            yield counted
        finally:
            self._in_thread(sys.setprofile, None)

    def _in_thread(self, function: Callable[[Any], object], argument: object) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(function, argument)
        self._loop.call_soon_threadsafe(done.set)
        done.wait()

    @contextmanager
    def system_calls(self) -> Iterator[Counter[str]]:
        """Count the system calls of the service's thread, by name, with strace.

        The counter is filled at the end. Raises `CannotTrace`.
        """
        if shutil.which("strace") is None:
            raise CannotTrace("strace is not installed")
        # Linux with Yama lets a process be traced only by its parent, or by a process it names.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
        output = self._folder / "strace.txt"
        strace = subprocess.Popen(
            ["strace", "-s", "0", "-o", str(output), "-p", str(self._tid)],
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert strace.stderr is not None
        counted: Counter[str] = Counter()
        try:
            said = strace.stderr.readline()
            if "attached" not in said:
                raise CannotTrace(f"strace may not trace: {said.strip()}")
            yield counted
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate()
        for line in output.read_text(encoding="utf-8").splitlines():
            if (call := _SYSTEM_CALL.match(line)) is not None and call[1] not in _NOT_OURS:
                counted[call[1]] += 1


def _unacknowledged(sock: socket.socket) -> int:
    """Return the number of bytes that the kernel has not put into the receiver's buffer."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
