"""The measurements of `scripts/bench`: contenders against each other, in alternating rounds.

Each function adds rows to the results. Compare only figures of one machine and one run, round by
round; a row shows the medians of its rounds.
"""

import asyncio
import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from pymongo import AsyncMongoClient

from chat_service.loadgen.generator import Load
from tests.bench import alternatives, budget, costs, lone, stored
from tests.bench.contenders import PYTHON, Contender, Sample, processor_s
from tests.bench.profilers import CannotProfile
from tests.bench.results import Compared, Idle, Lone, LoneRound, Memory, Results, Round, Row
from tests.bench.scheduled import LONG_POLL, READERS, lateness
from tests.bench.waiting import PARKED, WAYS, memory_of, waiting, wakes
from tests.faults.mongod_cluster import ReplicaSet
from tests.support.server import mongods_on
from workers.mongod.embedded import EmbeddedMongod
from workers.store.driver import Document

#: Pause in seconds after each run, so that the next run does not pay for work that the mongod has
#: postponed.
_PAUSE_S = 0.3

SERVICE, MOTOR, ACCESS, BARE, NAIVE = (
    "the service",
    "the service on Motor",
    "the service with access control",
    "a bare Tornado app",
    "one call per request",
)
GO_POSTGRES, GO_REDIS, GO_MONGODB = "Go on PostgreSQL", "Go on Redis", "Go on MongoDB"


class Progress(Protocol):
    """A callback that is told of each part of a measurement: its name, how much is done, and of how
    much.
    """

    def __call__(self, what: str, done: int, of: int) -> None: ...


class Scale(NamedTuple):
    """The size of a run: rounds, seconds of a round and at a fixed rate, messages stored."""

    rounds: int
    seconds: float
    rate_seconds: float
    messages: int

    @property
    def few(self) -> int:
        """The rounds of a comparison that no goal is judged by."""
        return min(self.rounds, 3)


