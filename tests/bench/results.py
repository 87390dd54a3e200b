"""The figures of `scripts/bench`: taken by its measurements, judged by its goals, put in tables."""

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


class Memory(msgspec.Struct, frozen=True):
    """What connections cost that keep still: bytes of a service's memory for each."""

    name: str
    connections: int
    bytes_each: float


class Waking(msgspec.Struct, frozen=True):
    """How soon who waits for a message has it, from its acceptance on; in ms."""

    name: str
    messages: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Results(msgspec.Struct):
    """All that a run has measured."""

    rows: list[Row] = []
    memory: list[Memory] = []
    waking: list[Waking] = []
