"""How a node of the simulation reaches its database, and how its calls fail.

A call fails before the database has applied it, after that, or in the middle. It hangs, or takes
effect long after it was abandoned. One seed determines all of it.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from tests.faults.simulated_replica_set import Database
from tests.support.documents import Stored
from workers.errors import OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store.base import (
    CountedEvent,
    Settled,
)
from workers.store.expiry import AHEAD_S, UnsearchedTimes

T = TypeVar("T")
R = TypeVar("R")

#: The longest time until an abandoned command takes effect, in seconds.
LATE_MAX_S = 3.0
_LATES_S = (0.2, 1, LATE_MAX_S)
#: The longest time that a command hangs before it is abandoned, in seconds.
HANG_MAX_S = 1.5
#: Sweeps leave out messages that expired less than this many ms ago, as in the real store.
MARGIN_MS = 1000
#: How many times a write is sent at most.
_TRIES = 3


class _UnresolvedWrite(NamedTuple):
    """What a write without an answer may have made of messages. It is final when it is due, and
    `close` was called.
    """

    fate: CountedEvent
    due: float
    is_affected: Callable[[Stored], bool]
    close: Callable[[], None]


class FaultyCalls:
    """A node's calls of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rng = database.rng
        self._unresolved: list[_UnresolvedWrite] = []
        self._unsearched = UnsearchedTimes(database.loop.time)

    async def _read(self, mark_read: Callable[[str], Settled]) -> Settled:
        """Mark messages as read under a new token, and count exactly the messages it took."""
        token = self._token()
        database = self._database

        def close() -> None:
            leased = [each for each, stored in database.documents.items() if stored.lease]
            database.void(token, leased)

        def count_later() -> None:
            self._note_unresolved("read", lambda stored: stored.token == token, close)

        try:
            settled, was_repeated = await self._once(lambda: mark_read(token))
        except OutcomeUnknown:
            count_later()
            raise
        if not was_repeated:
            return settled
        try:
            await self._write(lambda _: close(), [token])
            changed = await self._seen(
                lambda: sum(each.token == token for each in database.documents.values())
            )
        except ServiceError as error:
            count_later()
            raise OutcomeUnknown(str(error)) from error
        return settled._replace(changed=changed)

    async def _marked(self, mark: str, sweep: Callable[[], T]) -> T:
        """Run a sweep that marks expired messages."""
        try:
            return (await self._write(lambda part: [sweep() for _ in part], [mark]))[0]
        except OutcomeUnknown:
            self._note_unresolved("expired", lambda stored: stored.expired and stored.mark == mark)
            raise

    @contextmanager
    def _may_return(self, from_ms: int) -> Iterator[None]:
        """Make `expire` search for messages that the block makes unread, now or later."""
        for_s = LATE_MAX_S
        try:
            yield
            for_s = AHEAD_S
        finally:
            self._unsearched.add(from_ms, for_s)

    def _note_unresolved(
        self,
        fate: CountedEvent,
        is_affected: Callable[[Stored], bool],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        due = self._database.loop.time() + LATE_MAX_S
        self._unresolved.append(_UnresolvedWrite(fate, due, is_affected, close))

    def _token(self) -> str:
        return self._rng.randbytes(8).hex()

    async def _reach(self, *, needs_majority: bool = True) -> None:
        """Reach the database. This takes time and may fail before anything is applied."""
        await asyncio.sleep(self._rng.choice((0.0005, 0.001, 0.003, 0.02)))
        database = self._database
        is_away = needs_majority or not database.is_cut_off
        if is_away and database.loop.time() < database.unavailable_until:
            await asyncio.sleep(self._rng.choice((0.01, 0.2)))
            raise StoreUnavailable("the database is unavailable")
        if self._rng.random() < database.fault_rate / 20:
            raise StoreUnavailable("the database was not reached")

    async def _return(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0005, 0.001, 0.003)))

    async def _seen(self, look: Callable[[], T]) -> T:
        """Read the data that a majority has."""
        await self._reach()
        with self._database.majority():
            seen = look()
        await self._return()
        return seen

    def _gives_up(self, tries: int) -> bool:
        return tries == _TRIES or self._rng.random() < 0.5

    async def _once(self, apply: Callable[[], T]) -> tuple[T, bool]:
        """Run a write of one item like `_confirmed`."""
        results, was_repeated = await self._confirmed(lambda part: [apply() for _ in part], [None])
        return results[0], was_repeated

    async def _confirmed(
        self, apply: Callable[[Sequence[T]], R], items: Sequence[T]
    ) -> tuple[R, bool]:
        """Send a write until it is answered. Return its result, and whether it was sent again."""
        tries = 0
        while True:
            tries += 1
            try:
                return await self._write(apply, items), tries > 1
            except ServiceError as error:
                if tries == 1 and isinstance(error, StoreUnavailable):
                    raise
                if self._gives_up(tries):
                    raise OutcomeUnknown("the write was not confirmed") from error

    async def _write(self, apply: Callable[[Sequence[T]], R], items: Sequence[T]) -> R:
        """Apply a write, and wait for its majority."""
        await self._reach()
        database, rng = self._database, self._rng
        fault = ""
        if rng.random() < database.fault_rate:
            fault = rng.choice(("before", "after", "part", "hang", "late"))
        if fault == "before":
            raise OutcomeUnknown("the connection broke")
        if fault == "late":
            # The command lies in a buffer: abandoned by the caller, and applied some time later.
            database.loop.call_later(rng.choice(_LATES_S) * rng.random(), apply, items)
            await asyncio.sleep(rng.choice((0.01, 0.3)))
            raise OutcomeUnknown("no answer")
        result = apply(items[: rng.randint(0, len(items))] if fault == "part" else items)
        position, term = database.position, database.term
        if fault == "hang":
            await asyncio.sleep(rng.uniform(0, HANG_MAX_S))
            raise OutcomeUnknown("no answer")
        await self._return()
        if database.term != term:
            raise OutcomeUnknown("another became primary")
        # Everything before it in the log is confirmed with it.
        database.confirm(position)
        if fault:
            raise OutcomeUnknown("the answer was lost")
        await self._return()
        return result
