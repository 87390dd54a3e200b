"""What `scripts/bench` measures: contenders against each other, in alternating rounds.

Each function gives rows for the table. Figures of one machine and run are compared with each
other only; a row is the median of its rounds.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import msgspec

from tests.bench.contenders import Contender, Sample
from tests.bench.generator import Load

#: Told of each run as it is done.
Progress = Callable[[str], None]


class Row(msgspec.Struct, frozen=True):
    """Medians of one contender under one load. Times in milliseconds, processor time in µs."""

    what: str
    name: str
    connections: int
    rate: float
    p50_ms: float
    p99_ms: float
    server_us: float
    database_us: float
    errors: int
    rates: list[float]


class Bench:
    """A mongod and how to measure on it."""

    def __init__(self, uri: str, mongod: int, rounds: int, seconds: float, on: Progress) -> None:
        self._uri = uri
        self._mongod = mongod
        self._rounds = rounds
        self._seconds = seconds
        self._on = on

    def service(self, name: str = "service", database: str = "bench", **settings: str) -> Contender:
        """The service itself, with everything switched on."""
        environ = {f"CHAT_{key.upper()}": value for key, value in settings.items()}
        environ |= {"CHAT_MONGO_URI": self._uri, "CHAT_MONGO_DATABASE": database}
        return Contender(name, self._mongod, ("chat_service", "serve", "--port", "PORT"), environ)

    def bare(self) -> Contender:
        """A Tornado app that stores nothing."""
        return self._app("bare Tornado app", "bare", "PORT")

    def naive(self) -> Contender:
        """A Tornado app that calls the database for each request."""
        return self._app("one call per request", "naive", "PORT", self._uri)

    def _app(self, name: str, *arguments: str) -> Contender:
        return Contender(name, self._mongod, ("tests.bench.apps", *arguments), {})

    async def side_by_side(
        self, what: str, contenders: Sequence[Contender], load: Load
    ) -> list[Row]:
        """Alternate between the contenders, round by round."""
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        async with AsyncExitStack() as stack:
            for contender in contenders:
                await stack.enter_async_context(contender)
            for number in range(self._rounds):
                for contender in contenders:
                    self._on(f"{what}: {contender.name}, {number + 1} of {self._rounds}")
                    wanted = msgspec.structs.replace(load, seconds=self._seconds, seed=number)
                    samples[contender.name].append(await contender.load(wanted))
                    # What the mongod has put off should not be paid for by the next one.
                    await asyncio.sleep(0.3)
        return [_row(what, name, load, its) for name, its in samples.items()]


def _row(what: str, name: str, load: Load, samples: list[Sample]) -> Row:
    def median(figure: Callable[[Sample], float]) -> float:
        return statistics.median(map(figure, samples))

    return Row(
        *(what, name, load.connections),
        median(lambda it: it.measured.rate),
        median(lambda it: it.measured.p50 * 1e3),
        median(lambda it: it.measured.p99 * 1e3),
        median(lambda it: it.server_s / it.measured.requests * 1e6),
        median(lambda it: it.database_s / it.measured.requests * 1e6),
        sum(it.measured.errors for it in samples),
        [it.measured.rate for it in samples],
    )


async def against_others(bench: Bench) -> list[Row]:
    """The figures that the goals are about: half posts, half reads, 1,000 users."""
    rows = []
    for connections in (64, 256):
        contenders = [
            bench.service(),
            bench.service("service on Motor", mongo_driver="motor"),
            bench.bare(),
            bench.naive(),
        ]
        load = Load(0, connections, 0)
        rows += await bench.side_by_side("half posts, half reads", contenders, load)
    return rows


async def kinds_of_requests(bench: Bench) -> list[Row]:
    """Posts alone, reads alone, polls of empty inboxes, one hot inbox, large texts."""
    loads = {
        "posts alone": Load(0, 256, 0, posts=1.0),
        "reads alone": Load(0, 256, 0, posts=0.0),
        "polls of empty inboxes": Load(0, 256, 0, posts=0.0, prefix="empty"),
        "one hot inbox": Load(0, 256, 0, users=1),
        "texts of 16 KiB": Load(0, 64, 0, text_bytes=16384),
    }
    return [
        row
        for what, load in loads.items()
        for row in await bench.side_by_side(what, [bench.service(), bench.bare()], load)
    ]


async def at_a_rate(bench: Bench) -> list[Row]:
    """Open loop, 10 and 1,000 requests in a second."""
    return [
        row
        for rate in (10, 1000)
        for row in await bench.side_by_side(
            f"{rate} a second", [bench.service(), bench.bare()], Load(0, 64, 0, rate=rate)
        )
    ]


async def several_processes(bench: Bench) -> list[Row]:
    """One process and two."""
    contenders = [bench.service("1 process"), bench.service("2 processes", processes="2")]
    return await bench.side_by_side("processes", contenders, Load(0, 256, 0))


MEASUREMENTS: dict[str, Callable[[Bench], Awaitable[list[Row]]]] = {
    "others": against_others,
    "kinds": kinds_of_requests,
    "rate": at_a_rate,
    "processes": several_processes,
}
