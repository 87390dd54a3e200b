"""One day of a node's samples: a row every two minutes, the sums over its processes.

The rows are raw and cumulative, as those of the last quarter of an hour are. Each run of the node
counts from zero; a process that dies or is replaced does not end a run. Everything here is pure.
Made by `chat_service.metrics.recorder`, answered by `chat_service.metrics.history`.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

#: The interval of rows, and how long they are kept, in seconds.
DAY_EVERY_S, DAY_S = 120, 86_400
_HOUR_S = 3600
#: The most rows of an hour, of all runs. There are more than 31 only if the node is restarted again
#: and again; then the oldest ones are deleted.
_ROWS_MAX = 60


class Run(msgspec.Struct, array_like=True):
    """Rows of one run of the node, which began at `started`, in seconds since 1970.

    Each row has its time and a value for each series, or None for an unknown value.
    """

    pid: int
    started: float
    series: list[str]
    rows: list[list[float | None]]


_DECODER = msgspec.json.Decoder(list[Run])


class Day:
    """The rows of the last day, packed by the hour, so that they take little memory.

    Not safe for concurrent changes, but `runs` and `dump` may be called at any time.
    """

    def __init__(self, hours: Mapping[int, bytes] | None = None) -> None:
        """`hours` are those of another `Day`, as `dump` returned them."""
        self._hours = dict(hours or {})

    def add(self, run: Run, now: float) -> int:
        """Add a run's only row, which was taken at `now`, and delete what is older than a day.

        It replaces an earlier row of the same two minutes, and all later ones: those are from
        before the clock was set back, and counters would seem to fall. Returns its hour since 1970.
        """
        hour = int(now // _HOUR_S)
        earlier = _unpack(self._hours.get(hour))
        for former in earlier:
            former.rows = [row for row in former.rows if (row[0] or 0) <= now]
        self._hours[hour] = _pack(_merged([run], [former for former in earlier if former.rows]))
        for each in list(self._hours):
            if each > hour or (each + 1) * _HOUR_S <= now - DAY_S:
                del self._hours[each]
        return hour

    def merge(self, contents: Iterable[bytes], now: float) -> None:
        """Add hours that an earlier process stored. Rows that are here already take precedence.

        Hours that are older than a day, and contents that cannot be read, are ignored.
        """
        for content in contents:
            runs = _unpack(content)
            times = [row[0] for run in runs for row in run.rows if row and row[0] is not None]
            if not times or max(times) <= now - DAY_S or max(times) > now + DAY_S:
                continue
            hour = int(max(times) // _HOUR_S)
            self._hours[hour] = _pack(_merged(_unpack(self._hours.get(hour)), runs))

    def dump(self) -> dict[int, bytes]:
        """Return the packed rows of each hour since 1970."""
        return dict(self._hours)

    def runs(self, since: float) -> list[Run]:
        """Return the runs in the order of their starts, with their rows after a time."""
        found: dict[tuple[int, float], Run] = {}
        for hour, content in sorted(self.dump().items()):
            if (hour + 1) * _HOUR_S <= since:
                continue
            for run in _unpack(content):
                key = (run.pid, run.started)
                run.rows = [row for row in run.rows if row[0] is not None and row[0] > since]
                if (earlier := found.get(key)) is not None:
                    # A rolling restart may have added series.
                    run.rows = [*in_order(earlier.rows, earlier.series, run.series), *run.rows]
                found[key] = run
        return sorted((run for run in found.values() if run.rows), key=lambda run: run.started)


def growth_times(runs: Iterable[Run], name: str, since: float) -> list[float]:
    """Return when a counter grew: for each 1, the time of the first row that has it.

    `runs` have the rows after `since`. What a run counted before its first row is unknown, unless
    the run began later.
    """
    found: list[float] = []
    for run in runs:
        before = 0.0 if run.started > since else None
        for at, value in in_order(run.rows, run.series, [name]):
            if at is None or value is None:
                continue
            if before is not None:
                found += [at] * int(value - before)
            before = value
    return found


def in_order(
    rows: Sequence[Sequence[float | None]], series: Sequence[str], wanted: Sequence[str]
) -> list[list[float | None]]:
    """Return rows with the series in another order, and None for missing ones.

    Different versions of the code may have recorded them.
    """
    if series == wanted:
        return [list(row) for row in rows]
    places = {name: place for place, name in enumerate(series, 1)}
    found = [0, *(places.get(name) for name in wanted)]
    return [[None if place is None else row[place] for place in found] for row in rows]


def _merged(first: Sequence[Run], others: Sequence[Run]) -> list[Run]:
    """Return the runs of an hour. Of two rows of a run in the same two minutes, one of `first`
    stays.
    """
    found: dict[tuple[int, float], Run] = {}
    for run in (*others, *first):
        key = (run.pid, run.started)
        if (earlier := found.get(key)) is not None:
            spans = {_span(row) for row in run.rows}
            kept = [row for row in earlier.rows if _span(row) not in spans]
            rows = [*in_order(kept, earlier.series, run.series), *run.rows]
            run = Run(run.pid, run.started, run.series, sorted(rows, key=lambda row: row[0] or 0))
        found[key] = run
    runs = sorted(found.values(), key=lambda run: run.started)
    while sum(len(run.rows) for run in runs) > _ROWS_MAX:
        del runs[0].rows[0]
        runs = [run for run in runs if run.rows]
    return runs


def _span(row: Sequence[float | None]) -> int:
    return int((row[0] or 0) // DAY_EVERY_S)


def _pack(runs: Sequence[Run]) -> bytes:
    return zlib.compress(msgspec.json.encode(runs))


def _unpack(content: bytes | None) -> list[Run]:
    if content is None:
        return []
    try:
        return _DECODER.decode(zlib.decompress(content))
    except (zlib.error, msgspec.DecodeError):
        # What another version stored, or a file that was cut off. It will be replaced.
        return []
