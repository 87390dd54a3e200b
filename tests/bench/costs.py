"""What a request costs the service and its database: the coefficients of `chat capacity`.

Loads that differ in the size of their batches separate what a batch costs from what each of its
requests costs. The database itself counts commands, documents and bytes of oplog.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from pymongo import AsyncMongoClient

from chat_service.loadgen.generator import Load
from config.settings import PROJECT_ROOT
from tests.bench import wrk
from tests.bench.contenders import Contender, processor_s
from tests.bench.generator import READY, Measured

#: Time in seconds that a load goes on after it was measured.
_SPARE_S = 0.5

Client = AsyncMongoClient[dict[str, Any]]


class Usage(NamedTuple):
    """What a load has used: totals over some seconds.

    `inserts`, `searches` and `claims` are commands; `posted` and `claimed` are documents.
    """

    seconds: float
    server_s: float
    database_s: float
    inserts: float
    searches: float
    claims: float
    posted: float
    claimed: float
    commands: float
    connections: float


class Run(NamedTuple):
    """A load, its requests in the time of `used`, and what it used."""

    load: Load
    requests: float
    used: Usage

    @property
    def reads(self) -> float:
        """The number of reads, whether or not they found something."""
        return self.requests * (1 - self.load.posts)


class Meter:
    """Runs loads on contenders, and notes what they use."""

    def __init__(self, client: Client, mongod: int) -> None:
        self._client = client
        self._mongod = mongod

    async def run(self, contender: Contender, load: Load, others: Sequence[Contender] = ()) -> Run:
        """Run a load; its warm-up does not count. `others` share the load in equal parts."""
        everyone = (contender, *others)
        share = msgspec.structs.replace(
            load,
            rate=load.rate / len(everyone),
            connections=max(load.connections // len(everyone), 1),
        )
        async with asyncio.TaskGroup() as group:
            loads = [
                group.create_task(_press(msgspec.structs.replace(share, port=each.port, seed=n)))
                for n, each in enumerate(everyone)
            ]
            await asyncio.sleep(load.warm_up_s)
            before = await self._usage(everyone)
            await asyncio.sleep(load.seconds)
            after = await self._usage(everyone)
        measured = [task.result() for task in loads]
        assert not any(each.errors for each in measured), "requests failed"
        changes = [b - a for a, b in zip(before, after, strict=True)]
        used = Usage(*changes)._replace(connections=after.connections)
        return Run(load, sum(each.rate for each in measured) * used.seconds, used)

    async def _usage(self, contenders: Sequence[Contender]) -> Usage:
        status = await self._client.admin.command("serverStatus")
        commands = {
            name: float(each["total"])
            for name, each in status["metrics"]["commands"].items()
            if isinstance(each, dict) and "total" in each
        }
        pids = [pid for each in contenders for pid in each.processes()]
        return Usage(
            time.perf_counter(),
            sum(map(processor_s, pids)),
            processor_s(self._mongod),
            commands["insert"],
            commands["find"],
            commands["update"],
            float(status["opcounters"]["insert"]),
            float(status["metrics"]["document"]["updated"]),
            sum(commands.values()),
            float(status["connections"]["current"]),
        )


async def _press(load: Load) -> Measured:
    """Run a load in another process until it was certainly measured."""
    seconds = load.warm_up_s + load.seconds + _SPARE_S
    if not load.rate and wrk.is_installed():
        return await wrk.press(load, seconds)
    load = msgspec.structs.replace(load, warm_up_s=load.warm_up_s / 2, seconds=seconds)
    generator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.bench.generator"),
        *(msgspec.json.encode(load).decode(), ""),
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await generator.communicate()
    assert generator.returncode == 0, "the generator failed"
    return msgspec.json.decode(output.removeprefix(READY), type=Measured)
