"""The change stream of the simulation. It ends with the term of the primary."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from tests.faults.simulated_replica_set import Database
from workers.errors import StoreUnavailable
from workers.store.base import (
    Arrivals,
)

#: Seconds for which the database holds a change stream's request open.
_HOLD_S = 1.0


class SimulatedArrivals:
    """A change stream. It ends with the primary's term."""

    def __init__(
        self,
        database: Database,
        reach: Callable[[], Awaitable[None]],
        usernames: Collection[str] | None,
    ) -> None:
        self._database = database
        self._reach = reach
        self._usernames = usernames
        self._term = database.term
        self._is_closed = False
        self.position = len(database.arrivals)

    async def next(self) -> Arrivals | None:
        database, began = self._database, self.position
        with suppress(TimeoutError):
            async with asyncio.timeout(_HOLD_S):
                await database.arrival_after(began)
        await self._reach()
        if self._is_closed:
            return None
        if database.term != self._term:
            raise StoreUnavailable("another became primary")
        told = database.arrivals[began:]
        self.position = len(database.arrivals)
        names = {name for name in told if name is not None}
        if self._usernames is not None:
            names &= {*self._usernames}
        # Sorted, so that a seed gives the same order again.
        return Arrivals(sorted(names), None in told)

    async def close(self) -> None:
        self._is_closed = True
