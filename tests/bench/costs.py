"""What requests cost the service and its database: the coefficients of `chat capacity`.

The cost of a command and that of a request are told apart by loads that have batches of different
sizes. MongoDB itself counts commands and documents. `chat_service.capacity.coefficients` has the
names.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import bson
import msgspec
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from chat_service.capacity.coefficients import AWAKE_RATE, MEASURED
from chat_service.capacity.model import Demand, plan
from chat_service.loadgen.generator import Load
from tests.bench import wrk
from tests.bench.contenders import Contender, processor_s
from tests.bench.generator import READY, Measured
from tests.support.code_path import CODE_PATH
from tests.support.ending import child
from workers.routing import route_of
from workers.store.layout import NEWEST
from workers.store.schema import COLLECTION, create_indexes, list_indexes

Client = AsyncMongoClient[dict[str, Any]]

#: Time in seconds that a load goes on after it was measured.
_SPARE_S = 0.5
_WARM_UP_S = 2.0
_TEXT_BYTES = 100
_STEPS = 20_000
_NODE = ("node_awake", "node_request", "node_command", "node_text_kib")
_DATABASE = (
    *("database_awake", "insert_command", "insert_message", "search_command", "search_inbox"),
    *("claim_command", "claim_message", "database_text_kib"),
)


class Usage(NamedTuple):
    """What a load has used: totals over some seconds.

    `inserts`, `searches` and `claims` are commands; `posted` and `claimed` are messages; `oplog` is
    in bytes.
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
    oplog: float


class Run(NamedTuple):
    """A load, the requests per second that were answered, and what they used."""

    load: Load
    requests: float
    used: Usage

    def per_s(self, total: float) -> float:
        """Return a total of `used` per second."""
        return total / self.used.seconds


class Meter:
    """Runs loads on contenders, and notes what they use."""

    def __init__(self, client: Client, mongod: int) -> None:
        self._client = client
        self._mongod = mongod

    async def run(self, contenders: Sequence[Contender], load: Load) -> Run:
        """Run a load, in equal parts on these contenders. Its warm-up does not count."""
        part = msgspec.structs.replace(
            load,
            rate=load.rate / len(contenders),
            connections=max(load.connections // len(contenders), 1),
        )
        async with asyncio.TaskGroup() as group:
            loads = [
                group.create_task(_press(msgspec.structs.replace(part, port=each.port, seed=seed)))
                for seed, each in enumerate(contenders)
            ]
            await asyncio.sleep(load.warm_up_s)
            before = await self._usage(contenders)
            await asyncio.sleep(load.seconds)
            after = await self._usage(contenders)
        measured = [task.result() for task in loads]
        assert not any(each.errors for each in measured), "requests failed"
        used = Usage(*(b - a for a, b in zip(before, after, strict=True)))
        # A generator that cannot keep up sends fewer posts than its rate.
        posted = used.posted / used.seconds / load.posts if load.posts else 0.0
        requests = posted or sum(each.rate for each in measured)
        return Run(load, requests, used)

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
            float((await self._client.local.command("collStats", "oplog.rs"))["size"]),
        )

    async def hold_purges(self) -> None:
        """Stop deletions by the TTL monitor until `purges`, which then begins within a second.

        Call it a minute before: the monitor first sleeps as long as it was going to.
        """
        await self._set(ttlMonitorEnabled=False, ttlMonitorSleepSecs=1)

    async def purges(self, messages: int) -> dict[str, float]:
        """Let the TTL monitor delete so many claimed messages, and return what each costs."""
        database = self._client["purges"]
        await create_indexes(database, NEWEST, await list_indexes(database, NEWEST))
        collection = database[COLLECTION]
        for start in range(0, messages, 5000):
            batch = [_claimed(number) for number in range(start, min(start + 5000, messages))]
            await collection.insert_many(batch, ordered=False)
        before = processor_s(self._mongod)
        await self._set(ttlMonitorEnabled=True)
        seen: list[tuple[float, int]] = []
        while left := await collection.estimated_document_count():
            if left < messages:
                seen.append((time.perf_counter(), left))
            await asyncio.sleep(0.05)
        cost = (processor_s(self._mongod) - before) / messages
        figures = {"purge_message": cost * 1e6}
        if len(seen) > 1:
            (began, first), (ended, last) = seen[0], seen[-1]
            figures["purges_per_s"] = (first - last) / (ended - began)
        return figures

    async def _set(self, **parameters: Any) -> None:
        await self._client.admin.command({"setParameter": 1, **parameters})


def loads(seconds: float) -> list[Load]:
    """Return loads that differ in kind, in the size of batches, and in the size of texts."""
    found = []
    for posts in (0.5, 1.0, 0.0):
        prefix = f"costs-{posts}"
        found += [_load(seconds, posts, prefix, rate=rate) for rate in (250, 1000, 3000)]
        found += [
            _load(seconds, posts, prefix, connections=connections) for connections in (64, 256)
        ]
    found += [_load(seconds, 0.5, f"costs-{n}", rate=1000, text_bytes=n) for n in (2000, 8000)]
    return found


def at_rate(seconds: float, rate: float) -> Load:
    """Return an open loop of half posts, half reads."""
    return _load(seconds, 0.5, "model", rate=rate)


