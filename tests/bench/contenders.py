"""The services that `scripts/bench` compares. Each is a process of its own, and uses a database."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from chat_service.loadgen.generator import Load
from tests.bench import wrk
from tests.bench.generator import READY, Measured
from tests.faults.mongod_cluster import free_port
from tests.support.code_path import CODE_PATH
from tests.support.ending import child

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

#: A contender's command starts with this if it is a Python module.
PYTHON = (sys.executable, "-P", "-m")


class Sample(NamedTuple):
    """One run of a load, with the processor time per request of the service and of its database,
    in seconds.
    """

    measured: Measured
    server_s: float
    database_s: float


class Contender:
    """One service. Use as an async context; `load` puts load on it."""

    def __init__(
        self,
        name: str,
        database: int,
        command: Sequence[str],
        environ: Mapping[str, str],
        token: str = "",
    ) -> None:
        """The word PORT in `command` is replaced by a free port. `database` is a process id.

        Every request of a load carries `token`, if there is one.
        """
        self.name = name
        self.port = free_port()
        self._database = database
        self._token = token
        self._command = [str(self.port) if word == "PORT" else word for word in command]
        self._environ = {**os.environ, "PYTHONPATH": CODE_PATH, **environ}
        self._process: asyncio.subprocess.Process
        self._stack: AsyncExitStack

    async def __aenter__(self) -> "Contender":
        async with AsyncExitStack() as stack:
            self._process = await stack.enter_async_context(
                child(
                    *self._command,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=self._environ,
                )
            )
            assert self._process.stdout is not None
            line = await self._process.stdout.readline()
            assert line, f"{self.name} did not start"
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def processes(self) -> list[int]:
        """Return the ids of its processes, including the supervisor's children."""
        return processes_of(self._process.pid)

    def memory(self) -> int:
        """Return the resident memory of all its processes, in bytes."""
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
            for pid in self.processes()
        )

    async def load(self, load: Load) -> Sample:
        """Run a load on it. The warm-up is not counted."""
        load = msgspec.structs.replace(load, port=self.port)
        if load.rate or not wrk.is_installed():
            return await self._load_by_ours(load)
        if load.warm_up_s:
            await wrk.press(load, load.warm_up_s, self._token)
        before = self._used_s()
        measured = await wrk.press(load, load.seconds, self._token)
        return _sample(measured, before, self._used_s(), measured.requests)

    async def _load_by_ours(self, load: Load) -> Sample:
        async with child(
            *(*PYTHON, "tests.bench.generator"),
            msgspec.json.encode(load).decode(),
            self._token,
            env=self._environ,
            stdout=asyncio.subprocess.PIPE,
        ) as generator:
            assert generator.stdout is not None
            assert await generator.stdout.readline() == READY, f"{self.name}: the generator failed"
            # Measure the middle of the run.
            await asyncio.sleep(load.warm_up_s + load.seconds / 8)
            before = self._used_s()
            seconds = load.seconds * 3 / 4
            await asyncio.sleep(seconds)
            after = self._used_s()
            output, _ = await generator.communicate()
            assert generator.returncode == 0, f"{self.name}: the generator failed"
        measured = msgspec.json.decode(output, type=Measured)
        return _sample(measured, before, after, measured.rate * seconds)

    def _used_s(self) -> tuple[float, float]:
        return processor_s_of_all(self._process.pid), processor_s_of_all(self._database)


def _sample(
    measured: Measured, before: tuple[float, float], after: tuple[float, float], requests: float
) -> Sample:
    # On a busy machine, a slow contender may answer no request in a short round.
    count = max(requests, 1)
    server_s, database_s = ((b - a) / count for a, b in zip(before, after, strict=True))
    return Sample(measured, server_s, database_s)


def processes_of(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    pids = [pid]
    for each in pids:
        for task in Path(f"/proc/{each}/task").iterdir():
            pids += map(int, (task / "children").read_text(encoding="ascii").split())
    return pids


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used so far, in seconds."""
    own, _ = _processor_s(pid)
    return own


def processor_s_of_all(pid: int) -> float:
    """Return the processor time of a process and all its descendants so far, in seconds.

    It includes that of descendants that have ended, such as PostgreSQL's autovacuum workers.
    """
    while True:
        _, ended = _processor_s(pid)
        with suppress(FileNotFoundError, ProcessLookupError):
            used = sum(map(sum, map(_processor_s, processes_of(pid))))
            # Count again if a process ended in between: it could count twice, or not at all.
            if _processor_s(pid)[1] == ended:
                return used


def _processor_s(pid: int) -> tuple[float, float]:
    """Return what a process has used itself, and what its children that have ended had used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    own, system, children, children_system = map(int, fields[11:15])
    return (own + system) * _TICK_S, (children + children_system) * _TICK_S
