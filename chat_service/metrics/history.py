"""The last quarter of an hour of the service's own counters, for the dashboard at `/ops`.

Every process notes every three seconds what its metrics say: raw and cumulative, so that rates and
percentiles are up to who looks. Under a supervisor each keeps its notes in a file of the directory
that they count in (`chat_service.metrics.multiprocess`): whichever is asked answers for all, and
the file
goes when its process is buried. Made and called by `chat_service.service`.
"""

import asyncio
import gzip
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from chat_service.metrics.multiprocess import DIRECTORY_VARIABLE, HISTORY_FILE, process_restarts
from chat_service.metrics.sampler import SeriesGroup

log = structlog.get_logger(__name__)

#: A sample in each of these spans of the clock, in seconds, and how many are kept.
EVERY_S, SAMPLES = 3, 300


class Recorded(NamedTuple):
    """What a process has noted since it started. A row is a sample's time, and a value a series."""

    pid: int
    started: float
    series: list[str]
    rows: "array[float]"

    def after(self, since: float) -> list[list[float]]:
        """The samples taken after a time, in seconds since 1970."""
        width = len(self.series) + 1
        starts = range(0, len(self.rows), width)
        return [self.rows[at : at + width].tolist() for at in starts if self.rows[at] > since]


class History:
    """A ring of samples of this process, and, where there are others, what they have noted."""

    def __init__(self, parts: Sequence[SeriesGroup], started: float) -> None:
        """`started` is now, in seconds since 1970: a process's id may have been another's."""
        self._parts = parts
        series = [name for part in parts for name in part.names()]
        self._own = Recorded(os.getpid(), started, series, array("d"))
        directory = os.environ.get(DIRECTORY_VARIABLE)
        self._directory = Path(directory) if directory else None
        self._span = -1

    def sample(self, now: float) -> None:
        """Note the values at a time, unless that was done in the same three seconds already.

        The spans are the same in all processes, so that theirs can be added up.
        """
        span = int(now // EVERY_S)
        if span == self._span:
            return
        self._span = span
        rows = self._own.rows
        rows.append(now)
        for part in self._parts:
            rows.extend(part.values())
        del rows[: -SAMPLES * (len(self._own.series) + 1)]
        if self._directory is not None:
            _write(self._own, self._directory)

    async def document(self, since: float, now: float, zipped: bool) -> bytes:
        """As JSON, what all processes have noted after a time; with `zipped`, compressed."""
        own = self._own._replace(rows=self._own.rows[:])
        # Files are read, and much may be written: not in the loop.
        return await asyncio.to_thread(_document, own, self._directory, since, now, zipped)


def _document(
    own: Recorded, directory: Path | None, since: float, now: float, zipped: bool
) -> bytes:
    processes = [own] if directory is None else _read_all(directory)
    document = msgspec.json.encode(
        {
            "now": now,
            "every": EVERY_S,
            "span": EVERY_S * SAMPLES,
            "restarts": 0 if directory is None else process_restarts(directory),
            "series": own.series,
            "processes": [
                {
                    "pid": each.pid,
                    "started": each.started,
                    "samples": _in_order(each, own.series, since),
                }
                for each in processes
            ],
        }
    )
    return gzip.compress(document, 1) if zipped else document


def _in_order(
    recorded: Recorded, series: list[str], since: float
) -> list[list[float]] | list[list[float | None]]:
    """A process's samples with the series in this order: a rolling restart may change the code."""
    samples = recorded.after(since)
    if recorded.series == series:
        return samples
    places = {name: place for place, name in enumerate(recorded.series, 1)}
    found = [0, *(places.get(name) for name in series)]
    return [[None if place is None else row[place] for place in found] for row in samples]


def _write(own: Recorded, directory: Path) -> None:
    """Whoever reads it meets the whole file of before, or the whole one of now."""
    path = directory / f"{HISTORY_FILE}{own.pid}"
    unfinished = path.with_suffix(".new")
    head = msgspec.json.encode((own.pid, own.started, own.series))
    try:
        unfinished.write_bytes(b"%b\n%b" % (head, own.rows.tobytes()))
        unfinished.replace(path)
    except OSError as error:
        log.warning("the dashboard misses a sample", reason=str(error))


def _read_all(directory: Path) -> Iterator[Recorded]:
    for path in sorted(directory.glob(f"{HISTORY_FILE}*")):
        try:
            content = path.read_bytes() if not path.suffix else b""
        except FileNotFoundError:
            # Its process was buried just now.
            continue
        if content:
            head, _, rows = content.partition(b"\n")
            pid, started, series = msgspec.json.decode(head, type=tuple[int, float, list[str]])
            yield Recorded(pid, started, series, array("d", rows))
