"""How long the event loop did not turn: a timeout that this explains is not the database's.

`workers.maintenance` calls `tick` as often as the loop lets it; `workers.circuit_breaker` asks.
"""

import asyncio
import math
from typing import NamedTuple

#: How late a tick may be without the loop counting as held up, in seconds.
GRACE_S = 0.05
#: An operation was held up if the loop did not turn for this share of its time. A database that
#: answers in milliseconds is not heard in time only if that is nearly all of it.
SHARE = 0.5


class Mark(NamedTuple):
    """When an operation began, and how long the loop had been held up by then, in seconds."""

    at: float
    held_up_s: float


class LoopLag:
    """Adds up the time for which the loop did not turn."""

    def __init__(self, every_s: float) -> None:
        """`every_s` is the pause between two ticks of a loop that turns, in seconds."""
        self._due_s = every_s + GRACE_S
        self._last = math.inf
        self._held_up_s = 0.0

    def tick(self) -> None:
        """Take note that the loop turns."""
        now = _now()
        self._held_up_s = self._held_up_until(now)
        self._last = now

    def mark(self) -> Mark:
        """Mark the begin of an operation."""
        now = _now()
        return Mark(now, self._held_up_until(now))

    def was_blocked_since(self, mark: Mark) -> bool:
        """Whether the loop did not turn for too much of the time since then."""
        now = _now()
        return self._held_up_until(now) - mark.held_up_s > SHARE * (now - mark.at)

    def _held_up_until(self, now: float) -> float:
        # What has not ticked yet counts, too: a timeout may be heard of before the next tick.
        return self._held_up_s + max(now - self._last - self._due_s, 0.0)


def _now() -> float:
    return asyncio.get_running_loop().time()
