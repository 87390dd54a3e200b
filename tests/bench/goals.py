"""The goals for the service's speed, and whether a run meets them."""

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.bench.measurements import (
    ACCESS,
    BARE,
    EMPTY,
    FULL,
    MIXED,
    NAIVE,
    ON_MONGODB,
    RATES,
    SAME_NODE,
    SERVICE,
    WITH_ACCESS,
    at,
)
from tests.bench.results import Results, Round, Row
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
        for check in (_mixed, _access, _rates, _stored, _memory, _waking, _scheduled)
        for goal in check(results)
    ]


def _mixed(results: Results) -> Iterator[Goal]:
    for connections, least in ((256, 1.3), (64, 1.0)):
        service, bare = _rows(results, MIXED, SERVICE, BARE, connections)
        if service and bare:
            what = f"requests/s against a bare Tornado app, {connections} connections"
            yield _at_least(what, least, _ratio(service, bare, lambda it: it.rate))
    service, naive = _rows(results, ON_MONGODB, SERVICE, NAIVE, 256)
    if service and naive:
        what = "requests/s against one call per request, 256 connections"
        yield _at_least(what, 5, _ratio(service, naive, lambda it: it.rate))
        what = "MongoDB's processor time per request against one call per request"
        yield _at_most(what, 0.1, _ratio(service, naive, lambda it: it.database_us))
    service, bare = _rows(results, MIXED, SERVICE, BARE, 256)
    if service and bare:
        what = "p99 against the bare app's, 256 connections"
        yield _at_most(what, 1.0, _ratio(service, bare, lambda it: it.p99_ms))


def _access(results: Results) -> Iterator[Goal]:
    service, access = _rows(results, WITH_ACCESS, SERVICE, ACCESS, 256)
    if service and access:
        pairs = zip(service.rounds, access.rounds, strict=True)
        added = statistics.median(b.server_us - a.server_us for a, b in pairs)
        what = "processor time per request that access control adds"
        yield Goal(what, "at most 2 µs", f"{added:.1f} µs", added <= 2)


def _rates(results: Results) -> Iterator[Goal]:
    for rate in RATES:
        service, bare = _rows(results, at(rate), SERVICE, BARE, 64)
        if service and bare:
            errors = sum(it.errors for it in service.rounds)
            more = service.median(lambda it: it.p99_ms) - bare.median(lambda it: it.p99_ms)
            yield Goal(
                f"open loop at {rate:,}/s: errors, and p99 over that of the bare app",
                "0, at most 25 ms",
                f"{errors}, {more:.1f} ms",
                errors == 0 and more <= 25,
            )


def _stored(results: Results) -> Iterator[Goal]:
    for row in results.rows:
        if row.name == FULL:
            _, empty = _rows(results, row.what, FULL, EMPTY, row.connections)
            if empty:
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
) -> tuple[Row | None, Row | None]:
    def row(name: str) -> Row | None:
        wanted = (what, name, connections)
        its = (it for it in results.rows if (it.what, it.name, it.connections) == wanted)
        return next(its, None)

    return row(first), row(second)


def _ratio(one: Row, other: Row, figure: Callable[[Round], float]) -> float:
    """Return the median of a value's ratios, round by round."""
    pairs = zip(one.rounds, other.rounds, strict=True)
    return statistics.median(figure(a) / max(figure(b), 1e-9) for a, b in pairs)


def _at_least(what: str, bound: float, ratio: float) -> Goal:
    return Goal(what, f"at least {bound:g} times", f"{ratio:.2f} times", ratio >= bound)


def _at_most(what: str, bound: float, ratio: float) -> Goal:
    return Goal(what, f"at most {bound:g} times", f"{ratio:.2f} times", ratio <= bound)