def _load(
    seconds: float,
    posts: float,
    prefix: str,
    *,
    rate: float = 0,
    connections: int = 64,
    text_bytes: int = _TEXT_BYTES,
) -> Load:
    # The inboxes are so few that messages do not pile up during the warm-up.
    return Load(
        *(0, connections, seconds),
        warm_up_s=min(seconds, _WARM_UP_S),
        posts=posts,
        users=200,
        prefix=prefix,
        text_bytes=text_bytes,
        rate=rate,
    )


def coefficients(runs: Sequence[Run]) -> dict[str, float]:
    """Return the processor times that explain these runs best, in µs."""
    node, database = [], []
    for run in runs:
        commands = run.per_s(run.used.inserts + run.used.searches + run.used.claims)
        node.append((_awake(run), run.requests, commands, _text_kib(run)))
        database.append(_database_work(run))
    found = dict(zip(_NODE, fit(node, [run.per_s(run.used.server_s) for run in runs]), strict=True))
    found |= zip(
        _DATABASE, fit(database, [run.per_s(run.used.database_s) for run in runs]), strict=True
    )
    return {name: value * 1e6 for name, value in found.items()}


def of_replication(run: Run, found: Mapping[str, float]) -> float:
    """Return what a write costs the primary for each of two other members, in µs.

    It is what the other costs in `found` do not explain. Among the updates of this run are the
    confirmations of searches.
    """
    explained = sum(
        work * found[name] for work, name in zip(_database_work(run), _DATABASE, strict=True)
    )
    writes = run.per_s(run.used.inserts + run.used.claims)
    return max(run.per_s(run.used.database_s) * 1e6 - explained, 0) / writes / 2


def _database_work(run: Run) -> tuple[float, ...]:
    """Return how much of each kind of work the database does in a second."""
    used = run.used
    return (
        *(_awake(run), run.per_s(used.inserts), run.per_s(used.posted)),
        *(run.per_s(used.searches), run.requests * (1 - run.load.posts)),
        *(run.per_s(used.claims), run.per_s(used.claimed), _text_kib(run)),
    )


def _awake(run: Run) -> float:
    return min(run.requests / AWAKE_RATE, 1)


def _text_kib(run: Run) -> float:
    return run.per_s(run.used.posted + run.used.claimed) * run.load.text_bytes / 1024


def compare(run: Run, nodes: int) -> dict[str, tuple[float, float]]:
    """Return the measured figures of a run, each with that of the model.

    Messages are not deleted during a run, so the model is asked without deletions.
    """
    used = run.used
    demand = Demand(
        run.requests,
        lifetime_s=3600,
        size=run.load.text_bytes,
        posts=run.load.posts,
        read=min(used.claimed / used.posted, 1),
        nodes=nodes,
        members=1,
        latency_s=0,
    )
    wanted = plan(demand, MEASURED._replace(purge_message=0, oplog_delete=0))
    return {
        "cores of the nodes": (run.per_s(used.server_s), wanted.nodes * wanted.node_cores),
        "cores of the primary": (run.per_s(used.database_s), wanted.primary_cores),
        "commands/s": (run.per_s(used.inserts + used.searches + used.claims), wanted.commands),
        "oplog, kB/s": (run.per_s(used.oplog) / 1000, wanted.oplog / 1000),
    }


def fit(rows: Sequence[Sequence[float]], results: Sequence[float]) -> list[float]:
    """Return factors of the columns, none negative, with the least squares of relative errors."""
    scaled = [[each / y for each in row] for row, y in zip(rows, results, strict=True)]
    columns = list(zip(*scaled, strict=True))
    squares = [sum(each * each for each in column) for column in columns]
    factors = [0.0] * len(columns)
    errors = [1.0] * len(scaled)
    for _ in range(_STEPS):
        for place, column in enumerate(columns):
            change = sum(a * b for a, b in zip(column, errors, strict=True)) / squares[place]
            change = max(change, -factors[place])
            factors[place] += change
            errors = [b - change * a for a, b in zip(column, errors, strict=True)]
    return factors


def _claimed(number: int) -> RawBSONDocument:
    """Return a message that was claimed and is to be deleted."""
    name, now_ms = f"purged-{number % 1000}", int(time.time() * 1000)
    fields = {
        "_id": f"{now_ms:012x}{number:020x}",
        "route": route_of(name),
        "username": name,
        "text": "x" * _TEXT_BYTES,
        "created_at": DatetimeMS(now_ms),
        "expires_at": DatetimeMS(now_ms),
        "purge_at": DatetimeMS(now_ms - 1_000_000 + number),
        "claim": {"token": secrets.token_hex(16), "at": DatetimeMS(now_ms), "by": "node/12345"},
    }
    return RawBSONDocument(bson.encode(fields))


async def _press(load: Load) -> Measured:
    """Run a load in another process until it was certainly measured."""
    seconds = load.warm_up_s + load.seconds + _SPARE_S
    if not load.rate and wrk.is_installed():
        return await wrk.press(load, seconds)
    load = msgspec.structs.replace(load, warm_up_s=load.warm_up_s / 2, seconds=seconds)
    async with child(
        *(sys.executable, "-P", "-m", "tests.bench.generator"),
        *(msgspec.json.encode(load).decode(), ""),
        env={**os.environ, "PYTHONPATH": CODE_PATH},
        stdout=asyncio.subprocess.PIPE,
    ) as generator:
        output, _ = await generator.communicate()
    assert generator.returncode == 0, "the generator failed"
    return msgspec.json.decode(output.removeprefix(READY), type=Measured)
