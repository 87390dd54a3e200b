"""The text of `/metrics`: the metrics of this process, or of all processes together.

Under a supervisor, every process keeps its metrics in files of one directory (prometheus_client's
multiprocess mode). So any process can answer for all, and the counts of a killed process are kept.
"""

import asyncio
import fcntl
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import add
from pathlib import Path
from typing import Literal, NamedTuple, TextIO, TypeAlias

import msgspec
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from chat_service.metrics.samples import Recorded
from workers.metrics import MONGOD_RESTARTS

#: The environment variable that names the directory. The library reads it when it is imported.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: The name of a file with samples of `chat_service.metrics.history`, before the process's id.
HISTORY_FILE = "history_"

_ADDITIVE = ("counter", "histogram")
_LOCK = "lock"
_EXITED = "dead"
#: The file with what the dashboard knows about processes that exited, and that with its last day.
_EXITED_SAMPLES, DAY_FILE = "exited", "day"
#: The process with a lock on this file records the day.
_RECORDER_LOCK = "recorder"
#: What the supervisor restarts.
Restarted: TypeAlias = Literal["process", "mongod"]
#: The metric that counts the restarts, with its text, and the file with the times of the last ones.
_RESTARTS: Mapping[Restarted, tuple[str, str, str]] = {
    "process": (
        "chat_process_restarts_total",
        "Server processes that died and were started again.",
        "restarts",
    ),
    "mongod": (*MONGOD_RESTARTS, "mongod_restarts"),
}
#: How many times are kept.
RESTART_TIMES_MAX = 1000


class Exposition:
    """Makes the text of `/metrics`. `registry` holds the metrics of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._directory = os.environ.get(DIRECTORY_VARIABLE)
        if self._directory is None:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)

    async def text(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        if self._directory is None:
            return generate_latest(self._registry)
        # Reading the files of all processes would block the loop.
        return await asyncio.to_thread(_text_of_all, Path(self._directory))


def _text_of_all(directory: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    PlatformCollector(registry=registry)
    registry.register(_Processes(directory))
    with _locked(directory, fcntl.LOCK_SH):
        return generate_latest(registry)


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    """Lock the directory: files of exited processes are merged while nobody reads."""
    with (directory / _LOCK).open("a", encoding="ascii") as file:
        fcntl.flock(file, how)
        yield


class _Processes:
    """The `process_*` metrics of all running processes: their sums, and the first start time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        totals: dict[str, Metric] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                total = totals.setdefault(metric.name, metric)
                if total is not metric:
                    combine = min if "start_time" in metric.name else add
                    total.samples = [
                        mine._replace(value=combine(mine.value, other.value))
                        for mine, other in zip(total.samples, metric.samples, strict=True)
                    ]
        yield from totals.values()

    def _pids(self) -> Iterable[int]:
        paths = self._directory.glob("gauge_livesum_*.db")
        return sorted(int(path.stem.rpartition("_")[2]) for path in paths)


class Restarts(NamedTuple):
    """How often something died and was restarted: all, and recently. `last` is the time of the last
    one in seconds since 1970; 0 without any.
    """

    all: int = 0
    recent: int = 0
    last: float = 0.0


def restarts_of(total: int, times: Sequence[float], since: float) -> Restarts:
    """Return the restarts with these times. `since` is the time from which they are recent."""
    return Restarts(total, sum(time > since for time in times), max(times, default=0.0))


def read_restarts(directory: Path, what: Restarted, since: float) -> Restarts:
    """Return what the supervisor counted. `since` is in seconds since 1970."""
    path = directory / f"counter_{_EXITED}.db"
    if not path.exists():
        return Restarts()
    with _locked(directory, fcntl.LOCK_SH):
        values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        total = int(sum(value for key, value, _, _ in values if key == _restarts_key(what)))
        times = _restart_times(directory, what)
    return restarts_of(total, times, since)


class Exited(msgspec.Struct):
    """The id and start of the supervisor, and the counters of processes that exited, by series."""

    pid: int
    started: float
    counts: dict[str, float]


class NodeSamples(NamedTuple):
    """The samples of all processes of the node, and what exited ones counted."""

    processes: list[Recorded]
    exited: Exited


