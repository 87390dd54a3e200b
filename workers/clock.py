"""One clock for all nodes: the database's, followed from the local one.

The store measures the difference now and then (`workers.maintenance` asks it to), everything that
stamps or expires a message asks `DatabaseClock.now_ms`. Between two measurements time is counted by
a clock that nobody sets: the wall clock may be set forward or back at any time.
"""

import time
from collections.abc import Callable

#: A wall clock that is this much off the steady one was set since the last measurement, in ms.
STEP_MS = 100.0
_READINGS = 3


def _read_boot_time() -> float:
    """The seconds since the machine was started, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _find_steady() -> Callable[[], float]:
    """The clock that nobody sets: one that goes on while the machine sleeps, if there is one."""
    try:
        _read_boot_time()
    except (AttributeError, OSError):
        return time.monotonic
    return _read_boot_time


class DatabaseClock:
    """Local time, corrected by the measured offset to the database's clock."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] | None = None
    ) -> None:
        self._wall = wall
        self._steady = _find_steady() if steady is None else steady
        self._is_doubted = False
        self._offset_ms = 0.0
        # The wall clock minus the steady one when they were last compared.
        self._base_ms = self._compare_ms()
        self._ahead_ms = self._base_ms

    @property
    def offset_ms(self) -> float:
        """Database time minus local time, in milliseconds; 0 while the two agree."""
        return self._offset_ms

    @property
    def is_doubtful(self) -> bool:
        """Whether to measure at once: a clock was set, or its reading did not fit."""
        if self._is_doubted:
            return True
        if abs((self._wall() - self._steady()) * 1000 - self._base_ms) <= STEP_MS:
            return False
        # A pause between those two readings looks like a step: looked at more closely.
        return abs(self._compare_ms() - self._base_ms) > STEP_MS

    def mark_suspect(self) -> None:
        """Have the clocks compared soon: the database judged a time otherwise than was expected."""
        self._is_doubted = True

    def local_ms(self) -> float:
        """The local time, uncorrected: the wall clock's, had it not been set since."""
        return self._steady() * 1000 + self._base_ms

    def now_ms(self) -> int:
        """The database's time, in whole milliseconds since 1970."""
        return int(self._steady() * 1000 + self._ahead_ms)

    def observe(self, sent_ms: float, database_ms: float, received_ms: float) -> None:
        """Take one measurement: the database said `database_ms` between `sent` and `received`.

        The database's clock is read to the whole millisecond, so the offset lies somewhere in
        an interval. While zero lies in it too, the clocks are taken to agree: nodes that are
        kept in step by NTP then all use the same time, free of each one's measuring error,
        and the ids of sequential posts through different nodes stay in order. Else the offset
        stays what it was while that is in the interval, which is long if the loop was held up.
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
        """The wall clock minus the steady one, by the reading that was interrupted the least."""
        readings: list[tuple[float, float]] = []
        for _ in range(_READINGS):
            before = self._steady()
            wall = self._wall()
            after = self._steady()
            readings.append((after - before, wall - (before + after) / 2))
        return min(readings)[1] * 1000
