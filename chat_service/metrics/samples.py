"""The samples of the processes of this node, and what can be measured in them.

A sample has the time and the value of each series, raw and cumulative. Everything here is pure.
Made by `chat_service.metrics.history`, judged by `chat_service.metrics.conditions`.
"""

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from operator import sub
from typing import NamedTuple

from chat_service.metrics.sampler import Kind


class Recorded(NamedTuple):
    """The samples of one process.

    Each row of `rows` is the time of a sample and one value for each series, one after the other.
    """

    pid: int
    started: float
    series: list[str]
    rows: "array[float]"

    def after(self, since: float) -> list[list[float]]:
        """Return the samples taken after a time, in seconds since 1970."""
        width = len(self.series) + 1
        starts = range(0, len(self.rows), width)
        return [self.rows[at : at + width].tolist() for at in starts if self.rows[at] > since]

    def last(self) -> dict[str, float]:
        """Return the known values of the last sample by series. There must be one."""
        values = zip(self.series, self.rows[-len(self.series) :], strict=True)
        return {name: value for name, value in values if not math.isnan(value)}


def combine(
    processes: Sequence[Recorded],
    exited: Mapping[str, float],
    kinds: Mapping[str, Kind],
    since: float,
) -> list[float | None]:
    """Return one value for each series of `kinds`, for all processes of the node.

    `exited` has the counters of processes that exited, so a counter never falls while the node
    runs. Of gauges that are not added up, the highest value since a time counts, or the newest one.
    """
    read = [_Process(each) for each in processes if each.rows]
    return [_combined(read, name, kind, exited, since) for name, kind in kinds.items()]


def _combined(
    processes: Sequence["_Process"],
    name: str,
    kind: Kind,
    exited: Mapping[str, float],
    since: float,
) -> float | None:
    if kind == "highest":
        value = _highest(max(each.values(name, since), default=math.nan) for each in processes)
    elif kind == "newest":
        newest = max(processes, key=lambda each: each.times[-1], default=None)
        value = math.nan if newest is None else newest.last(name)
    else:
        value = sum(last for each in processes if not math.isnan(last := each.last(name)))
        if kind == "counter":
            value += exited.get(name, 0.0)
    return None if math.isnan(value) else round(value, 6)


class Samples:
    """What the processes measured up to `now`, in seconds since 1970.

    Series that a process does not have count as unknown: during a rolling restart, processes may
    run different versions of the code.
    """

    def __init__(self, processes: Sequence[Recorded], now: float) -> None:
        self._processes = [_Process(each) for each in processes]
        self._now = now

    @property
    def oldest(self) -> float | None:
        """The time of the oldest sample, in seconds since 1970, or None without any."""
        return min((each.times[0] for each in self._processes if each.times), default=None)

    def growth(self, name: str, within_s: float) -> float:
        """Return by how much a counter grew in the last `within_s` seconds, in all processes."""
        return sum(each.growth(name, self._now - within_s) for each in self._processes)

    def last_growth(self, names: Sequence[str]) -> float:
        """Return the time of the last sample in which one of these counters grew; 0 if none did."""
        return max(
            (each.last_growth(name) for each in self._processes for name in names), default=0.0
        )

    def last_above(self, histogram: str, limit: float) -> float:
        """Return the time of the last sample in which a histogram counted something above one of
        its bounds; 0 if there was none.
        """
        below = f'{histogram}_bucket{{le="{limit}"}}'
        return max(
            (each.last_growth(f"{histogram}_count", below) for each in self._processes), default=0.0
        )

    def highest(self, name: str) -> float:
        """Return the highest last value of a gauge among the processes; NaN if it is unknown."""
        return _highest(values[-1] for values in self._values(name, -math.inf))

    def earliest(self, name: str) -> float:
        """Return the highest first known value of a gauge among the processes; NaN without any."""
        return _highest(values[0] for values in self._values(name, -math.inf))

    def lasting(self, name: str, within_s: float) -> float:
        """Return the value that a gauge had or exceeded in at least half of the last samples.

        This is the highest of all processes; NaN if it is unknown. One spike does not count.
        """
        halves = (
            sorted(values)[len(values) // 2] for values in self._values(name, self._now - within_s)
        )
        return _highest(halves)

    def share(self, part: Sequence[str], whole: Sequence[str], within_s: float) -> float:
        """Return the growth of some counters divided by that of others; 0 if those did not grow."""
        grown = sum(self.growth(name, within_s) for name in whole)
        return sum(self.growth(name, within_s) for name in part) / grown if grown > 0 else 0.0

    def percentile(self, share: float, histogram: str, within_s: float, label: str = "") -> float:
        """Return a percentile of what a histogram counted, interpolated in its bucket; NaN if that
        is nothing. `label` selects the series with this label.
        """
        start = f'{histogram}_bucket{{{label + "," if label else ""}le="'
        names = {name for each in self._processes for name in each.places if name.startswith(start)}
        bounds = sorted((float(name[len(start) : -2]), name) for name in names)
        counts = [self.growth(name, within_s) for _, name in bounds]
        everything = self.growth(f"{histogram}_count{f'{{{label}}}' if label else ''}", within_s)
        if everything <= 0:
            return math.nan
        wanted = share * everything
        steps = pairwise([(0.0, 0.0), *zip((bound for bound, _ in bounds), counts, strict=True)])
        for (lower, below), (upper, count) in steps:
            if count >= wanted and count > below:
                return lower + (upper - lower) * (wanted - below) / (count - below)
        return bounds[-1][0] if bounds else math.nan

    def _values(self, name: str, since: float) -> Iterator[list[float]]:
        for each in self._processes:
            if values := each.values(name, since):
                yield values


class _Process:
    """The samples of one process, with the places of its series."""

    def __init__(self, recorded: Recorded) -> None:
        self._rows = recorded.rows
        self._width = len(recorded.series) + 1
        self._started = recorded.started
        self.times = recorded.rows[:: self._width]
        self.places = {name: place for place, name in enumerate(recorded.series, 1)}

    def growth(self, name: str, since: float) -> float:
        """Return by how much a counter grew since a time. Without a sample from before, it grew
        since the first one, or since the start of the process.
        """
        place = self.places.get(name)
        if place is None or not self.times:
            return 0.0
        before = sum(time <= since for time in self.times)
        if before:
            base = self._rows[(before - 1) * self._width + place]
        else:
            base = 0.0 if self._started > since else self._rows[place]
        return self._rows[(len(self.times) - 1) * self._width + place] - base

    def last_growth(self, name: str, without: str | None = None) -> float:
        """Return the time of the last sample in which a counter grew, more than the one `without`
        did. The first one counts, too, since it is unknown what was before.
        """
        place = self.places.get(name)
        if place is None or not self.times:
            return 0.0
        values = self._rows[place :: self._width]
        if without is not None and (less := self.places.get(without)) is not None:
            values = array("d", map(sub, values, self._rows[less :: self._width]))
        last = len(values) - 1
        while last and values[last] <= values[last - 1]:
            last -= 1
        return self.times[last] if values[last] > 0 else 0.0

    def last(self, name: str) -> float:
        """Return the last value of a series; NaN if it is unknown."""
        place = self.places.get(name)
        return math.nan if place is None else self._rows[place - self._width]

    def values(self, name: str, since: float) -> list[float]:
        """Return the known values of a series after a time."""
        place = self.places.get(name)
        if place is None:
            return []
        values = zip(self.times, self._rows[place :: self._width], strict=True)
        return [value for time, value in values if time > since and not math.isnan(value)]


def _highest(values: Iterator[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)
