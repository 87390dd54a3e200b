"""Message ids sort by time, and all nodes share one clock."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.clock import DatabaseClock
from workers.ids import IdSource, last_id_of, route_in
from workers.routing import ROUTE_MAX, route_of, shard_of


@given(st.lists(st.integers(0, 2**44), min_size=2, max_size=50))
def test_ids_increase_even_if_the_clock_steps_back(times: list[int]) -> None:
    source = IdSource()
    ids = [source.next(now_ms, 7) for now_ms in times]
    assert ids == sorted(set(ids))
    assert {len(each) for each in ids} == {32}


def test_ids_of_scheduled_messages_sort_by_their_time() -> None:
    source = IdSource()
    times = [1000, 3000, 2000, 2000, 3000]
    ids = [source.scheduled(due_ms, 5) for due_ms in times]
    assert sorted(ids) == [ids[0], ids[2], ids[3], ids[1], ids[4]]
    assert [int(each[:12], 16) for each in ids] == times
    assert {route_in(each) for each in ids} == {5}


def test_equal_delays_keep_the_order_of_their_posts() -> None:
    source = IdSource()
    # More than there are numbers in the sequence.
    ids = [source.scheduled(1000 + number // 50, 5) for number in range(100_000)]
    assert ids == sorted(ids)


def test_scheduled_messages_do_not_move_the_ids_of_others() -> None:
    source = IdSource()
    source.scheduled(99_000, 5)
    assert int(source.next(1000, 5)[:12], 16) == 1000


def test_surplus_ids_use_the_next_millisecond() -> None:
    source = IdSource(random_bytes=bytes)
    ids = [source.next(7, 7) for _ in range(70_000)]
    assert ids == sorted(set(ids))


def test_ids_of_two_processes_differ() -> None:
    one, other = IdSource(), IdSource()
    assert {one.next(5, 7) for _ in range(1000)}.isdisjoint({other.next(5, 7) for _ in range(1000)})


def test_no_id_of_a_millisecond_exceeds_its_last_id() -> None:
    source = IdSource(random_bytes=lambda size: b"\xff" * size)
    assert source.next(41, ROUTE_MAX) <= last_id_of(41) < source.next(42, 0)


@given(st.integers(0, 2**44), st.text())
def test_an_id_has_the_route_of_its_inbox(now_ms: int, username: str) -> None:
    source = IdSource()
    route = route_of(username)
    assert 0 <= route <= ROUTE_MAX
    assert [route_in(source.next(now_ms, route)) for _ in range(3)] == [route] * 3


@pytest.mark.parametrize(
    "no_route",
    [
        "018f6b1c2d3e0001" + "a" * 16,  # an id of an earlier version
        "018f6b1c2d3e7fff" + "a" * 16,
        "018f6b1c2d3e8000" + "a" * 15,
        "018f6b1c2d3e8000" + "a" * 17,
        "018f6b1c2d3e8000" + "x" * 16,
        "",
    ],
)
def test_an_id_without_a_route_is_recognized(no_route: str) -> None:
    assert route_in(no_route) is None


def test_a_clock_that_agrees_with_the_database_is_not_corrected() -> None:
    clock = DatabaseClock(wall=lambda: 1000.0, steady=lambda: 70.0)
    clock.observe(sent_ms=999_999.2, database_ms=999_999, received_ms=1_000_000.1)
    assert clock.offset_ms == 0
    assert clock.now_ms() == 1_000_000


def test_a_wrong_clock_is_corrected() -> None:
    clock = DatabaseClock(wall=lambda: 1000.0, steady=lambda: 70.0)
    clock.observe(sent_ms=1_000_000, database_ms=1_002_000, received_ms=1_000_001)
    assert abs(clock.offset_ms - 2000) <= 1
    assert abs(clock.now_ms() - 1_002_000) <= 1
    clock.observe(sent_ms=1_000_000, database_ms=998_000, received_ms=1_000_001)
    assert abs(clock.now_ms() - 998_000) <= 1


class Machine:
    """A machine with clocks that a test can set."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1_000_000.0, 70.0
        self.clock = DatabaseClock(lambda: self.wall_s, lambda: self.steady_s)

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds

    def measure(self, database_s: float) -> None:
        sent_ms = self.clock.local_ms()
        self.clock.observe(sent_ms, database_s * 1000, sent_ms + 0.5)


@given(st.floats(-1e6, 1e6), st.floats(-100, 100))
def test_setting_the_wall_clock_changes_no_time(step_s: float, offset_s: float) -> None:
    machine = Machine()
    machine.measure(1_000_000.0 + offset_s)
    before_ms = machine.clock.now_ms()
    machine.wall_s += step_s
    machine.passes(2.0)
    assert abs(machine.clock.now_ms() - before_ms - 2000) <= 1
    machine.measure(1_000_000.0 + offset_s + 2.0)
    assert abs(machine.clock.now_ms() - before_ms - 2000) <= 2
    assert abs(machine.clock.offset_ms - (offset_s - step_s) * 1000) <= 2


def test_a_set_wall_clock_requests_a_measurement() -> None:
    machine = Machine()
    machine.passes(3600.0)
    assert not machine.clock.is_doubtful
    machine.wall_s += 0.5
    assert machine.clock.is_doubtful
    machine.measure(1_003_600.0)
    assert not machine.clock.is_doubtful
    assert abs(machine.clock.offset_ms + 500) <= 2


def test_a_set_database_clock_is_followed() -> None:
    machine = Machine()
    machine.measure(1_000_000.0)
    machine.clock.mark_suspect()
    assert machine.clock.is_doubtful
    machine.measure(1_000_060.0)
    assert abs(machine.clock.now_ms() - 1_000_060_000) <= 2
    assert not machine.clock.is_doubtful


def test_a_slow_measurement_keeps_a_good_offset() -> None:
    machine = Machine()
    machine.measure(1_000_060.0)
    before_ms = machine.clock.now_ms()
    sent_ms = machine.clock.local_ms()
    machine.clock.observe(sent_ms, 1_000_061_900, sent_ms + 2000)
    assert machine.clock.now_ms() == before_ms


def test_the_steady_clock_runs_while_the_machine_sleeps() -> None:
    steady_s = DatabaseClock()._steady()
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(steady_s - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


@given(st.text(max_size=20), st.integers(1, 64))
def test_an_inbox_has_one_shard(username: str, shards: int) -> None:
    name = username.encode("utf-8", "replace").decode()
    assert shard_of(name, shards) == shard_of(name, shards)
    assert 0 <= shard_of(name, shards) < shards


def test_an_inbox_has_the_same_shard_in_every_process() -> None:
    assert [shard_of(name, 8) for name in ("bob", "eve", "Zoë", "")] == [0, 6, 2, 0]


def test_the_route_of_an_inbox_never_changes() -> None:
    """It is stored in messages and ids, and other programs compute it, too."""
    assert [route_of(name) for name in ("bob", "eve", "Zoë", "")] == [62923, 62944, 26540, 0]