def read_samples(directory: Path) -> NodeSamples:
    """Return the samples of the running processes and the counts of exited ones.

    No process is in both of them, or in none.
    """
    with _locked(directory, fcntl.LOCK_SH):
        return NodeSamples(list(_read_all(directory)), _read_exited(directory))


def _read_all(directory: Path) -> Iterator[Recorded]:
    for path in sorted(directory.glob(f"{HISTORY_FILE}*")):
        if not path.suffix and (recorded := _read_recorded(path)) is not None:
            yield recorded


def _read_recorded(path: Path) -> Recorded | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    head, _, rows = content.partition(b"\n")
    pid, started, series = msgspec.json.decode(head, type=tuple[int, float, list[str]])
    return Recorded(pid, started, series, array("d", rows))


def _read_exited(directory: Path) -> Exited:
    if not (directory / _EXITED_SAMPLES).exists():
        # A rolling restart has replaced the processes of an older supervisor, which does not write
        # this. It made the lock soon after its start.
        return Exited(os.getppid(), (directory / _LOCK).stat().st_mtime, {})
    return msgspec.json.decode((directory / _EXITED_SAMPLES).read_bytes(), type=Exited)


class RecorderLock:
    """Decides which process of the node records its day. The kernel frees it if that one dies."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _RECORDER_LOCK
        self._file: TextIO | None = None

    def take(self) -> bool:
        """Return whether this process has the lock, or takes it now."""
        if self._file is None:
            file = self._path.open("a", encoding="ascii")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._file = file
        return True

    def free(self) -> None:
        """Let another process take it. Safe to call twice, and without having it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _restart_times(directory: Path, what: Restarted) -> "array[float]":
    path = directory / _RESTARTS[what][2]
    return array("d", path.read_bytes()) if path.exists() else array("d")


def _restarts_key(what: Restarted) -> str:
    name, text, _ = _RESTARTS[what]
    key: str = mmap_key(name.removesuffix("_total"), name, [], [], text)
    return key


class ExitedProcesses:
    """Keeps the counts of processes that have exited, in one file for each kind of metric.

    Used by the supervisor.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._write_exited(Exited(os.getpid(), time.time(), {}))

    def restarted(self, what: Restarted) -> None:
        """Count one restart."""
        with _locked(self._directory, fcntl.LOCK_EX):
            self._add("counter", {_restarts_key(what): 1.0})
            times = _restart_times(self._directory, what)
            times.append(time.time())
            content = times[-RESTART_TIMES_MAX:].tobytes()
            (self._directory / _RESTARTS[what][2]).write_bytes(content)

    def merge_exited(self, pid: int) -> None:
        """Add the counts of an exited process, forget its gauges, and delete its files."""
        with _locked(self._directory, fcntl.LOCK_EX):
            mark_process_dead(pid, str(self._directory))  # type: ignore[no-untyped-call]
            for kind in _ADDITIVE:
                path = self._directory / f"{kind}_{pid}.db"
                if path.exists():
                    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
                    path.unlink()
                    self._add(kind, {key: value for key, value, _, _ in values})
            self._merge_samples(pid)

    def _merge_samples(self, pid: int) -> None:
        path = self._directory / f"{HISTORY_FILE}{pid}"
        if (recorded := _read_recorded(path)) is not None and recorded.rows:
            exited, counts = _read_exited(self._directory), recorded.last()
            for name, value in counts.items():
                exited.counts[name] = exited.counts.get(name, 0.0) + value
            self._write_exited(exited)
        path.unlink(missing_ok=True)
        path.with_suffix(".new").unlink(missing_ok=True)

    def _write_exited(self, exited: Exited) -> None:
        path = self._directory / _EXITED_SAMPLES
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.encode(exited))
        unfinished.replace(path)

    def _add(self, kind: str, values: dict[str, float]) -> None:
        file = MmapedDict(str(self._directory / f"{kind}_{_EXITED}.db"))  # type: ignore[no-untyped-call]
        for key, value in values.items():
            before, timestamp = file.read_value(key)  # type: ignore[no-untyped-call]
            file.write_value(key, before + value, timestamp)  # type: ignore[no-untyped-call]
        file.close()  # type: ignore[no-untyped-call]
