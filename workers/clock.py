"""One clock for all nodes: the database's, followed from the local one.

The store measures the difference now and then (`workers.pool` asks it to), everything that
stamps or expires a message asks `DatabaseClock.now_ms`.
"""

import time
from collections.abc import Callable


class DatabaseClock:
    """Local wall time, corrected by the measured offset to the database's clock."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._offset_ms = 0.0

    @property
    def offset_ms(self) -> float:
        """Database time minus local time, in milliseconds; 0 while the two agree."""
        return self._offset_ms

    def local_ms(self) -> float:
        """The local wall time, uncorrected."""
        return self._wall() * 1000

    def now_ms(self) -> int:
        """The database's time, in whole milliseconds since 1970."""
        return int(self._wall() * 1000 + self._offset_ms)

    def observe(self, sent_ms: float, database_ms: float, received_ms: float) -> None:
        """Take one measurement: the database said `database_ms` between `sent` and `received`.

        The database's clock is read to the whole millisecond, so the offset lies somewhere in
        an interval. While zero lies in it too, the clocks are taken to agree: nodes that are
        kept in step by NTP then all use the same time, free of each one's measuring error,
        and the ids of sequential posts through different nodes stay in order.
        """
        lowest, highest = database_ms - received_ms, database_ms + 1 - sent_ms
        self._offset_ms = 0.0 if lowest <= 0 <= highest else (lowest + highest) / 2
