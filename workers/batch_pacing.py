"""Decides how long a lane waits before its next batch, so that batches do not get small and many.

A batch costs the database about the same however few requests it has. A node that is not busy
would send one for nearly every request. So the time from the start of a batch to that of the next
one has a shortest length. It is zero for a node without load, and grows with the rate of requests
up to a setting.

A batch does not wait if nothing would come of it. If as many requests are open as usually are at
most, then their clients all wait for answers, and no further request is to be expected. This is so
for a lone client, and for any number of clients of which each waits for its answer. A batch that
has many requests does not wait either, since it is cheap for each.

Times are seconds on the event loop's clock.
"""

import asyncio
import math
from collections.abc import Callable

#: The rate of requests per second from which on batches have the longest interval.
FULL_RATE = 250.0
#: The rate is an average over about so many seconds.
_AVERAGE_S = 1.0
#: A batch with this share of the requests that are usually open does not wait, but fewer than `FEW`
#: are not sufficient, and `ENOUGH` always are.
SHARE, FEW, ENOUGH = 0.34, 8, 32
#: By which part the number of requests that are usually open is lowered after a wait.
_LOWERED = 0.25


class BatchPacing:
    """The pace of all lanes of a pool, and the requests that it depends on."""

    def __init__(self, longest_s: float, count_open: Callable[[], int]) -> None:
        """Batches wait at most `longest_s`. `count_open` returns how many requests are open: in a
        queue or in flight.
        """
        self._longest_s = longest_s
        self._count_open = count_open
        # How many requests were open at most lately.
        self._usual = 0.0
        self._rate = 0.0
        self._rated_at = -math.inf
        self._rated = 0
        #: The number of requests so far.
        self.arrivals = 0
        self._wake_at: float = math.inf
        self._sleepers: dict[asyncio.Future[bool], int] = {}

    def arrived(self) -> None:
        """Count a request that entered a queue."""
        self.arrivals += 1
        if self.arrivals >= self._wake_at:
            self._wake()

    async def wait(self, began: float, gathered: Callable[[], int]) -> None:
        """Wait until a lane may start a batch.

        Its last batch began at `began`, and its next one has `gathered()` requests so far.
        """
        if not self._longest_s:
            return
        loop = asyncio.get_running_loop()
        due = began + self.interval(loop.time())
        while (wait_s := due - loop.time()) > 0 and (missing := self.missing(gathered())):
            if not await self._sleep(missing, wait_s):
                self.waited()
                return

    def interval(self, now: float) -> float:
        """Return the shortest time between the starts of two batches of a lane."""
        passed_s = now - self._rated_at
        self._rate *= math.exp(-passed_s / _AVERAGE_S)
        self._rate += (self.arrivals - self._rated) / _AVERAGE_S
        self._rated_at, self._rated = now, self.arrivals
        return self._longest_s * min(self._rate / FULL_RATE, 1.0)

    def missing(self, gathered: int) -> int:
        """Return how many more requests are to be expected before a batch; 0 to start it now."""
        is_open = self._count_open()
        self._usual = max(self._usual, is_open)
        enough = min(max(int(self._usual * SHARE), FEW), ENOUGH)
        return max(min(int(self._usual) - is_open, enough - gathered), 0)

    def waited(self) -> None:
        """Note that the expected requests did not come."""
        self._usual -= (self._usual - self._count_open()) * _LOWERED

    async def _sleep(self, arrivals: int, wait_s: float) -> bool:
        """Wait for so many arrivals. Returns False after `wait_s` seconds."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(wait_s, _end, sleeper)
        self._sleepers[sleeper] = self.arrivals + arrivals
        self._wake_at = min(self._sleepers.values())
        try:
            return await sleeper
        finally:
            timer.cancel()
            del self._sleepers[sleeper]
            self._wake_at = min(self._sleepers.values(), default=math.inf)

    def _wake(self) -> None:
        for sleeper, wake_at in self._sleepers.items():
            if self.arrivals >= wake_at and not sleeper.done():
                sleeper.set_result(True)
        self._wake_at = min(
            (at for at in self._sleepers.values() if at > self.arrivals), default=math.inf
        )


def _end(sleeper: "asyncio.Future[bool]") -> None:
    if not sleeper.done():
        sleeper.set_result(False)
