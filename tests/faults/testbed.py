"""A service under load with all that it stands on: what a scenario breaks and puts up again."""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pymongo import AsyncMongoClient

from tests.faults.chaos_clients import ChaosClients
from tests.faults.checker import Violation
from tests.faults.mongod_cluster import ReplicaSet, free_port
from tests.faults.stepping import stepping_mongod
from tests.support.proxy import MongoProxy
from tests.support.server import Server, mongods_on
from tests.support.waiting import eventually
from workers.mongod.embedded import EmbeddedMongod, socket_path, uri_of

#: embedded: the servers' own mongod. external: one mongod that outlives them. proxied: the
#: same behind a `MongoProxy`. replicas: three mongods as a replica set.
Database: TypeAlias = Literal["embedded", "external", "proxied", "replicas"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Goal(NamedTuple):
    """A figure, and what it has to be for the promise to be kept."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether it is at most its limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "" if self.is_met else " MISSED"
        return f"{self.name} {self.value:.4g} (at most {self.limit:g}) {self.unit}{verdict}"


class Testbed:
    """Servers, their database and a crowd of clients. Use as an async context."""

    def __init__(
        self,
        folder: Path,
        database: Database,
        *,
        processes: int = 2,
        settings: dict[str, str] | None = None,
        wrappers: tuple[tuple[str, ...], ...] = ((),),
        data_dir: Path | None = None,
        is_log_read: bool = True,
        steps_mongod: bool = False,
    ) -> None:
        self._folder = folder
        self._database = database
        self._processes = processes
        self._settings = {f"CHAT_{key.upper()}": value for key, value in (settings or {}).items()}
        self._wrappers = wrappers
        self._is_log_read = is_log_read
        self._steps_mongod = steps_mongod
        self._clock = folder / "clock"
        self._clock.write_text("0", encoding="ascii")
        self._stack = AsyncExitStack()
        self.data_dir = data_dir or folder / "data"
        self.servers: list[Server] = []
        self.clients: ChaosClients
        self.cluster: ReplicaSet
        self.proxy: MongoProxy
        self.rng = random.Random(0)
        #: Seconds from each break to the first success after it.
        self.recovery_times: list[float] = []
        #: What a scenario measured beyond what is measured in all.
        self.goals: list[Goal] = []
        #: Highest resident memory of any server process, in MiB.
        self.memory_mib = 0.0
        #: Promises of the scenario's own that were broken.
        self.broken: list[Violation] = []
        #: Whether each request must have got its answer, and every connection been made.
        self.must_answer_all = False

    async def __aenter__(self) -> "Testbed":
        async with AsyncExitStack() as stack:
            for number, wrapper in enumerate(self._wrappers):
                server = await self._server(stack, number, wrapper)
                self.servers.append(server)
                stack.callback(self._end, server)
                await asyncio.to_thread(server.start)
            stack.push_async_callback(_end_task, asyncio.create_task(self._watch_memory()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def server(self) -> Server:
        """The server, where there is one."""
        return self.servers[0]

    def port(self) -> int:
        """A port of the service."""
        return self.rng.choice(self.servers).port

    async def run_load(self, least_s: float = 0.3, most_s: float = 0.8) -> None:
        """Let the load run for a while, so that what comes next meets it at any point."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    async def await_recovery(self, broken: float) -> None:
        """Wait for the first success since something was broken, and note how long it took."""
        self.recovery_times.append(await self.clients.first_success(broken))

    def kill(self, *pids: int) -> float:
        """SIGKILL processes; the moment before. Those that are servers' count as such."""
        moment = time.monotonic()
        members = {
            pid for server in self.servers for pid in (server.process.pid, *server.members())
        }
        for pid in pids:
            if pid in members:
                self.clients.history.kills.append(time.monotonic())
            # It may have gone with its supervisor.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return moment

    async def await_processes(self) -> None:
        """Wait until every process of the server is there."""

        async def are_there() -> bool:
            return len(self.server.members()) == self._processes

        await eventually(are_there, 30)

    async def await_replaced(self, pids: set[int]) -> None:
        """Wait until the server has replaced these processes."""

        async def are_gone() -> bool:
            return not pids & set(self.server.members())

        await eventually(are_gone, 60)

    @property
    def socket(self) -> Path:
        """The socket of the server's own mongod."""
        return socket_path(self.data_dir)

    @asynccontextmanager
    async def mongo(self) -> AsyncIterator[AsyncMongoClient[Any]]:
        """A client of the only mongod, as an operator has one."""
        client: AsyncMongoClient[Any] = AsyncMongoClient(uri_of(self.data_dir))
        async with client:
            yield client

    def step_clock(self, seconds: int) -> None:
        """Have the clock of the mongod go so many seconds wrong."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}", encoding="ascii")
        new.rename(self._clock)

    def free_mib(self) -> float:
        """What the disk of the mongod has left for it."""
        disk = os.statvfs(self.data_dir)
        return disk.f_bavail * disk.f_frsize / (1 << 20)

    def mongod(self) -> int:
        """The process of the only mongod."""
        return mongods_on(self.data_dir)[0]

    async def await_new_mongod(self, pid: int) -> None:
        """Wait until the server has started another mongod, and taken up with it."""

        async def is_another() -> bool:
            return self.socket.exists() and mongods_on(self.data_dir) not in ([], [pid])

        await eventually(is_another, 60)

    def require(self, is_kept: bool, what: str) -> None:
        """Note a broken promise where it is not kept."""
        if not is_kept:
            self.broken.append(Violation("required", what))

    async def settle(self, seconds: float) -> None:
        """Wait until nothing is under way that a server may still give back."""
        unknown = [got.ended for got in self.clients.history.reads if got.outcome == "unknown"]
        if unknown:
            await asyncio.sleep(max(unknown[-1] + seconds - time.monotonic(), 0))

    async def _server(self, stack: AsyncExitStack, number: int, wrapper: tuple[str, ...]) -> Server:
        folder = self._folder / f"server-{number}"
        folder.mkdir()
        server = Server(
            folder,
            *("--processes", str(self._processes)),
            *(await self._database_arguments(stack) if number == 0 else self._arguments),
            port=free_port(),
            **self._settings,
        )
        server.wrapper = wrapper
        if not self._is_log_read:
            unread, server.stderr = os.pipe()
            stack.callback(os.close, server.stderr)
            stack.callback(os.close, unread)
        return server

    async def _database_arguments(self, stack: AsyncExitStack) -> tuple[str, ...]:
        self._arguments: tuple[str, ...] = ("--data-dir", str(self.data_dir))
        if self._database == "replicas":
            self.cluster = await stack.enter_async_context(ReplicaSet(self._folder))
            self._arguments = ("--mongo-uri", self.cluster.uri)
        elif self._database != "embedded":
            wrapper = stepping_mongod(self._folder, self._clock) if self._steps_mongod else ""
            mongod = EmbeddedMongod(self.data_dir, wrapper)
            stack.push_async_callback(mongod.stop)
            uri = await mongod.start()
            if self._steps_mongod:
                # Under a library that changes its clock it does not end by itself.
                stack.callback(lambda: os.kill(self.mongod(), signal.SIGKILL))
            if self._database == "proxied":
                self.proxy = await stack.enter_async_context(MongoProxy(uri, self._folder))
                uri = self.proxy.uri
            self._arguments = ("--mongo-uri", uri)
        return self._arguments

    def _end(self, server: Server) -> None:
        # Some may be stopped, and would not notice that their supervisor is gone.
        for pid in (server.process.pid, *server.members()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        server.wait()

    async def _watch_memory(self) -> None:
        while True:
            for server in self.servers:
                for pid in (server.process.pid, *server.members()):
                    self.memory_mib = max(self.memory_mib, _resident(pid) / (1 << 20))
            await asyncio.sleep(0.5)


async def _end_task(task: asyncio.Task[None]) -> None:
    """End a task; raises what it died of before."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def can_mount() -> bool:
    """Whether this user may mount a small file system, to fill it."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
