"""The recorder of a node's day: one process records, and nothing is lost to the database."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from chat_service.metrics.day import DAY_EVERY_S
from chat_service.metrics.history import History
from chat_service.metrics.multiprocess import DIRECTORY_VARIABLE, ExitedProcesses
from chat_service.metrics.recorder import Recorder
from chat_service.metrics.sampler import SeriesGroup
from workers.errors import StoreUnavailable
from workers.metrics import MONGOD_RESTARTS

NOW = 1_795_600_800.0
SERIES, AWAY = "chat_things_total", "chat_database_away"


class Archive:
    """Keeps days in memory, or does not answer."""

    def __init__(self) -> None:
        self.hours: dict[int, bytes] = {}
        self.calls: list[str] = []
        self.is_available = True

    async def save_history(self, node: str, hour: int, content: bytes, at_ms: int) -> None:
        self._called("save")
        self.hours[hour] = content

    async def load_history(self, node: str) -> list[bytes]:
        self._called("load")
        return list(self.hours.values())

    def _called(self, name: str) -> None:
        if not self.is_available:
            raise StoreUnavailable("no answer")
        self.calls.append(name)


class Process:
    """The parts of one process that record: its counter, samples and recorder."""

    def __init__(self, archive: Archive, started: float = NOW, pid: int = 1) -> None:
        self.counter = Counter(SERIES, "Things.", registry=CollectorRegistry())
        self.gauge = Gauge(AWAY, "Gone.", registry=CollectorRegistry(), multiprocess_mode="livemax")
        self.history = History([SeriesGroup(self.gauge), SeriesGroup(self.counter)], started)
        self.history._own = self.history._own._replace(pid=pid)
        self.recorder = Recorder(self.history, archive)
        self.recorder._recorded_at = started

    async def turn(self, now: float, things: int = 0) -> None:
        """Count things, take a sample, and let the recorder do what is due."""
        self.counter.inc(things)
        self.history.sample(now)
        await self.recorder.turn(now)

    async def turns(self, first: float, count: int) -> None:
        """Count one thing every two minutes, whether or not the database answers."""
        for number in range(count):
            try:
                await self.turn(first + number * DAY_EVERY_S, 1)
            except StoreUnavailable:
                continue

    async def day(self, now: float) -> list[list[float]]:
        """Return the last value of each row, by runs, as the dashboard gets them."""
        document: dict[str, Any] = json.loads(await self.history.document(0, now, is_day=True))
        return [[row[-1] for row in each["samples"]] for each in document["processes"]]


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The metrics directory of a supervisor."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


async def test_a_row_is_recorded_every_two_minutes(archive: Archive) -> None:
    process = Process(archive)
    for ago in range(0, 600, 10):
        await process.turn(NOW + ago, 1)
    # It begins with zero.
    assert await process.day(NOW + 600) == [[0, 13, 25, 37, 49]]


async def test_the_database_is_asked_rarely(archive: Archive) -> None:
    process = Process(archive)
    await process.turns(NOW, 61)
    # With every third of 60 rows; two of these also end an hour.
    assert archive.calls == ["load", *["save"] * 22]


async def test_an_incident_is_stored_at_once_and_survives_a_kill(archive: Archive) -> None:
    process = Process(archive)
    await process.turns(NOW, 2)
    assert "save" not in archive.calls
    process.gauge.set(1)
    await process.turn(NOW + DAY_EVERY_S + 30, 10)
    process.gauge.set(0)
    for late in (60, 90):
        await process.turn(NOW + DAY_EVERY_S + late, 10)
    # When it began and when it was over.
    assert archive.calls == ["load", "save", "save"]
    again = Process(archive, NOW + 3600)
    await again.turn(NOW + 3600)
    document = json.loads(await again.history.document(0, NOW + 3601, is_day=True))
    (_, row) = document["processes"][0]["samples"]
    # The row of these two minutes knows that the database was unavailable for a part of them.
    assert row[1:] == [1, 22]


class WithMongod(Process):
    """A process with an embedded mongod, or whose supervisor has it."""

    def __init__(
        self, archive: Archive, started: float, supervisor: ExitedProcesses | None
    ) -> None:
        super().__init__(archive, started, pid=int(started))
        self._supervisor = supervisor
        self._restarts = Counter(*MONGOD_RESTARTS, registry=CollectorRegistry())
        self.history._parts = [SeriesGroup(self._restarts)]
        self.history._kinds = {MONGOD_RESTARTS[0]: "counter"}
        self.history._own = self.history._own._replace(series=[MONGOD_RESTARTS[0]])

    def restart_mongod(self) -> None:
        """Count a restart, as the service or its supervisor does."""
        if self._supervisor is not None:
            self._supervisor.restarted("mongod")
        else:
            self._restarts.inc()
            self.history.mongod_restarted(time.time())

    async def state(self, now: float) -> tuple[int, list[str]]:
        """Return the restarts of mongod since the start, and what the dashboard says is wrong."""
        document = json.loads(await self.history.document(0, now))
        return document["mongod_restarts"], [
            each["says"].partition(" in the last")[0] for each in document["state"]["conditions"]
        ]


@pytest.mark.parametrize("is_supervised", [False, True])
async def test_a_restart_of_the_node_does_not_hide_those_of_mongod(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_supervised: bool
) -> None:
    def start(at: float) -> WithMongod:
        monkeypatch.setattr(time, "time", lambda: at)
        if not is_supervised:
            return WithMongod(archive, at, None)
        folder = tmp_path / str(at)
        folder.mkdir()
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder))
        return WithMongod(archive, at, ExitedProcesses(folder))

    first = start(NOW)
    for _ in range(3):
        first.restart_mongod()
    await first.turn(NOW + 10)
    again = start(NOW + 200)
    again.restart_mongod()
    await again.turn(NOW + 210)
    assert await again.state(NOW + 215) == (1, ["The embedded mongod ended 4 times"])
    # Only the last one is less than a quarter of an hour ago, and then none is.
    assert await again.state(NOW + 1000) == (1, ["The embedded mongod ended 1 time"])
    assert await again.state(NOW + 1200) == (1, [])
    third = start(NOW + 300)
    await third.turn(NOW + 310)
    assert await third.state(NOW + 315) == (0, ["The embedded mongod ended 4 times"])
    for each in (first, again, third):
        await each.recorder.stop()


async def test_a_state_that_lasts_is_stored_as_rarely_as_any_other(archive: Archive) -> None:
    process = Process(archive)
    process.gauge.set(1)
    for half_minute in range(240):
        await process.turn(NOW + 30 * half_minute)
    # Twice a minute for a quarter of an hour, then every six minutes and at the end of an hour.
    assert 30 + 17 <= archive.calls.count("save") <= 30 + 20


async def test_the_day_continues_after_a_restart(archive: Archive) -> None:
    before = Process(archive)
    await before.turns(NOW, 4)
    again = Process(archive, NOW + 3600)
    await again.turn(NOW + 3600)
    assert await again.day(NOW + 3601) == [[0, 2, 3, 4]]
    await again.turn(NOW + 3600 + DAY_EVERY_S, 7)
    assert await again.day(NOW + 4000) == [[0, 2, 3, 4], [0, 7]]


async def test_an_unavailable_database_costs_nothing(archive: Archive) -> None:
    process = Process(archive)
    await process.turns(NOW, 4)
    archive.is_available = False
    await process.turns(NOW + 4 * DAY_EVERY_S, 60)
    expected = [0, *range(2, 65)]
    now = NOW + 64 * DAY_EVERY_S
    assert await process.day(now) == [expected]
    archive.is_available = True
    await process.turn(now)
    again = Process(archive, now + 100)
    await again.turn(now + 100)
    assert await again.day(now + 100) == [[*expected, 64]]


async def test_what_is_stored_is_not_replaced_before_it_is_read(archive: Archive) -> None:
    before = Process(archive)
    await before.turns(NOW, 4)
    archive.is_available = False
    again = Process(archive, NOW + 600)
    await again.turns(NOW + 600 + DAY_EVERY_S, 6)
    archive.is_available = True
    await again.turns(NOW + 600 + 7 * DAY_EVERY_S, 4)
    assert await again.day(NOW + 3000) == [[0, 2, 3, 4], [0, *range(1, 11)]]
    last = Process(archive, NOW + 3000)
    await last.turn(NOW + 3000)
    assert await last.day(NOW + 3000) == await again.day(NOW + 3000)


async def test_a_short_run_leaves_nothing(archive: Archive) -> None:
    process = Process(archive)
    process.recorder.start()
    await process.recorder.stop()
    await process.recorder.stop()
    assert "save" not in archive.calls


@pytest.mark.parametrize("is_incident", [False, True])
async def test_a_stop_stores_the_last_minutes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, is_incident: bool
) -> None:
    process = Process(archive)
    process.gauge.set(is_incident)
    await process.turn(NOW + DAY_EVERY_S, 1)
    # In an incident, everything is stored already, and then more happens.
    assert archive.calls == ["load", *["save"] * is_incident]
    process.recorder.start()
    process.counter.inc(41)
    later = NOW + DAY_EVERY_S + 10
    process.history.sample(later, is_last=True)
    monkeypatch.setattr("time.time", lambda: later)
    await process.recorder.stop()
    again = Process(archive, later + 5)
    await again.turn(later + 5)
    assert await again.day(later + 5) == [[0, 42]]


async def test_a_stop_does_not_fail_without_the_database(archive: Archive) -> None:
    process = Process(archive)
    await process.turns(NOW, 4)
    archive.is_available = False
    process.recorder.start()
    await process.recorder.stop()


async def test_a_stop_ends_a_recorder_whose_driver_hides_it(archive: Archive) -> None:
    entered = asyncio.Event()

    async def load(node: str) -> list[bytes]:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            # As PyMongo does at some points of an operation.
            raise StoreUnavailable("the connection was closed") from None
        raise AssertionError

    archive.load_history = load  # type: ignore[method-assign]
    recorder = Process(archive).recorder
    recorder.start()
    await entered.wait()
    async with asyncio.timeout(30):
        await recorder.stop()


async def test_the_recorder_survives_a_bug(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []
    again = asyncio.Event()

    async def fail(now: float) -> None:
        turns.append(now)
        if len(turns) == 2:
            again.set()
        raise KeyError("a bug")

    recorder = Process(archive).recorder
    monkeypatch.setattr(recorder, "turn", fail)
    monkeypatch.setattr("chat_service.metrics.recorder._TURN_EVERY_S", 0.01)
    recorder.start()
    async with asyncio.timeout(30):
        await again.wait()
        await recorder.stop()


async def test_one_process_of_a_node_records(archive: Archive, directory: Path) -> None:
    ExitedProcesses(directory)
    one, other = Process(archive, pid=1), Process(archive, pid=2)
    for number in range(1, 4):
        now = NOW + number * DAY_EVERY_S
        other.counter.inc(10)
        other.history.sample(now)
        await one.turn(now, 1)
        await other.turn(now + 1)
    assert archive.calls == ["load", "save"]
    assert await one.day(NOW + 600) == [[0, 11, 22, 33]]
    assert await other.day(NOW + 600) == [[0, 11, 22, 33]]
    await one.recorder.stop()


async def test_another_process_takes_over(
    archive: Archive, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = ExitedProcesses(directory)
    one, other = Process(archive, pid=1), Process(archive, pid=2)
    for number in (1, 2):
        await one.turn(NOW + number * DAY_EVERY_S, 1)
    # It is killed, so it stores nothing.
    assert one.recorder._lock is not None
    one.recorder._lock.free()
    supervisor.merge_exited(1)
    assert not archive.hours
    for number in (3, 4, 5):
        await other.turn(NOW + number * DAY_EVERY_S, 10)
    expected = [[0, 1, 2, 12, 22, 32]]
    assert await other.day(NOW + 900) == expected
    # What the killed process recorded is stored, too.
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    again = Process(archive, NOW + 900)
    await again.turn(NOW + 900)
    assert await again.day(NOW + 900) == expected
    await other.recorder.stop()


async def test_exited_processes_keep_their_counts(archive: Archive, directory: Path) -> None:
    supervisor = ExitedProcesses(directory)
    one, other = Process(archive, pid=1), Process(archive, pid=2)
    await other.turn(NOW + DAY_EVERY_S, 100)
    one.counter.inc(5)
    one.history.sample(NOW + DAY_EVERY_S)
    await other.turn(NOW + 2 * DAY_EVERY_S)
    one.counter.inc(1)
    one.history.sample(NOW + 2 * DAY_EVERY_S, is_last=True)
    supervisor.merge_exited(1)
    await other.turn(NOW + 3 * DAY_EVERY_S)
    await other.turn(NOW + 4 * DAY_EVERY_S)
    assert await other.day(NOW + 900) == [[0, 100, 105, 106, 106]]
    await other.recorder.stop()


async def test_processes_of_an_older_supervisor_record(archive: Archive, directory: Path) -> None:
    # It keeps no counts of exited processes.
    process = Process(archive, pid=1)
    for number in (1, 2, 3):
        await process.turn(NOW + number * DAY_EVERY_S, 1)
    ((*values,),) = await process.day(NOW + 600)
    assert values[-3:] == [1, 2, 3]
    assert json.loads(await process.history.document(0, NOW + 600))["node"]["started"]
    await process.recorder.stop()


def test_no_reader_sees_a_part_of_a_sample() -> None:
    seen: list[int] = []

    class Spy(SeriesGroup):
        def values(self) -> list[float]:
            # What another thread could read now.
            seen.append(len(process.history.read().processes[0].rows))
            return super().values()

    process = Process(Archive())
    counters = [Counter(f"c{n}", "Things.", registry=CollectorRegistry()) for n in range(3)]
    process.history = History([Spy(each) for each in counters], NOW)
    for number in range(2):
        process.history.sample(NOW + 3 * number)
    assert seen == [0, 0, 0, 4, 4, 4]
