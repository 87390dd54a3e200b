"""Wakes waiters when messages arrive that this process did not store itself.

The database reports arrivals through a change stream, which is read only while somebody waits, and
which reports only the inboxes that somebody waits for. When a read begins to wait for another
inbox, another stream takes over; its inbox is searched once, since the message may be there by
then. A periodic search is the safety net: it finds what the change stream missed, and is all that
there is if the database has no change streams. Both methods are jobs of `workers.maintenance`.
"""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from workers.engine import Engine
from workers.errors import ServiceError
from workers.store.base import ArrivalStream
from workers.watched_inboxes import WatchedInboxes

#: Seconds between two searches for messages that somebody waits for: while the change stream is
#: read, and while it is not. The latter is also the shortest time between two searches.
SEARCH_EVERY_S = (5.0, 1.0)
#: Most inboxes that one search counts.
_INBOXES_MAX = 1000
#: How often the listener looks who is waiting, in seconds.
LOOK_EVERY_S = 1.0


class ArrivalListener:
    """Listens for arrivals on behalf of one pool's waiters."""

    def __init__(self, engine: Engine) -> None:
        self._store = engine.store
        self._clock = engine.clock
        self._waiters = engine.waiters
        # Whether the change stream is being read.
        self._is_listening = False
        # Set when the database reports an arrival without its inbox.
        self._is_any = asyncio.Event()

    async def listen(self) -> None:
        """Wait for a waiter, then wake waiters as the database reports arrivals.

        Returns when nobody has waited for a while.

        Raises what `Store.arrivals` raises; the caller calls again.
        """
        await self._waiters.not_empty.wait()
        loop = asyncio.get_running_loop()
        watched = WatchedInboxes(self._waiters)
        # The open streams and their readers: the last one, and those that it replaced, until their
        # last request is answered.
        streams: dict[asyncio.Task[ServiceError | None], ArrivalStream] = {}
        stream: ArrivalStream | None = None
        try:
            while (usernames := watched.choose(loop.time())) is None or usernames:
                unreported = self._waiters.unreported()
                # A read that begins to wait from here on is for the next stream.
                self._waiters.set_reported(usernames)
                replaced, stream = stream, await self._store.arrivals(usernames, stream)
                reading = asyncio.create_task(self._read(stream))
                streams = {task: each for task, each in streams.items() if not task.done()}
                streams[reading] = stream
                self._is_listening = True
                if usernames is None:
                    self._waiters.record_any()
                await self._search(unreported)
                if replaced is not None:
                    await replaced.close()
                await self._until_due(watched, reading)
        except BaseException:
            for reading in streams:
                reading.cancel()
            raise
        finally:
            self._is_listening = False
            self._waiters.set_reported(())
            await asyncio.gather(*(each.close() for each in streams.values()))
            await asyncio.gather(*streams, return_exceptions=True)

    async def _read(self, stream: ArrivalStream) -> ServiceError | None:
        """Wake waiters until the stream ends. Returns its error, or None if it was closed."""
        try:
            while (arrivals := await stream.next()) is not None:
                self._waiters.wake(arrivals.usernames)
                if arrivals.is_any:
                    self._waiters.record_any()
                    self._is_any.set()
        except ServiceError as error:
            return error
        return None

    async def _until_due(
        self, watched: WatchedInboxes, reading: asyncio.Task[ServiceError | None]
    ) -> None:
        """Wait until another stream has to be opened. Raises the error of the one that is read."""
        loop = asyncio.get_running_loop()
        while not watched.is_due(loop.time()):
            await asyncio.sleep(watched.may_open(loop.time()))
            appeared = asyncio.create_task(self._waiters.has_unreported.wait())
            try:
                await asyncio.wait(
                    (reading, appeared),
                    timeout=LOOK_EVERY_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                appeared.cancel()
            if reading.done() and (error := reading.result()) is not None:
                raise error

    async def search(self) -> None:
        """Wait for a waiter, then search once. While the change stream is being read, pause first.

        This bounds how long a waiter can miss a stored message, however arrivals are reported.
        """
        await self._waiters.not_empty.wait()
        if self._is_listening:
            with suppress(TimeoutError):
                async with asyncio.timeout(SEARCH_EVERY_S[0] - SEARCH_EVERY_S[1]):
                    await self._is_any.wait()
        self._is_any.clear()
        await self._search(self._waiters.usernames())

    async def _search(self, usernames: Collection[str]) -> None:
        """Wake the waiters whose inboxes hold unread messages."""
        wanted = list(usernames)
        for start in range(0, len(wanted), _INBOXES_MAX):
            some = wanted[start : start + _INBOXES_MAX]
            self._waiters.wake(await self._store.count_unread(some, self._clock.now_ms()))
