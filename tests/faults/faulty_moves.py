"""Dead letters in the simulation: the three steps of a move, each of which fails like any write.

See `workers.store.moves`. A leader may die, or give up, between any two of them. Others, and late
copies, may carry out any of them at the same time.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tests.faults.faulty_calls import FaultyCalls
from tests.faults.simulated_replica_set import Database
from workers.errors import OutcomeUnknown, ServiceError
from workers.ids import IdSource
from workers.routing import route_of


class Moved(NamedTuple):
    """The dead-letter inboxes of a sweep, and how many messages it moved."""

    inboxes: Sequence[str]
    messages: int


class FaultyMoves(FaultyCalls):
    """The moves of exhausted messages."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._copy_ids = IdSource(database.rng.randbytes)

    async def _move(self, now_ms: int) -> Moved:
        """Move exhausted messages. What fails stays for the next sweep."""
        database = self._database
        ids = sorted(database.moving(now_ms))
        if not ids:
            return Moved((), 0)
        try:
            await self._mark_dead(ids, now_ms)
            marked = await self._seen(lambda: self._marked_of(ids))
            await self._write(lambda some: database.copy_dead(some, now_ms), marked)
            inboxes = [
                stored.death.inbox for stored in database.of(marked) if stored.death is not None
            ]
            return Moved(inboxes, await self._end_dead(marked))
        except ServiceError:
            return Moved((), 0)

    async def _mark_dead(self, ids: Sequence[str], now_ms: int) -> None:
        database = self._database
        # Chosen before the write is sent: its copies mark with the same ids.
        copies = [(each, self.new_copy_id(each, now_ms)) for each in ids]
        await self._write(lambda some: database.mark_dead(some, now_ms), copies)

    def new_copy_id(self, message_id: str, now_ms: int) -> str:
        """Return the id of a dead letter to be."""
        username = self._database.documents[message_id].post.username
        inbox = self._database.dead_letters.inbox_of(username)
        return self._copy_ids.next(now_ms, route_of(inbox))

    def _marked_of(self, ids: Sequence[str]) -> list[str]:
        return [
            stored.post.id
            for stored in self._database.of(ids)
            if stored.death is not None and stored.until_ms is not None
        ]

    async def _end_dead(self, ids: Sequence[str]) -> int:
        database, mark = self._database, self._token()
        try:
            return await self._write(lambda some: database.end_dead(some, mark), ids)
        except OutcomeUnknown:
            self._note_unresolved(
                "dead",
                lambda stored: stored.death is not None and stored.mark == mark,
                lambda: database.void(mark, ids),
            )
            raise
