"""The metrics of the last quarter of an hour and of the last day, for the dashboard at `/ops`.

Every process records its metrics every three seconds, raw and cumulative; the dashboard computes
rates and percentiles. Under a supervisor, each process writes its samples to a file in the
metrics directory (`chat_service.metrics.multiprocess`), so that any process can answer for all. The
file is deleted after its process has exited. One process of the node records the day
(`chat_service.metrics.recorder`). Made and called by `chat_service.service`.
"""

import asyncio
import gzip
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from chat_service.metrics.conditions import KEPT_S, Facts, State, judge, thresholds_of
from chat_service.metrics.day import DAY_EVERY_S, DAY_S, Day, Run, growth_times, in_order
from chat_service.metrics.multiprocess import (
    DAY_FILE,
    DIRECTORY_VARIABLE,
    HISTORY_FILE,
    RESTART_TIMES_MAX,
    Exited,
    NodeSamples,
    Restarted,
    Restarts,
    read_restarts,
    read_samples,
    restarts_of,
)
from chat_service.metrics.node import Node
from chat_service.metrics.sampler import Kind, SeriesGroup
from chat_service.metrics.samples import Recorded, Samples, combine
from workers.metrics import MONGOD_RESTARTS

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
        self._kinds: Mapping[str, Kind] = {
            name: part.kind for part in parts for name in part.names()
        }
        self._own = Recorded(os.getpid(), started, list(self._kinds), array("d"))
        directory = os.environ.get(DIRECTORY_VARIABLE)
        #: The metrics directory, or None without a supervisor.
        self.directory = Path(directory) if directory else None
        #: The times of the restarts of the embedded mongod, in seconds since 1970. With a
        #: supervisor, they are in the metrics directory.
        self._mongod_restarts: list[float] = []
        self._span = -1
        #: The facts about this node.
        self.node = Node()
        #: The last day, unless it is in a file of the metrics directory.
        self._day = Day()

    def sample(self, now: float, *, is_last: bool = False) -> None:
        """Take a sample, unless there is one for this interval of three seconds.

        The intervals are the same in all processes, so that their samples can be added up. The last
        sample of a process that exits is always taken: it has everything that the process counted.
        """
        span = int(now // EVERY_S)
        if span == self._span and not is_last:
            return
        self._span = span
        rows, row = self._own.rows, array("d", [now])
        for part in self._parts:
            row.extend(part.values())
        # At once, since `read` copies the rows on another thread, between any two operations.
        rows.extend(row)
        del rows[: -SAMPLES * (len(self._own.series) + 1)]
        if self.directory is not None:
            _write(self._own, self.directory)

    def mongod_restarted(self, now: float) -> None:
        """Take note that the embedded mongod of this process was restarted."""
        self._mongod_restarts.append(now)
        del self._mongod_restarts[:-RESTART_TIMES_MAX]

    def _restarts(self, what: Restarted, since: float) -> Restarts:
        if self.directory is not None:
            return read_restarts(self.directory, what, since)
        times = self._mongod_restarts[:] if what == "mongod" else []
        return restarts_of(len(times), times, since)

    def _restarts_of_mongod(self, since: float, started: float) -> Restarts:
        """Return the restarts of mongod. The recent ones are also those of earlier runs of the
        node, which began before `started`. Reads files.
        """
        own = self._restarts("mongod", since)
        if started < since:
            return own
        # A row from before `since` tells what a run had counted until then.
        first = since - 2 * DAY_EVERY_S
        runs = (run for run in self.read_day().runs(first) if run.started < started)
        earlier = [at for at in growth_times(runs, MONGOD_RESTARTS[0], first) if at > since]
        return Restarts(own.all, own.recent + len(earlier), max([own.last, *earlier]))

    def read(self) -> NodeSamples:
        """Return the samples of all processes of the node. Reads files."""
        if self.directory is not None:
            return read_samples(self.directory)
        own = self._own._replace(rows=self._own.rows[:])
        return NodeSamples([own], Exited(own.pid, own.started, {}))

    def sum_up(self, since: float, now: float) -> Run:
        """Return one row for the whole node, with the highest gauges since a time. Reads files."""
        processes, exited = self.read()
        counts = exited.counts
        if self.directory is not None:
            # The supervisor counts these, and no process does.
            restarts = read_restarts(self.directory, "mongod", now).all
            counts = counts | {MONGOD_RESTARTS[0]: float(restarts)}
        values = combine(processes, counts, self._kinds, since)
        return Run(exited.pid, exited.started, list(self._kinds), [[now, *values]])

    def read_day(self) -> Day:
        """Return the last day. Reads files."""
        path = None if self.directory is None else self.directory / DAY_FILE
        if path is None:
            return self._day
        if not path.exists():
            return Day()
        return Day(msgspec.msgpack.decode(path.read_bytes(), type=dict[int, bytes]))

    def keep_day(self, day: Day) -> None:
        """Let all processes of the node answer with this day. Writes files."""
        self._day = day
        if self.directory is not None:
            _replace(self.directory / DAY_FILE, msgspec.msgpack.encode(day.dump()))

    async def document(
        self, since: float, now: float, *, is_day: bool = False, zipped: bool = False
    ) -> bytes:
        """Return the samples of all processes after the time `since`, as JSON, or the last day.

        The times are in seconds since 1970. With `zipped`, the JSON is compressed by gzip.
        """
        # Reading files and encoding much JSON would block the loop.
        return await asyncio.to_thread(self._document, since, now, is_day, zipped)

    def _document(self, since: float, now: float, is_day: bool, zipped: bool) -> bytes:
        processes, exited = self.read()
        restarts = self._restarts("process", now - KEPT_S)
        of_mongod = self._restarts_of_mongod(now - KEPT_S, exited.started)
        samples = Samples(processes, now)
        facts = self._facts(restarts, of_mongod)
        series = self._own.series
        document = msgspec.json.encode(
            {
                "now": now,
                "every": DAY_EVERY_S if is_day else EVERY_S,
                "span": DAY_S if is_day else EVERY_S * SAMPLES,
                "restarts": restarts.all,
                "mongod_restarts": of_mongod.all,
                "leader": facts.leader,
                **_judged(samples, facts, now),
                "node": self.node.document(now, exited.started, len(processes), samples.oldest),
                "series": series,
                "processes": self._runs(max(since, now - DAY_S))
                if is_day
                else [
                    _as_fields(each.pid, each.started, each.series, each.after(since), series)
                    for each in processes
                ],
            }
        )
        return gzip.compress(document, 1) if zipped else document

    def state(self, now: float) -> State:
        """Return the state of the node. Reads files."""
        since, (processes, exited) = now - KEPT_S, self.read()
        of_mongod = self._restarts_of_mongod(since, exited.started)
        facts = self._facts(self._restarts("process", since), of_mongod)
        return judge(Samples(processes, now), facts, now)

    def _facts(self, restarts: Restarts, of_mongod: Restarts) -> Facts:
        return self.node.facts._replace(
            recent_restarts=restarts.recent,
            last_restart=restarts.last,
            recent_mongod_restarts=of_mongod.recent,
            last_mongod_restart=of_mongod.last,
        )

    def _runs(self, since: float) -> list[dict[str, Any]]:
        """Return the runs of the node in the last day. Each begins with zeros, unless that was
        earlier.
        """
        zeros = [0.0 if kind == "counter" else None for kind in self._kinds.values()]
        found = []
        for run in self.read_day().runs(since):
            fields = _as_fields(run.pid, run.started, run.series, run.rows, self._own.series)
            if run.started > since:
                fields["samples"].insert(0, [run.started, *zeros])
            found.append(fields)
        return found


def _judged(samples: Samples, facts: Facts, now: float) -> dict[str, Any]:
    state = judge(samples, facts, now)
    return {
        "state": {**state._asdict(), "conditions": [each._asdict() for each in state.conditions]},
        "thresholds": {name: each._asdict() for name, each in thresholds_of(facts).items()},
    }


def _as_fields(
    pid: int,
    started: float,
    series: Sequence[str],
    rows: Sequence[Sequence[float | None]],
    wanted: Sequence[str],
) -> dict[str, Any]:
    return {"pid": pid, "started": started, "samples": in_order(rows, series, wanted)}


def _write(own: Recorded, directory: Path) -> None:
    """Replace the file of this process atomically."""
    head = msgspec.json.encode((own.pid, own.started, own.series))
    try:
        _replace(directory / f"{HISTORY_FILE}{own.pid}", b"%b\n%b" % (head, own.rows.tobytes()))
    except OSError as error:
        log.warning("a sample for the dashboard was not written", reason=str(error))


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(content)
    unfinished.replace(path)
