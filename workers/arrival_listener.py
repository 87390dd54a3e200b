"""Wakes waiters when messages arrive that this process did not store itself.

The database reports arrivals through a change stream, which is read only while somebody waits. A
periodic search is the safety net: it finds what the change stream missed, and is all that there is
if the database has no change streams. Both methods are jobs of `workers.maintenance`.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import cast

from workers.engine import Engine

#: Seconds between two searches for messages that somebody waits for: while the change stream is
#: read, and while it is not.
SEARCH_EVERY_S = (5.0, 1.0)
#: Most inboxes that one search counts.
_INBOXES_MAX = 1000
#: The change stream is closed when nobody has waited for this long, in seconds.
LISTEN_ON_S = 10.0


class ArrivalListener:
    """Listens for arrivals on behalf of one pool's waiters."""

    def __init__(self, engine: Engine) -> None:
        self._store = engine.store
        self._clock = engine.clock
        self._waiters = engine.waiters
        # Whether the change stream is being read.
        self._is_listening = False

    async def listen(self) -> None:
        """Wait for a waiter, then wake waiters as the database reports arrivals.

        Returns when nobody has waited for `LISTEN_ON_S`.

        Raises what `Store.arrivals` raises; the caller calls again.
        """
        await self._waiters.not_empty.wait()
        loop = asyncio.get_running_loop()
        last_needed = loop.time()
        stream = cast(AsyncGenerator[Collection[str] | None, None], self._store.arrivals())
        async with aclosing(stream) as arrivals:
            try:
                async for usernames in arrivals:
                    if usernames is None:
                        self._waiters.record_any()
                        self._is_listening = True
                        await self._search()
                    else:
                        self._waiters.wake(usernames)
                    now = loop.time()
                    if self._waiters.count:
                        last_needed = now
                    elif now - last_needed > LISTEN_ON_S:
                        return
            finally:
                self._is_listening = False

    async def search(self) -> None:
        """Wait for a waiter, then search once. Pause afterwards if the change stream is being read.

        This bounds how long a waiter can miss a stored message, however arrivals are reported.
        """
        await self._waiters.not_empty.wait()
        await self._search()
        if self._is_listening:
            await asyncio.sleep(SEARCH_EVERY_S[0] - SEARCH_EVERY_S[1])

    async def _search(self) -> None:
        """Wake the waiters whose inboxes hold unread messages."""
        usernames = list(self._waiters.usernames())
        for start in range(0, len(usernames), _INBOXES_MAX):
            some = usernames[start : start + _INBOXES_MAX]
            self._waiters.wake(await self._store.count_unread(some, self._clock.now_ms()))
