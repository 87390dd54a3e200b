"""The number of pending messages in the database.

Only the leader counts them. It publishes the figure with its lease, so that every node reports the
same number in its metrics.
"""

import asyncio
import math
from contextlib import suppress

from workers.engine import Engine
from workers.errors import ServiceError
from workers.leadership import Leadership
from workers.store.base import PendingCount

#: The shortest time between two counts of the pending messages, in seconds.
PENDING_EVERY_S = 10.0
#: A published count holds until the next one is this late, in seconds: a new leader needs time.
_LATE_S = 15.0


class PendingCounter:
    """Counts the pending messages while this process leads, and reports the fleet's count."""

    def __init__(self, engine: Engine, leadership: Leadership) -> None:
        self._store = engine.store
        self._clock = engine.clock
        self._metrics = engine.metrics
        self._breaker = engine.breaker
        self._leadership = leadership
        # Requests a count at once; and how long the last count took.
        self._recount = asyncio.Event()
        self._counted_in_s = math.inf
        # The last count of this process while it leads, or None.
        self._own: PendingCount | None = None
        # No count from before this time on the steady clock is valid.
        self._valid_from_s = -math.inf
        self._was_away = False
        #: Set once the number was counted, or another node leads and counts.
        self.is_settled = asyncio.Event()
        self._metrics.pending.set(math.nan)

    def recount(self) -> None:
        """Count at once if this process leads: it begins to, or the database is back."""
        self._recount.set()

    def watch(self) -> None:
        """Notice that the database is unavailable. Earlier counts do not say what it holds then."""
        is_away = self._breaker.is_open
        if is_away and not self._was_away:
            self._valid_from_s = self._clock.steady_s()
        self._was_away = is_away

    def report(self) -> None:
        """Set the metric to the last valid count of the fleet."""
        seen, count = self._leadership.seen, self._own
        if not self._leadership.has_lease.is_set():
            count = self._own = None
            if seen is not None:
                self.is_settled.set()
        if count is None and seen is not None:
            count = seen.pending
        # While the breaker is open, it has set the metric.
        if not self._breaker.is_open:
            self._metrics.pending.set(math.nan if count is None else self._valid(count))

    async def count(self) -> None:
        """Count if this process leads, then pause: not as long if there is a reason to recount."""
        await self._leadership.has_lease.wait()
        if not self._leadership.leads:
            return
        self._recount.clear()
        pause_s = PENDING_EVERY_S
        with suppress(ServiceError):
            pause_s = max(await self._count_once(), PENDING_EVERY_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._recount.wait()

    async def _count_once(self) -> float:
        """Count the pending messages. Returns the pause until the next count, in seconds.

        A count that began before the database was unavailable is cancelled, since its connection
        may be dead.
        """
        loop = asyncio.get_running_loop()
        began, began_ms = loop.time(), self._clock.now_ms()
        counting = asyncio.create_task(self._store.count_pending())
        recounting = asyncio.create_task(self._recount.wait())
        try:
            await asyncio.wait((counting, recounting), return_when=asyncio.FIRST_COMPLETED)
            if not counting.done():
                return 0.0
            messages = counting.result()
        except ServiceError:
            self._publish(PendingCount(None, began_ms, began_ms))
            raise
        finally:
            counting.cancel()
            recounting.cancel()
            await asyncio.gather(counting, recounting, return_exceptions=True)
        # Use the faster of the last two counts: a single stall says nothing about the next one.
        took_s = loop.time() - began
        quicker_s, self._counted_in_s = min(took_s, self._counted_in_s), took_s
        pause_s = pause_after_count(quicker_s)
        valid_s = max(pause_s, PENDING_EVERY_S) + 2 * took_s + _LATE_S
        self._publish(PendingCount(messages, began_ms, began_ms + int(valid_s * 1000)))
        self.is_settled.set()
        return pause_s

    def _publish(self, count: PendingCount) -> None:
        self._own = count
        self._leadership.publish(count)
        self.report()

    def _valid(self, count: PendingCount) -> float:
        """Return the number of a count, or NaN if it is no longer valid."""
        now_ms = self._clock.now_ms()
        counted_s = self._clock.steady_s() - (now_ms - count.counted_ms) / 1000
        if count.messages is None or now_ms >= count.valid_until_ms:
            return math.nan
        return count.messages if counted_s >= self._valid_from_s else math.nan


def pause_after_count(seconds: float) -> float:
    """Return the pause after a count that took so many seconds, in seconds.

    Counting may take 1% of the time. If the figure would then be more than a minute old, it may
    take 10%, so that one stalled count does not leave an old figure for long.
    """
    return max(min(100 * seconds, 60.0), 10 * seconds)
