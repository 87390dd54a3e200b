"""The goals for the service's speed, and whether a run meets them."""

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.bench.measurements import (
    ACCESS,
    BARE,
    EMPTY,
    FULL,
    GO_MONGODB,
    GO_POSTGRES,
    GO_REDIS,
    LARGE,
    MIXED,
    SAME_NODE,
    SERVICE,
    WITH_ACCESS,
    at,
)
from tests.bench.results import LoneRound, Results, Round, Row
from tests.bench.waiting import WAYS


class Goal(NamedTuple):
    """A measured value, its limit, and whether it was met."""

    what: str
    wanted: str
    measured: str
    is_met: bool


def goals(results: Results) -> list[Goal]:
    """Return every goal that this run has measured."""
    return [
        goal
        for check in (
            _bare,
            _postgres,
            _redis,
            _lone,
            _idle,
            _access,
            _rates,
            _stored,
            _memory,
            _waking,
            _scheduled,
        )
        for goal in check(results)
    ]


def _bare(results: Results) -> Iterator[Goal]:
    for what, connections, least in ((MIXED, 64, 2.0), (MIXED, 256, 3.5), (LARGE, 64, 1.0)):
        for service, bare in _rows(results, what, SERVICE, BARE, connections):
            words = f"requests/s against a bare Tornado app, {what}, {connections} connections"
            yield _at_least(words, least, _ratio(service, bare, lambda it: it.rate))


def _postgres(results: Results) -> Iterator[Goal]:
    for connections, rate, cost, p99 in ((64, 1.2, 0.8, 0.9), (256, 1.5, 0.5, 0.4)):
        for service, other in _rows(results, MIXED, SERVICE, GO_POSTGRES, connections):
            against = f"against {GO_POSTGRES}, {connections} connections"
            yield _at_least(
                f"requests/s {against}", rate, _ratio(service, other, lambda it: it.rate)
            )
            yield _at_most(
                f"processor time of service and database per request {against}",
                cost,
                _ratio(service, other, lambda it: it.server_us + it.database_us),
            )
            yield _at_most(f"p99 {against}", p99, _ratio(service, other, lambda it: it.p99_ms))


def _redis(results: Results) -> Iterator[Goal]:
    for connections, least in ((64, 0.6), (256, 1.0)):
        for service, other in _rows(results, MIXED, SERVICE, GO_REDIS, connections):
            what = f"requests/s against {GO_REDIS}, {connections} connections"
            yield _at_least(what, least, _ratio(service, other, lambda it: it.rate))


_LONE: dict[str, Callable[[LoneRound], float]] = {
    "a post": lambda it: it.post_ms,
    "a read of one message": lambda it: it.read_ms,
    "a read of an empty inbox": lambda it: it.empty_ms,
}


def _lone(results: Results) -> Iterator[Goal]:
    rounds = {it.name: it.rounds for it in results.lone}
    if SERVICE in rounds and GO_MONGODB in rounds:
        pairs = list(zip(rounds[SERVICE], rounds[GO_MONGODB], strict=True))
        for kind, figure in _LONE.items():
            ratio = statistics.median(figure(a) / figure(b) for a, b in pairs)
            yield _at_most(f"p50 of {kind} of a lone client against {GO_MONGODB}", 1.0, ratio)


def _idle(results: Results) -> Iterator[Goal]:
    for idle in results.idle:
        share = idle.server + idle.database
        what = "processor time of an idle service and its MongoDB"
        yield Goal(what, "under 0.8% of a core", f"{share:.2%}", share < 0.008)


def _access(results: Results) -> Iterator[Goal]:
    for service, access in _rows(results, WITH_ACCESS, SERVICE, ACCESS, 256):
        pairs = zip(service.rounds, access.rounds, strict=True)
        added = statistics.median(b.server_us - a.server_us for a, b in pairs)
        what = "processor time per request that access control adds"
        yield Goal(what, "at most 2 µs", f"{added:.1f} µs", added <= 2)


def _rates(results: Results) -> Iterator[Goal]:
    for rate, most in ((10, 25), (1000, 4)):
        for service, bare in _rows(results, at(rate), SERVICE, BARE, 64):
            errors = sum(it.errors for it in service.rounds)
            more = service.median(lambda it: it.p99_ms) - bare.median(lambda it: it.p99_ms)
            yield Goal(
                f"open loop at {rate:,}/s: errors, and p99 over that of the bare app",
                f"0, at most {most} ms",
                f"{errors}, {more:.1f} ms",
                errors == 0 and more <= most,
            )


def _stored(results: Results) -> Iterator[Goal]:
    for row in results.rows:
        if row.name == FULL:
            for _, empty in _rows(results, row.what, FULL, EMPTY, row.connections):
                what = f"requests/s with {row.what}, against an empty database"
                yield _at_least(what, 0.95, _ratio(row, empty, lambda it: it.rate))


def _memory(results: Results) -> Iterator[Goal]:
    for memory in results.memory:
        if memory.name == SERVICE or memory.name in WAYS:
            what = "an idle connection" if memory.name == SERVICE else memory.name
            kib = memory.bytes_each / 1024
            yield Goal(f"memory of {what}", "at most 20 KiB", f"{kib:.1f} KiB", kib <= 20)


def _waking(results: Results) -> Iterator[Goal]:
    for waking in results.waking:
        bound = 50 if waking.name == SAME_NODE else 250
        yield Goal(
            f"slowest long poll, message posted {waking.name}",
            f"at most {bound} ms",
            f"{waking.max_ms:.1f} ms",
            waking.max_ms <= bound,
        )


def _scheduled(results: Results) -> Iterator[Goal]:
    # Acknowledgements cost more than deliveries: with the other ways, they are what is measured.
    for late in results.scheduled[:1]:
        yield Goal(
            f"p99 of {late.name}, after their due time",
            "at most 500 ms",
            f"{late.p99_ms:.0f} ms",
            late.p99_ms <= 500,
        )


def _rows(
    results: Results, what: str, first: str, second: str, connections: int
) -> Iterator[tuple[Row, Row]]:
    """Yield the rows of two contenders under a load if the results have both."""
    found = {
        row.name: row for row in results.rows if (row.what, row.connections) == (what, connections)
    }
    if first in found and second in found:
        yield found[first], found[second]


def _ratio(one: Row, other: Row, figure: Callable[[Round], float]) -> float:
    """Return the median of a value's ratios, round by round."""
    pairs = zip(one.rounds, other.rounds, strict=True)
    return statistics.median(figure(a) / max(figure(b), 1e-9) for a, b in pairs)


def _at_least(what: str, bound: float, ratio: float) -> Goal:
    return Goal(what, f"at least {bound:g} times", f"{ratio:.2f} times", ratio >= bound)


def _at_most(what: str, bound: float, ratio: float) -> Goal:
    return Goal(what, f"at most {bound:g} times", f"{ratio:.2f} times", ratio <= bound)
