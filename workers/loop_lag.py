"""Measures how long the event loop was blocked.

A timeout that a blocked loop explains says nothing about the database. `workers.maintenance` calls
`tick` as often as the loop allows, except while the process is idle; `workers.circuit_breaker`
reads the result.
"""

import asyncio
import math
from typing import NamedTuple

#: A tick may be this late before the loop counts as blocked, in seconds.
GRACE_S = 0.05
#: The loop delayed an operation if it was blocked for more than this share of the operation's time.
#: A database that answers in milliseconds misses a deadline only if the share is close to 1.
SHARE = 0.5


class Mark(NamedTuple):
    """A point in time, and the total time for which the loop had been blocked, in seconds."""

    at: float
    blocked_s: float


class LoopLag:
    """Adds up the time for which the loop was blocked."""

    def __init__(self, every_s: float) -> None:
        """`every_s` is the pause between two ticks of an idle loop, in seconds."""
        self._due_s = every_s + GRACE_S
        self._last = math.inf
        self._blocked_s = 0.0

    def tick(self) -> None:
        """Record that the loop is running."""
        now = _now()
        self._blocked_s = self._blocked_until(now)
        self._last = now

    def rest(self) -> None:
        """Record that no tick is due until the next one. Call it if nothing is being measured."""
        self._last = math.inf

    def mark(self) -> Mark:
        """Return a mark for the start of an operation."""
        now = _now()
        return Mark(now, self._blocked_until(now))

    def was_blocked_since(self, mark: Mark) -> bool:
        """Return whether the loop was blocked for most of the time since the mark."""
        now = _now()
        return self._blocked_until(now) - mark.blocked_s > SHARE * (now - mark.at)

    def _blocked_until(self, now: float) -> float:
        # An overdue tick counts, too: a timeout may be processed before the next tick.
        return self._blocked_s + max(now - self._last - self._due_s, 0.0)


def _now() -> float:
    return asyncio.get_running_loop().time()