class Bench:
    """Measures contenders on one mongod."""

    def __init__(self, uri: str, mongod: int, scale: Scale, on: Progress) -> None:
        self.uri = uri
        self.scale = scale
        self.on = on
        self.results = Results()
        self.mongod = mongod

    def service(self, name: str = SERVICE, database: str = "bench", **settings: str) -> Contender:
        """Return the service itself, with everything enabled."""
        environ = {f"CHAT_{key.upper()}": value for key, value in settings.items()}
        environ |= {"CHAT_MONGO_URI": self.uri, "CHAT_MONGO_DATABASE": database}
        return Contender(
            name, self.mongod, (*PYTHON, "chat_service", "serve", "--port", "PORT"), environ
        )

    def with_access(self, folder: Path) -> Contender:
        """Return the service with access control. Its access file, in `folder`, has 100 tokens."""
        tokens = ["cht_" + secrets.token_urlsafe(32) for _ in range(100)]
        entries = (
            f'[[token]]\nname = "bench-{number}"\nsha256 = "{sha256(token.encode()).hexdigest()}"\n'
            'send = ["*"]\nread = ["kinds-*", "half-*"]\n'
            for number, token in enumerate(tokens)
        )
        file = folder / "access.toml"
        file.write_text("".join(entries), encoding="utf-8")
        environ = {"CHAT_MONGO_URI": self.uri, "CHAT_MONGO_DATABASE": "bench"}
        environ |= {"CHAT_ACCESS": "tokens", "CHAT_ACCESS_FILE": str(file)}
        command = (*PYTHON, "chat_service", "serve", "--port", "PORT")
        return Contender(ACCESS, self.mongod, command, environ, tokens[50])

    def bare(self) -> Contender:
        """Return a Tornado app that stores nothing."""
        return self._app(BARE, "bare", "PORT")

    def naive(self) -> Contender:
        """Return a Tornado app that calls the database for each request."""
        return self._app(NAIVE, "naive", "PORT", self.uri)

    def _app(self, name: str, *arguments: str) -> Contender:
        return Contender(name, self.mongod, (*PYTHON, "tests.bench.apps", *arguments), {})

    @asynccontextmanager
    async def in_go(self, *names: str) -> AsyncIterator[list[Callable[[], Contender]]]:
        """Run the databases of these services in Go. Yield what makes a contender of each.

        Those that this machine cannot run are left out, and the results say why.
        """
        databases = {
            GO_POSTGRES: ("postgres", alternatives.postgres),
            GO_REDIS: ("redis", alternatives.redis),
            GO_MONGODB: ("mongodb", self._shared),
        }
        made: list[Callable[[], Contender]] = []
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            for name in names:
                source, database = databases[name]
                self.on(f"build and start {name}", 0, 1)
                try:
                    program = await alternatives.built(source, folder)
                    address, pid = await stack.enter_async_context(database())
                except alternatives.Missing as why:
                    self.results.missing.append(f"{name} was not measured: {why}.")
                else:
                    command = (program, "PORT", address)
                    made.append(partial(Contender, name, pid, command, {}))
            yield made

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[alternatives.Database]:
        yield alternatives.Database(self.uri, self.mongod)

    async def side_by_side(
        self,
        what: str,
        contenders: Sequence[Contender],
        load: Load,
        *,
        rounds: int | None = None,
        before_each: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Alternate between the contenders, round by round."""
        rounds = rounds or self.scale.rounds
        if not load.prefix:
            # Use separate inboxes, which no other load has left full.
            load = msgspec.structs.replace(load, prefix="-".join(re.findall(r"[a-z0-9]+", what)))
        samples: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
        async with AsyncExitStack() as stack:
            for contender in contenders:
                await stack.enter_async_context(contender)
            for number in range(rounds * len(contenders)):
                contender = contenders[number % len(contenders)]
                self.on(f"{what}: {contender.name}", number, rounds * len(contenders))
                if before_each is not None:
                    await before_each()
                wanted = msgspec.structs.replace(
                    load, seconds=load.seconds or self.scale.seconds, seed=number
                )
                samples[contender.name].append(_round(await contender.load(wanted)))
                await asyncio.sleep(_PAUSE_S)
        self.results.rows += [
            Row(what, name, load.connections, its) for name, its in samples.items()
        ]


@asynccontextmanager
async def started_mongod() -> AsyncIterator[tuple[str, int]]:
    """Run a mongod on a temporary directory. Yield its connection string and process id."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data_dir = Path(folder) / "data"
        mongod = EmbeddedMongod(data_dir, "")
        uri = await mongod.start()
        try:
            yield uri, mongods_on(data_dir)[0]
        finally:
            await mongod.stop()


def _round(sample: Sample) -> Round:
    measured = sample.measured
    return Round(
        *(measured.rate, measured.p50 * 1e3, measured.p99 * 1e3),
        *(sample.server_s * 1e6, sample.database_s * 1e6, measured.errors),
    )


MIXED = "half posts, half reads"
ON_MONGODB = "half posts, half reads, all on MongoDB"
LARGE = "texts of 16 KiB"
WITH_STREAM = "half posts, half reads, with an open stream"
WITH_ACCESS = "half posts, half reads, tokens"


async def against_others(bench: Bench) -> None:
    """Half posts, half reads over 1,000 inboxes: against a bare app and other databases."""
    async with bench.in_go(GO_POSTGRES, GO_REDIS) as others:
        for connections in (64, 256):
            contenders = [bench.service(), bench.bare(), *(other() for other in others)]
            await bench.side_by_side(MIXED, contenders, Load(0, connections, 0))


async def on_mongodb(bench: Bench) -> None:
    """The same load, against other uses of MongoDB: with Motor, and a call for each request."""
    async with bench.in_go(GO_MONGODB) as others:
        contenders = [
            bench.service(),
            bench.service(MOTOR, mongo_driver="motor"),
            bench.naive(),
            *(other() for other in others),
        ]
        await bench.side_by_side(ON_MONGODB, contenders, Load(0, 256, 0), rounds=bench.scale.few)


async def lone_requests(bench: Bench) -> None:
    """A client with one connection: a post, a read of one message, a read of none."""
    rounds, seconds = 2 * bench.scale.rounds, bench.scale.seconds / 4
    async with (
        bench.in_go(GO_MONGODB, GO_POSTGRES, GO_REDIS) as others,
        AsyncExitStack() as stack,
    ):
        contenders = [
            await stack.enter_async_context(each)
            for each in (bench.service(), *(other() for other in others))
        ]
        samples: dict[str, list[LoneRound]] = {contender.name: [] for contender in contenders}
        for number in range(rounds):
            for contender in contenders:
                bench.on(f"a lone client: {contender.name}", number, rounds)
                its = await asyncio.to_thread(lone.run, contender.port, seconds)
                samples[contender.name].append(its)
    bench.results.lone += [Lone(name, its) for name, its in samples.items()]


async def idle_service(bench: Bench) -> None:
    """The processor time of a service and the MongoDB that it starts, when nobody uses them."""
    seconds = 30.0 if bench.scale.rounds > 1 else 1.0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environ = {"CHAT_MONGO_URI": "", "CHAT_DATA_DIR": str(Path(folder, "data"))}
        command = (*PYTHON, "chat_service", "serve", "--port", "PORT")
        async with Contender(SERVICE, bench.mongod, command, environ) as service:
            mongod = mongods_on(Path(folder, "data"))[0]

            def used_s() -> tuple[float, float]:
                database = processor_s(mongod)
                return sum(map(processor_s, service.processes())) - database, database

            await asyncio.to_thread(lone.run, service.port, 0.5)
            bench.on("an idle service", 0, 1)
            # What the requests left to do is not idling.
            await asyncio.sleep(seconds / 4)
            before = used_s()
            await asyncio.sleep(seconds)
            shares = ((b - a) / seconds for a, b in zip(before, used_s(), strict=True))
    bench.results.idle.append(Idle(seconds, *shares))


async def kinds_of_requests(bench: Bench) -> None:
    """Only posts, polls of empty inboxes, one hot inbox."""
    loads = {
        "posts alone": Load(0, 256, 0, posts=1.0),
        "polls of empty inboxes": Load(0, 256, 0, posts=0.0),
        "one hot inbox": Load(0, 256, 0, users=1),
    }
    for what, load in loads.items():
        contenders = [bench.service(), bench.bare()]
        await bench.side_by_side(what, contenders, load, rounds=bench.scale.few)


async def large_texts(bench: Bench) -> None:
    """Texts of 16 KiB, against the bare app, which does not store them."""
    load = Load(0, 64, 0, text_bytes=16384)
    await bench.side_by_side(LARGE, [bench.service(), bench.bare()], load)


async def with_access(bench: Bench) -> None:
    """The cost of access control for a client whose token is known."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        contenders = [bench.service(), bench.with_access(Path(folder))]
        await bench.side_by_side(WITH_ACCESS, contenders, Load(0, 256, 0))


async def reads_alone(bench: Bench) -> None:
    """Reads of inboxes that hold one message each; each inbox is read once."""
    users = int(40_000 * bench.scale.seconds)
    contenders = [bench.service(), bench.bare()]

    async def fill() -> None:
        await stored.drop(bench.uri, "bench")
        await stored.store(bench.uri, "bench", "full", users, 1, lambda count: None)

    load = Load(0, 256, 0, warm_up_s=0, posts=0.0, users=users, prefix="full", in_turn=True)
    await bench.side_by_side(
        "reads of full inboxes", contenders, load, rounds=bench.scale.few, before_each=fill
    )


RATES = (10, 1000)


def at(rate: int) -> str:
    """Return the name of an open loop's load."""
    return f"{rate:,} requests/s, half posts, half reads"


async def at_a_rate(bench: Bench) -> None:
    """Open loop: send requests on schedule, regardless of earlier ones."""
    for rate in RATES:
        load = Load(0, 64, bench.scale.rate_seconds, rate=rate)
        await bench.side_by_side(at(rate), [bench.service(), bench.bare()], load, rounds=1)


FULL, EMPTY = "the service, full database", "the service, empty database"


async def many_stored(bench: Bench) -> None:
    """With 5 million unread messages of other inboxes in the collection, against none."""
    messages = bench.scale.messages
    users = max(messages // 10, 1)
    # Use a mongod for each; otherwise the empty service would share the one that the full one keeps
    # busy.
    async with (
        started_mongod() as (full_uri, full_mongod),
        started_mongod() as (empty_uri, empty_mongod),
    ):
        await stored.store(
            *(full_uri, "bench", "stored", users, 10),
            lambda count: bench.on("storing messages", count, messages),
        )
        full = Bench(full_uri, full_mongod, bench.scale, bench.on).service(FULL)
        empty = Bench(empty_uri, empty_mongod, bench.scale, bench.on).service(EMPTY)
        await bench.side_by_side(f"{messages:,} messages stored", [full, empty], Load(0, 256, 0))


async def idle_connections(bench: Bench) -> None:
    """Measure the memory of idle connections that have served a request."""
    count = 2000
    for number, contender in enumerate((bench.service(), bench.bare())):
        async with contender:
            bench.on(f"{count:,} idle connections: {contender.name}", number, 2)
            await contender.load(Load(0, 64, 1, prefix="idle"))
            before = contender.memory()
            async with AsyncExitStack() as stack:
                for user in range(count):
                    reader, writer = await asyncio.open_connection("127.0.0.1", contender.port)
                    stack.callback(writer.close)
                    writer.write(
                        f"GET /chat/idle-{user} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                    )
                    await reader.readuntil(b"\r\n\r\n")
                each = (contender.memory() - before) / count
            bench.results.memory.append(Memory(contender.name, count, each))


WAITED, NOT_WAITED = "the service, one open stream", "the service, no stream"
SAME_NODE, OTHER_NODE = "through the same process", "through another node"


async def waits(bench: Bench) -> None:
    """Measure long polls and streams: memory, wake-up time, and their cost for others."""
    is_full = bench.scale.messages > PARKED * 10
    for number, way in enumerate(WAYS):
        async with bench.service() as contender:
            bench.on(f"memory of {way}", number, len(WAYS))
            count = PARKED if is_full else 500
            bench.results.memory.append(await memory_of(contender, way, count))
    messages = 1000 if is_full else 50
    async with bench.service() as here, bench.service() as there:
        for name, port in ((SAME_NODE, here.port), (OTHER_NODE, there.port)):
            bench.on(f"wake-up by a message {name}", 0, 1)
            bench.results.waking.append(await wakes(name, here.port, port, messages))
    # While any client waits, every process reads the database's change stream.
    waited, not_waited = bench.service(WAITED), bench.service(NOT_WAITED)
    async with AsyncExitStack() as stack:

        async def open_stream() -> None:
            await stack.aclose()
            await stack.enter_async_context(waiting(waited.port, "an event stream", 1))

        await bench.side_by_side(
            *(WITH_STREAM, [waited, not_waited], Load(0, 256, 0)),
            rounds=bench.scale.few,
            before_each=open_stream,
        )


async def scheduled_messages(bench: Bench) -> None:
    """Measure how late readers get messages that are due at random times, at the same rate."""
    is_full = bench.scale.rounds > 1
    for number, way in enumerate(READERS):
        seconds = 1.0 if not is_full else 30.0 if way == LONG_POLL else 15.0
        bench.on(f"scheduled messages, {way}", number, len(READERS))
        async with bench.service() as contender:
            messages = round(100_000 * seconds / 60)
            late = await lateness(contender.port, way, messages, seconds)
        bench.results.scheduled.append(late)


async def several_processes(bench: Bench) -> None:
    """One process against two."""
    contenders = [
        bench.service("1 process"),
        bench.service("2 processes", processes="2"),
    ]
    await bench.side_by_side("processes", contenders, Load(0, 256, 0), rounds=bench.scale.few)


async def numbers_of_shards(bench: Bench) -> None:
    """One shard in the process against two."""
    for connections in (64, 256):
        contenders = [
            bench.service(f"{shards} shard{'s' * (shards > 1)}", shards=str(shards))
            for shards in (1, 2)
        ]
        load = Load(0, connections, 0)
        await bench.side_by_side("shards", contenders, load, rounds=bench.scale.few)


async def costs_of_requests(bench: Bench) -> None:
    """Measure the coefficients of the capacity model."""
    is_full = bench.scale.rounds > 1
    wanted = costs.loads(bench.scale.seconds)[:: 1 if is_full else 4]
    runs = []
    async with AsyncMongoClient[Document](bench.uri) as client:
        meter = costs.Meter(client, bench.mongod)
        await meter.hold_purges()
        async with bench.service(database="costs") as service:
            for number, load in enumerate(wanted):
                bench.on(f"costs of {load.prefix}", number, len(wanted))
                runs.append(await meter.run([service], load))
        bench.on("costs of deletions", 0, 1)
        bench.results.costs = costs.coefficients(runs)
        bench.results.costs |= await meter.purges(60_000 if is_full else 5_000)
    bench.on("costs of replication", 0, 1)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with ReplicaSet(Path(folder)) as three:
            primary = three.pid(await three.primary())
            there = Bench(three.uri, primary, bench.scale, bench.on)
            async with (
                AsyncMongoClient[Document](three.uri) as client,
                there.service(database="costs") as service,
            ):
                meter = costs.Meter(client, primary)
                run = await meter.run([service], costs.at_rate(bench.scale.seconds, 2000))
    bench.results.costs["replicated_command"] = costs.of_replication(run, bench.results.costs)


async def against_the_model(bench: Bench) -> None:
    """Compare the capacity model with loads on one node and on two."""
    for rate in (500, 2000, 5000):
        await _compare(bench, rate, nodes=1)
    await _compare(bench, 2000, nodes=2)


async def _compare(bench: Bench, rate: int, nodes: int) -> None:
    what = f"{rate:,} requests/s, {nodes} node{'s' * (nodes > 1)}"
    bench.on(what, 0, 1)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncMongoClient[Document](bench.uri))
        contenders = [
            await stack.enter_async_context(bench.service(database="model")) for _ in range(nodes)
        ]
        meter = costs.Meter(client, bench.mongod)
        run = await meter.run(contenders, costs.at_rate(bench.scale.seconds, rate))
    bench.results.compared += [
        Compared(what, figure, *both) for figure, both in costs.compare(run, nodes).items()
    ]


async def where_time_goes(bench: Bench) -> None:
    """Measure the time of each step of a request, with profilers if they are installed."""
    try:
        async with bench.service() as service:
            for number, connections in enumerate(budget.CONNECTIONS):
                bench.on(f"steps, {connections} connections", number, len(budget.CONNECTIONS))
                bench.results.budgets += await budget.measure(
                    service, bench.mongod, bench.uri, connections, bench.scale.seconds * 2
                )
    except CannotProfile as error:
        bench.results.missing.append(f"The steps of a request were not measured: {error}.")


MEASUREMENTS: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "others": against_others,
    "mongodb": on_mongodb,
    "lone": lone_requests,
    "idle": idle_service,
    "large": large_texts,
    "kinds": kinds_of_requests,
    "access": with_access,
    "reads": reads_alone,
    "rate": at_a_rate,
    "stored": many_stored,
    "memory": idle_connections,
    "waits": waits,
    "scheduled": scheduled_messages,
    "processes": several_processes,
    "shards": numbers_of_shards,
    "costs": costs_of_requests,
    "model": against_the_model,
    "budget": where_time_goes,
}
