"""The metrics of the last quarter of an hour, for the dashboard at `/ops`.

Every process records its metrics every three seconds, raw and cumulative; the dashboard computes
rates and percentiles. Under a supervisor, each process writes its samples to a file in the
metrics directory (`chat_service.metrics.multiprocess`), so that any process can answer for all. The
file is deleted after its process has exited. Made and called by `chat_service.service`.
"""

import asyncio
import gzip
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from chat_service.metrics.conditions import KEPT_S, Facts, judge, thresholds_of
from chat_service.metrics.multiprocess import (
    DIRECTORY_VARIABLE,
    HISTORY_FILE,
    Restarts,
    read_restarts,
)
from chat_service.metrics.node import Node
from chat_service.metrics.sampler import SeriesGroup
from chat_service.metrics.samples import Recorded, Samples

log = structlog.get_logger(__name__)

#: The interval of samples, in seconds, and the number of samples that are kept.
EVERY_S, SAMPLES = 3, 300


class History:
    """The last samples of this process, and access to those of the other processes."""

    def __init__(self, parts: Sequence[SeriesGroup], started: float) -> None:
        """`started` is the current time, in seconds since 1970.

        It tells this process from an earlier one with the same id.
        """
        self._parts = parts
        series = [name for part in parts for name in part.names()]
        self._own = Recorded(os.getpid(), started, series, array("d"))
        directory = os.environ.get(DIRECTORY_VARIABLE)
        self._directory = Path(directory) if directory else None
        self._span = -1
        #: The facts about this node.
        self.node = Node(started)

    def sample(self, now: float) -> None:
        """Take a sample, unless there is one for this interval of three seconds.

        The intervals are the same in all processes, so that their samples can be added up.
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
        """Return the samples of all processes after the time `since`, as JSON.

        The times are in seconds since 1970. With `zipped`, the JSON is compressed by gzip.
        """
        own = self._own._replace(rows=self._own.rows[:])
        # Reading files and encoding much JSON would block the loop.
        return await asyncio.to_thread(
            _document, own, self._directory, self.node, since, now, zipped
        )


def _document(
    own: Recorded, directory: Path | None, node: Node, since: float, now: float, zipped: bool
) -> bytes:
    processes, restarts = [own], Restarts(0, 0)
    if directory is not None:
        processes, restarts = list(_read_all(directory)), read_restarts(directory, now - KEPT_S)
    samples = Samples(processes, now)
    facts = node.facts._replace(recent_restarts=restarts.recent)
    document = msgspec.json.encode(
        {
            "now": now,
            "every": EVERY_S,
            "span": EVERY_S * SAMPLES,
            "restarts": restarts.all,
            "leader": facts.leader,
            **_judged(samples, facts, now),
            "node": node.document(now, len(processes), samples.oldest),
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


def _judged(samples: Samples, facts: Facts, now: float) -> dict[str, Any]:
    state = judge(samples, facts, now)
    return {
        "state": {**state._asdict(), "conditions": [each._asdict() for each in state.conditions]},
        "thresholds": {name: each._asdict() for name, each in thresholds_of(facts).items()},
    }


def _in_order(
    recorded: Recorded, series: list[str], since: float
) -> list[list[float]] | list[list[float | None]]:
    """Return a process's samples with the series in this order, and None for missing series.

    During a rolling restart, processes may run different versions of the code.
    """
    samples = recorded.after(since)
    if recorded.series == series:
        return samples
    places = {name: place for place, name in enumerate(recorded.series, 1)}
    found = [0, *(places.get(name) for name in series)]
    return [[None if place is None else row[place] for place in found] for row in samples]


def _write(own: Recorded, directory: Path) -> None:
    """Replace the file of this process atomically."""
    path = directory / f"{HISTORY_FILE}{own.pid}"
    unfinished = path.with_suffix(".new")
    head = msgspec.json.encode((own.pid, own.started, own.series))
    try:
        unfinished.write_bytes(b"%b\n%b" % (head, own.rows.tobytes()))
        unfinished.replace(path)
    except OSError as error:
        log.warning("a sample for the dashboard was not written", reason=str(error))


def _read_all(directory: Path) -> Iterator[Recorded]:
    for path in sorted(directory.glob(f"{HISTORY_FILE}*")):
        try:
            content = path.read_bytes() if not path.suffix else b""
        except FileNotFoundError:
            # Its process has just been merged with the exited ones.
            continue
        if content:
            head, _, rows = content.partition(b"\n")
            pid, started, series = msgspec.json.decode(head, type=tuple[int, float, list[str]])
            yield Recorded(pid, started, series, array("d", rows))
