"""The growing pause before something that died is started again.

Used for shards by `workers.pool`, for mongod by `workers.mongod.embedded`, and for processes by the
supervisor.
"""

import asyncio


class Backoff:
    """A pause that doubles each time, up to a limit."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        #: The next pause, in seconds.
        self.pause_s = first_s

    def observe_lifetime(self, seconds: float) -> None:
        """Start over if what died had lived for longer than the longest pause."""
        if seconds > self._longest_s:
            self.pause_s = self._first_s

    async def wait(self) -> None:
        """Pause, then double the next pause."""
        await asyncio.sleep(self.pause_s)
        self.pause_s = min(self.pause_s * 2, self._longest_s)
