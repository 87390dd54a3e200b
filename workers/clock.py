"""One clock for all nodes: the database's clock, derived from the local one.

`workers.maintenance` makes the store measure the difference from time to time. All code that
creates or expires a message calls `DatabaseClock.now_ms`. Between two measurements time is counted
by a steady clock, since the wall clock may be set forward or back at any time.
"""

import time
from collections.abc import Callable

#: If the wall clock has moved this much against the steady one, in ms, somebody set it.
STEP_MS = 100.0
_READINGS = 3


def _read_boot_time() -> float:
    """Return the seconds since the machine was started, including time spent asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _find_steady() -> Callable[[], float]:
    """Return a clock that cannot be set, and preferably one that runs while the machine sleeps."""
    try:
        _read_boot_time()
    except (AttributeError, OSError):
        return time.monotonic
    return _read_boot_time


class DatabaseClock:
    """Local time, corrected by the measured offset from the database's clock."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] | None = None
    ) -> None:
        self._wall = wall
        self._steady = _find_steady() if steady is None else steady
        self._is_doubted = False
        self._offset_ms = 0.0
        # The wall clock minus the steady one at the last measurement.
        self._base_ms = self._compare_ms()
        self._ahead_ms = self._base_ms

    @property
    def offset_ms(self) -> float:
        """Database time minus local time, in milliseconds. 0 while the clocks agree."""
        return self._offset_ms

    @property
    def is_doubtful(self) -> bool:
        """Whether to measure at once, because a clock was set or a reading did not fit."""
        if self._is_doubted:
            return True
        if abs((self._wall() - self._steady()) * 1000 - self._base_ms) <= STEP_MS:
            return False
        # A pause between the two readings looks like a step, so take a more precise reading.
        return abs(self._compare_ms() - self._base_ms) > STEP_MS

    def mark_suspect(self) -> None:
        """Request a comparison of the clocks: the database disagreed about a time."""
        self._is_doubted = True

    def local_ms(self) -> float:
        """Return the uncorrected local time, ignoring changes to the wall clock since then."""
        return self._steady() * 1000 + self._base_ms

    def steady_s(self) -> float:
        """Return the seconds since any moment, by a clock that nobody can set."""
        return self._steady()

    def now_ms(self) -> int:
        """Return the database's time, in whole milliseconds since 1970."""
        return int(self._steady() * 1000 + self._ahead_ms)

    def observe(self, sent_ms: float, database_ms: float, received_ms: float) -> None:
        """Record one measurement: between `sent_ms` and `received_ms` the database's clock showed
        `database_ms`.

        The database reports whole milliseconds, so the offset is only known to lie in an interval.
        If that interval contains 0, the clocks are taken to agree. Nodes that NTP keeps in step
        then all use the same time, free of each node's measuring error, and the ids of sequential
        posts through different nodes stay in order. Otherwise the previous offset is kept as long
        as it lies in the interval, which is wide if the loop was blocked.
        """
        base_ms = self._compare_ms()
        moved_ms = base_ms - self._base_ms
        lowest = database_ms - (received_ms + moved_ms)
        highest = database_ms + 1 - (sent_ms + moved_ms)
        offset_ms = self._offset_ms - moved_ms
        if lowest <= 0 <= highest:
            offset_ms = 0.0
        elif not lowest <= offset_ms <= highest:
            offset_ms = (lowest + highest) / 2
        self._base_ms, self._offset_ms = base_ms, offset_ms
        self._ahead_ms = base_ms + offset_ms
        self._is_doubted = False

    def _compare_ms(self) -> float:
        """Return the wall clock minus the steady one, from the reading that took the least time."""
        readings: list[tuple[float, float]] = []
        for _ in range(_READINGS):
            before = self._steady()
            wall = self._wall()
            after = self._steady()
            readings.append((after - before, wall - (before + after) / 2))
        return min(readings)[1] * 1000
