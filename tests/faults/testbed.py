"""A service under load with everything it depends on. Scenarios break and restore it."""

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
from tests.network.fleet import Fleet
from tests.support.proxy import MongoProxy
from tests.support.server import Server, mongods_on
from tests.support.waiting import eventually
from workers.mongod.embedded import EmbeddedMongod, socket_path, uri_of

#: embedded: the servers' own mongod. external: one mongod that outlives them. proxied: the same
#: behind a `MongoProxy`. replicas: three mongods as a replica set. network: the same on hosts of
#: their own, and each server on a host, too.
Database: TypeAlias = Literal["embedded", "external", "proxied", "replicas", "network"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Goal(NamedTuple):
    """A measured value and its limit."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether the value is at most the limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "" if self.is_met else " MISSED"
        return f"{self.name} {self.value:.4g} (at most {self.limit:g}) {self.unit}{verdict}"


class Testbed:
    """Servers, their database, and clients that load them. Use as an async context."""

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
        self.fleet: Fleet
        self.rng = random.Random(0)
        #: Seconds from each fault to the first success after it.
        self.recovery_times: list[float] = []
        #: Measurements that only this scenario makes.
        self.goals: list[Goal] = []
        #: Highest resident memory of any server process, in MiB.
        self.memory_mib = 0.0
        #: Violations of guarantees that only this scenario checks.
        self.broken: list[Violation] = []
        #: Whether every request must be answered and every connection accepted.
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
        """The only server, or the first one."""
        return self.servers[0]

    def address(self) -> tuple[str, int]:
        """Return the host and port of a random server."""
        return self.rng.choice(self.servers).address

    async def run_load(self, least_s: float = 0.3, most_s: float = 0.8) -> None:
        """Let the load run for a random time, so that the next fault hits it at any point."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    async def await_recovery(self, broken: float) -> None:
        """Wait for the first success since the fault, and record how long it took."""
        self.recovery_times.append(await self.clients.first_success(broken))

    def kill(self, *pids: int) -> float:
        """SIGKILL processes. Return the moment before. Record the kills of servers' processes."""
        moment = time.monotonic()
        members = {
            pid for server in self.servers for pid in (server.process.pid, *server.members())
        }
        for pid in pids:
            if pid in members:
                self.clients.history.kills.append(time.monotonic())
            # It may have died with its supervisor.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return moment

    async def await_processes(self) -> None:
        """Wait until every process of the server runs."""

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
        """Open a client of the only mongod, as an operator would."""
        client: AsyncMongoClient[Any] = AsyncMongoClient(uri_of(self.data_dir))
        async with client:
            yield client

    def step_clock(self, seconds: int) -> None:
        """Set the mongod's clock wrong by this many seconds."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}", encoding="ascii")
        new.rename(self._clock)

    def free_mib(self) -> float:
        """Return the free space on the mongod's disk, in MiB."""
        disk = os.statvfs(self.data_dir)
        return disk.f_bavail * disk.f_frsize / (1 << 20)

    def mongod(self) -> int:
        """Return the process id of the only mongod."""
        return mongods_on(self.data_dir)[0]

    async def await_new_mongod(self, pid: int) -> None:
        """Wait until the server has started another mongod and listens to it."""

        async def is_another() -> bool:
            return self.socket.exists() and mongods_on(self.data_dir) not in ([], [pid])

        await eventually(is_another, 60)

    def require(self, is_kept: bool, what: str) -> None:
        """Record a violation if the condition does not hold."""
        if not is_kept:
            self.broken.append(Violation("required", what))

    async def settle(self, seconds: float) -> None:
        """Wait until no server can still make claimed messages unread again."""
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
        if self._database == "network":
            host = self.fleet.network.host(self.fleet.nodes[number])
            server.wrapper = (*host.prefix, *wrapper)
            server.command += ["--host", host.address]
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
        elif self._database == "network":
            self.fleet = Fleet(self._folder, nodes=len(self._wrappers))
            await stack.enter_async_context(self.fleet)
            self.cluster = self.fleet.cluster
            self._arguments = ("--mongo-uri", self.cluster.uri)
        elif self._database != "embedded":
            wrapper = stepping_mongod(self._folder, self._clock) if self._steps_mongod else ""
            mongod = EmbeddedMongod(self.data_dir, wrapper)
            stack.push_async_callback(mongod.stop)
            uri = await mongod.start()
            if self._steps_mongod:
                # Under faketime's library it does not exit by itself.
                stack.callback(lambda: os.kill(self.mongod(), signal.SIGKILL))
            if self._database == "proxied":
                self.proxy = await stack.enter_async_context(MongoProxy(uri, self._folder))
                uri = self.proxy.uri
            self._arguments = ("--mongo-uri", uri)
        return self._arguments

    def _end(self, server: Server) -> None:
        # Stopped processes would not notice that their supervisor is gone.
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
    """Cancel a task. Raise the exception that it failed with before."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def can_mount() -> bool:
    """Return whether this user may mount a small file system, which is then filled."""
    return os.geteuid() == 0 and shutil.which("mount") is not None
