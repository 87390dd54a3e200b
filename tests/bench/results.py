"""The figures of `scripts/bench`, filled by measurements and judged by goals."""

import statistics
from collections.abc import Callable

import msgspec


class Round(msgspec.Struct, frozen=True):
    """One contender in one round: rate in requests/s, latencies in ms, processor time in µs."""

    rate: float
    p50_ms: float
    p99_ms: float
    server_us: float
    database_us: float
    errors: int


class Row(msgspec.Struct, frozen=True):
    """All rounds of one contender under one load."""

    what: str
    name: str
    connections: int
    rounds: list[Round]

    def median(self, figure: Callable[[Round], float]) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(map(figure, self.rounds))


class LoneRound(msgspec.Struct, frozen=True):
    """The p50 of a lone client's requests: a post, a read of one message, a read of none; in ms."""

    post_ms: float
    read_ms: float
    empty_ms: float


class Lone(msgspec.Struct, frozen=True):
    """All rounds of a lone client of one contender."""

    name: str
    rounds: list[LoneRound]


class Idle(msgspec.Struct, frozen=True):
    """What an idle service and its MongoDB use, as shares of a core."""

    seconds: float
    server: float
    database: float


class Memory(msgspec.Struct, frozen=True):
    """The memory of a service per idle connection, in bytes."""

    name: str
    connections: int
    bytes_each: float


class Waking(msgspec.Struct, frozen=True):
    """The time from a message's acceptance until a waiting client has it, in ms."""

    name: str
    messages: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Compared(msgspec.Struct, frozen=True):
    """A figure of a load as it was measured, and as the capacity model says."""

    load: str
    figure: str
    measured: float
    model: float


class Cost(msgspec.Struct, frozen=True):
    """A function's processor time per request in µs, alone and with the functions it calls."""

    name: str
    own_us: float
    total_us: float


class Budget(msgspec.Struct, frozen=True):
    """Where the processor time of a request goes in one process, in µs by step.

    `batch` is the number of requests in a batch, `commands` that of commands per request.
    """

    process: str
    connections: int
    batch: float
    commands: float
    us: float
    steps: dict[str, float]
    functions: list[Cost]


class Results(msgspec.Struct):
    """All figures of a run."""

    rows: list[Row] = []
    lone: list[Lone] = []
    idle: list[Idle] = []
    memory: list[Memory] = []
    waking: list[Waking] = []
    #: The time from when scheduled messages are due until their readers have them.
    scheduled: list[Waking] = []
    #: The coefficients of the capacity model.
    costs: dict[str, float] = {}
    compared: list[Compared] = []
    #: What was left out, and why: sentences.
    missing: list[str] = []
    budgets: list[Budget] = []
