"""The last day of a node: its rows, their bounds, and how processes are summed up."""

import math
from array import array

import pytest

from chat_service.metrics.day import DAY_EVERY_S, DAY_S, Day, Run
from chat_service.metrics.sampler import Kind
from chat_service.metrics.samples import Recorded, combine

NOW = 1_795_600_800.0  # the beginning of an hour
SERIES = ["a", "b"]


def run(at: float, *values: float | None, started: float = NOW, series: list[str] = SERIES) -> Run:
    """Return a run with one row."""
    return Run(7, started, series, [[at, *values]])


def filled(seconds: float, first: float = NOW) -> Day:
    """Return a day with a row every two minutes."""
    day = Day()
    for number in range(int(seconds // DAY_EVERY_S)):
        at = first + number * DAY_EVERY_S
        day.add(run(at, float(number), None, started=first), at)
    return day


def rows(day: Day, since: float = 0) -> list[list[float | None]]:
    """Return the rows of the only run."""
    (only,) = day.runs(since)
    return only.rows


def test_rows_of_several_hours_are_one_run() -> None:
    day = filled(3 * 3600)
    assert [row[1] for row in rows(day)] == list(range(90))
    assert len(day.dump()) == 3
    assert [row[1] for row in rows(day, NOW + 88 * DAY_EVERY_S)] == [89]


def test_a_day_is_kept_and_no_more() -> None:
    day = filled(3 * DAY_S)
    assert len(day.dump()) == 25
    last = NOW + 3 * DAY_S - DAY_EVERY_S
    assert len(rows(day, last - DAY_S)) == DAY_S / DAY_EVERY_S


def test_a_later_row_of_the_same_minutes_replaces() -> None:
    day = Day()
    day.add(run(NOW, 1, 1), NOW)
    day.add(run(NOW + 90, 2, 2), NOW + 90)
    day.add(run(NOW + 120, 3, 3), NOW + 120)
    assert rows(day) == [[NOW + 90, 2, 2], [NOW + 120, 3, 3]]


def test_rows_from_before_the_clock_was_set_back_go() -> None:
    day = filled(600)
    day.add(run(NOW + 3 * 3600, 70, 70), NOW + 3 * 3600)
    day.add(run(NOW + 300, 80, 80), NOW + 300)
    assert [(row[0], row[1]) for row in rows(day)] == [(NOW, 0), (NOW + 120, 1), (NOW + 300, 80)]
    assert len(day.dump()) == 1


def test_restarts_have_runs_of_their_own() -> None:
    day = filled(1200)
    again = NOW + 1300
    day.add(run(again + 60, 0, 0, started=again), again + 60)
    first, second = day.runs(0)
    assert (first.started, second.started) == (NOW, again)
    assert second.rows == [[again + 60, 0, 0]]


def test_endless_restarts_are_bounded() -> None:
    day = Day()
    for number in range(1000):
        at = NOW + number
        day.add(run(at, 1, 1, started=at), at)
    found = day.runs(0)
    assert len(found) == 60
    assert found[-1].started == NOW + 999


def test_a_stored_day_continues_after_a_restart() -> None:
    stored = list(filled(2 * 3600).dump().values())
    again = NOW + 2 * 3600 - 30
    day = Day()
    day.add(run(again + 10, 5, 5, started=again), again + 10)
    day.merge(stored, again + 10)
    first, second = day.runs(0)
    assert len(first.rows) == 60
    assert second.rows == [[again + 10, 5, 5]]
    # A second merge changes nothing.
    before = day.runs(0)
    day.merge(stored, again + 10)
    assert day.runs(0) == before


def test_newer_rows_survive_a_merge() -> None:
    day = Day()
    day.add(run(NOW, 1, 1), NOW)
    old = Day()
    old.add(run(NOW, 0, 0), NOW)
    day.merge(old.dump().values(), NOW)
    assert rows(day) == [[NOW, 1, 1]]


@pytest.mark.parametrize("content", [b"", b"junk", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_an_unreadable_hour_is_ignored(content: bytes) -> None:
    day = filled(240)
    day.merge([content], NOW)
    assert len(rows(day)) == 2


def test_hours_older_than_a_day_are_not_merged() -> None:
    day = Day()
    day.merge(filled(240).dump().values(), NOW + DAY_S + 3600)
    assert day.runs(0) == []


def test_other_series_of_another_version_are_unknown() -> None:
    day = Day()
    day.add(run(NOW, 1, 2), NOW)
    later = NOW + DAY_EVERY_S
    day.add(run(later, 3, 4, series=["b", "c"]), later)
    (only,) = day.runs(0)
    assert only.series == ["b", "c"]
    assert only.rows == [[NOW, 2, None], [later, 3, 4]]


def test_series_of_a_newer_version_are_known_from_then_on() -> None:
    day = Day()
    day.add(run(NOW, 1, 2), NOW)
    later = NOW + 3600
    day.add(run(later, 3, 4, series=["b", "c"]), later)
    (only,) = day.runs(0)
    assert (only.series, only.rows) == (["b", "c"], [[NOW, 2, None], [later, 3, 4]])


KINDS: dict[str, Kind] = {"n": "counter", "open": "sum", "away": "highest", "pending": "newest"}


def process(pid: int, *samples: tuple[float, ...], series: list[str] | None = None) -> Recorded:
    """Return the samples of a process: the time and a value for each kind."""
    flat = array("d", [value for sample in samples for value in sample])
    return Recorded(pid, NOW, series or list(KINDS), flat)


def test_processes_are_summed_up_by_the_kind_of_series() -> None:
    first = process(1, (NOW, 5, 1, 1, 9), (NOW + 3, 7, 2, 0, 8))
    second = process(2, (NOW + 2, 10, 3, 0, 6))
    assert combine([first, second], {}, KINDS, NOW - 1) == [17, 5, 1, 8]
    # What was over before the last row does not count again.
    assert combine([first, second], {}, KINDS, NOW + 1)[2] == 0


def test_exited_processes_keep_their_counts() -> None:
    alive = process(2, (NOW, 10, 3, 0, 6))
    exited = {"n": 100.0, "open": 50.0, "away": 1.0, "pending": 4.0}
    assert combine([alive], exited, KINDS, 0) == [110, 3, 0, 6]


def test_unknown_values_stay_unknown() -> None:
    alive = process(1, (NOW, 1, 1, 0, math.nan))
    assert combine([alive], {}, KINDS, 0) == [1, 1, 0, None]
    older = process(2, (NOW, 4.0), series=["n"])
    assert combine([older], {}, KINDS, 0) == [4, 0, None, None]
    assert combine([], {"n": 3.0}, KINDS, 0) == [3, 0, None, None]
