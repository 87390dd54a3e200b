"""Migrate a database with many messages while old and new nodes serve, and judge what clients saw.

usage: python -m tests.faults.mixed_versions [--messages N] [--report FILE]

`scripts/chaos-migration` runs this. One mongod has messages that an old node stored. Old and new
nodes serve clients meanwhile, which also read the prepared messages. The schema changes to 2 and
back again. In the end every inbox is read, and the checker judges the whole history. Beside that,
requests on a schedule (open loop) measure the latency of a new node in each phase. It exits with 1
if a guarantee was violated.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from chat_service.loadgen.generator import Load, LoadGenerator, reads_of
from chat_service.loadgen.stats import Latencies, LoadStats
from tests.faults import old_version
from tests.faults.chaos_clients import ChaosClients, Client
from tests.faults.checker import Violation, check
from tests.faults.history import PostRecord
from tests.faults.mongod_cluster import free_port
from tests.support import schema_1
from tests.support.ending import ended_by_signals
from tests.support.server import Server, mongods_on
from workers.mongod.embedded import EmbeddedMongod

#: How many prepared messages an inbox has, and how many inboxes are read per second meanwhile.
_PER_INBOX, _TAKEN_PER_S = 100, 5.0
#: Requests per second that measure the latency.
_RATE = 100.0
#: How many connections read the prepared messages at the end.
_READERS = 16
_LIFETIME_S = 6 * 3600
_DATABASE = "chat"


@dataclass
class Phase:
    """A part of the run, and when it was, in seconds of `time.perf_counter`.

    `cores` is the processor time of the database, and at the end its share of the time.
    """

    name: str
    began: float
    cores: float
    ended: float = 0.0


@dataclass
class Result:
    """What a run has shown. `p99_ms` has the latencies of each phase: p50, p99 and the worst."""

    messages: int
    counts: dict[str, int]
    violations: list[Violation]
    statuses: dict[str, int]
    missing: int
    phases: dict[str, dict[str, float]] = field(default_factory=dict)


class Run:
    """One run on a mongod of its own."""

    def __init__(self, folder: Path, messages: int, pause_s: float) -> None:
        self._folder = folder
        self._count = messages
        # How long each phase lasts that has no work of its own.
        self._pause_s = pause_s
        self._old_code = old_version.extract(folder / "old")
        self._servers: list[Server] = []
        self._numbers = count()
        self._phases: list[Phase] = []
        self._uri = ""
        self._turn = count()
        self._inboxes = [f"kept-{number}" for number in range(max(messages // _PER_INBOX, 1))]
        self._load = LoadStats(0)

    async def run(self) -> Result:
        """Run everything, and judge it."""
        async with AsyncExitStack() as stack:
            mongod = EmbeddedMongod(self._folder / "data", "")
            stack.push_async_callback(mongod.stop)
            self._uri = await mongod.start()
            stack.callback(self._kill_all)
            old = await self._start(is_old=True)
            await self._prepare()
            new = await self._start(is_old=False)
            clients = ChaosClients(
                self._address, clients=8, users=50, pause_s=0.05, has_deliveries=False
            )
            clients.history.posts.extend(self._posts)
            async with clients, self._measured(new), self._taking(clients):
                await self._migrate_under_load(old, new)
            await clients.drain()
            await self._drain(clients)
        return self._judge(clients)

    async def _migrate_under_load(self, old: Server, new: Server) -> None:
        async with self._phase("schema 1, old and new nodes"):
            await asyncio.sleep(self._pause_s)
        # It stops before the switch, since the old node still runs.
        code = await self._migrate("2")
        assert code == 1, f"chat migrate exited with {code} although an old node runs"
        another = await self._start(is_old=False)
        await self._stop(old)
        assert await self._migrate("2") == 0
        async with self._phase("schema 2, new nodes"):
            await asyncio.sleep(self._pause_s)
        assert await self._migrate("1") == 0
        await self._stop(another)
        await self._start(is_old=True)
        async with self._phase("schema 1 again, old and new nodes"):
            await asyncio.sleep(self._pause_s)

    async def _migrate(self, to: str) -> int:
        """Run the command. Each of its steps is a phase. Return its exit code."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "chat_service", "migrate", "--apply", "--to", to),
            *("--mongo-uri", self._uri, "--json"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **_ENVIRON},
        )
        assert process.stdout is not None
        step = ""
        async for line in process.stdout:
            fields = json.loads(line)
            if fields.get("step", step) != step:
                self._end_phase()
                step = fields["step"]
                self._begin_phase(f"to {to}: {step}")
        self._end_phase()
        return await process.wait()

    def _begin_phase(self, name: str) -> None:
        cores = processor_s(mongods_on(self._folder / "data")[0])
        self._phases.append(Phase(name, time.perf_counter(), cores))

    def _end_phase(self) -> None:
        if self._phases and not self._phases[-1].ended:
            phase = self._phases[-1]
            phase.ended = time.perf_counter()
            used_s = processor_s(mongods_on(self._folder / "data")[0]) - phase.cores
            phase.cores = used_s / (phase.ended - phase.began)

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        self._begin_phase(name)
        try:
            yield
        finally:
            self._end_phase()

    async def _start(self, *, is_old: bool) -> Server:
        folder = self._folder / f"server-{next(self._numbers)}"
        folder.mkdir()
        environ = {**_ENVIRON, **({"PYTHONPATH": str(self._old_code)} if is_old else {})}
        server = Server(folder, "--mongo-uri", self._uri, port=free_port(), **environ)
        await asyncio.to_thread(server.start)
        self._servers.append(server)
        return server

    async def _stop(self, server: Server) -> None:
        """Take a server from the balancer, and stop it."""
        self._servers.remove(server)
        server.process.terminate()
        await asyncio.to_thread(server.wait)

    def _kill_all(self) -> None:
        for server in self._servers:
            server.process.kill()
            server.wait()

    def _address(self) -> tuple[str, int]:
        return self._servers[next(self._turn) % len(self._servers)].address

    async def _prepare(self) -> None:
        """Insert messages as an old node does, and note them as posts of clients."""
        ids = schema_1.ids(age_s=3600)
        now = time.monotonic()
        documents = self._documents(ids, now)
        self._posts: list[PostRecord] = []
        async with AsyncMongoClient[dict[str, Any]](self._uri) as client:
            messages = client[_DATABASE]["messages"]
            while batch := list(islice(documents, 5000)):
                await messages.insert_many(batch, ordered=False)

    def _documents(self, ids: Iterator[str], now: float) -> Iterator[dict[str, Any]]:
        for number in range(self._count):
            inbox = self._inboxes[number % len(self._inboxes)]
            document = schema_1.document(next(ids), inbox, f"p{number}", lifetime_s=_LIFETIME_S)
            self._posts.append(
                PostRecord(
                    *(f"prepared for {inbox}", inbox, document["text"], _LIFETIME_S),
                    # In the order of their ids, and before everything else.
                    *(now - 1 + number * 1e-9, now - 1 + number * 1e-9, "ok", document["_id"]),
                )
            )
            yield document

    @asynccontextmanager
    async def _taking(self, clients: ChaosClients) -> AsyncIterator[None]:
        """Read prepared inboxes at a steady pace, from all nodes in turn."""

        is_over = asyncio.Event()

        async def take() -> None:
            client = Client(self._address)
            # From both ends, so that messages with and without a route are read.
            for number in range(len(self._inboxes)):
                if is_over.is_set():
                    break
                inbox = self._inboxes[number // 2 if number % 2 else -1 - number // 2]
                await clients._read(client, inbox)
                # The next one may go to another node.
                client.close()
                await asyncio.sleep(1 / _TAKEN_PER_S)

        taking = asyncio.create_task(take(), name="take")
        try:
            yield
        finally:
            # Not cancelled: the read in progress may take messages.
            is_over.set()
            await taking

    async def _drain(self, clients: ChaosClients) -> None:
        """Read all prepared inboxes until they are empty."""
        left = list(self._inboxes)

        async def read() -> None:
            client = Client(self._address)
            while left:
                inbox = left.pop()
                while True:
                    got = await clients._read(client, inbox)
                    if got is not None and got.outcome == "ok" and not got.messages:
                        break
                    if got is None or got.outcome != "ok":
                        await asyncio.sleep(0.05)
            client.close()

        await asyncio.gather(*(read() for _ in range(_READERS)))

    @asynccontextmanager
    async def _measured(self, server: Server) -> AsyncIterator[None]:
        """Send requests on schedule to a server, which serves all the time."""
        host, port = server.address
        load = Load(port, 32, 24 * 3600.0, host=host, rate=_RATE, users=200, prefix="measured")
        self._load.began = time.perf_counter()
        generator = LoadGenerator(load, self._load.count)
        await generator.connect()
        running = asyncio.create_task(generator.run(self._load.began, load.seconds), name="measure")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await generator.finish()
            self._load.is_sweeping = True
            await generator.send_all(reads_of(load))
            await generator.close()

    def _judge(self, clients: ChaosClients) -> Result:
        verdict = check(clients.history, late_s=0.1, longest_s=13.0, release_s=16.0)
        statuses = Counter(str(answer.status) for answer in clients.answers)
        statuses.update({f"measured {status}": n for status, n in self._load.errors.items()})
        result = Result(
            self._count,
            dict(verdict.counts),
            verdict.violations,
            dict(statuses),
            self._load.missing,
        )
        for phase in self._phases:
            latencies = self._latencies(phase)
            result.phases[phase.name] = {
                "seconds": round(phase.ended - phase.began, 1),
                "requests": latencies.count,
                "cores": round(phase.cores, 2),
                "p50_ms": round(latencies.rank_ms(0.5), 1),
                "p99_ms": round(latencies.rank_ms(0.99), 1),
                "worst_ms": round(latencies.worst_s * 1000, 1),
            }
        return result

    def _latencies(self, phase: Phase) -> Latencies:
        """Return the latencies of the seconds that lie in a phase, at least one."""
        first = int(phase.began - self._load.began)
        last = max(int(phase.ended - self._load.began), first + 1)
        found = Latencies()
        for second in self._load.seconds[first:last]:
            found.classes.update(second.latencies.classes)
            found.count += second.latencies.count
            found.worst_s = max(found.worst_s, second.latencies.worst_s)
        return found


#: Each node of the run logs little, and has no limit that the clients meet.
_ENVIRON = {"CHAT_LOG_REQUESTS_PER_S": "0"}


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(result: Result) -> str:
    """Return the phases as a Markdown table."""
    heads = ("phase", "seconds", "cores of mongod", "requests", "p50", "p99", "worst")
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, it in result.phases.items():
        cells = (
            *(name, f"{it['seconds']:.1f}", f"{it['cores']:.2f}", f"{it['requests']:.0f}"),
            *(f"{it[key]:.1f} ms" for key in ("p50_ms", "p99_ms", "worst_ms")),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run it, and print the result."""
    parser = argparse.ArgumentParser(
        "scripts/chaos-migration",
        description="Migrate a database while old and new nodes serve, and check the guarantees.",
        epilog="Exits with 1 if a guarantee was violated.",
    )
    parser.add_argument("--messages", type=int, default=1_000_000, help="prepared messages")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds of each quiet phase")
    parser.add_argument("--report", type=Path, help="write the result to this file as JSON")
    arguments = parser.parse_args()
    if missing := old_version.missing():
        print(f"skipped: it needs {missing}")
        return 0
    # A history of millions of requests has no reference cycles; do not search it for them.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        result = asyncio.run(Run(Path(folder), arguments.messages, arguments.pause).run())
    print(table(result))
    print(result.counts, result.statuses, f"measured messages missing: {result.missing}")
    for violation in result.violations[:10]:
        print(f"VIOLATION {violation.kind}: {violation.what}"[:400])
    if arguments.report:
        fields = {**result.__dict__, "violations": [*map(str, result.violations[:100])]}
        arguments.report.write_text(json.dumps(fields, indent=1), encoding="utf-8")
    return 1 if result.violations or result.missing else 0


if __name__ == "__main__":
    sys.exit(ended_by_signals(main))
