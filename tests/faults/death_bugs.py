"""Seeded bugs of dead letters: lost, duplicated, mortal, or miscounted."""

from collections.abc import Sequence

from msgspec.structs import replace

from tests.faults.faulty_store import SimulatedStore
from tests.faults.seeded_bugs import bug
from tests.faults.simulated_replica_set import Database
from tests.support.documents import Stored
from workers.commands import Claim, DiscardedClaims, Release
from workers.store.base import Settled

#: The steps of schedules in which many messages die.
DEADLY = {
    "post": 3,
    "lease": 4,
    "abandoned lease": 2,
    "read": 1,
    "dead letter lease": 2,
    "dead letter read": 1,
    "track": 1,
    "kill": 1,
}


class StaysInItsInbox(Database):
    """Copies a message without ending it."""

    def end_dead(self, ids: Sequence[str], mark: str) -> int:
        ended = super().end_dead(ids, mark)
        for stored in self.of(ids):
            if stored.death is not None and stored.mark == mark:
                self.change(stored, unread=True, death=None, until_ms=None)
        return ended


class LosesLifetime(Database):
    def copy_dead(self, ids: Sequence[str], now_ms: int) -> None:
        super().copy_dead(ids, now_ms - 3_600_000)


class MovesUnderNewIds(SimulatedStore):
    """Chooses the id of the copy for each attempt."""

    async def _mark_dead(self, ids: Sequence[str], now_ms: int) -> None:
        await super()._mark_dead(ids, now_ms)
        for stored in self._database.of(ids):
            if stored.death is not None and stored.until_ms is not None:
                new = self.new_copy_id(stored.post.id, now_ms)
                self._database.change(stored, death=stored.death._replace(id=new))


class CountsDeathsTwice(Database):
    def end_dead(self, ids: Sequence[str], mark: str) -> int:
        return 2 * super().end_dead(ids, mark)


class EndsBeforeCopying(SimulatedStore):
    """Ends messages first, so that one dies for good with the node."""

    async def _mark_dead(self, ids: Sequence[str], now_ms: int) -> None:
        await super()._mark_dead(ids, now_ms)
        for stored in self._database.of(ids):
            if stored.death is not None and self._rng.random() < 0.3:
                self._database.change(stored, until_ms=None)


class ReleaseIgnoresLimit(Database):
    def release(self, command: Release, now_ms: int) -> Settled:
        mine = [each for each in self._of_lease(command) if (each.until_ms or 0) >= now_ms]
        for stored in mine:
            self.change(stored, unread=True, until_ms=None, returned=True)
        return Settled(len(mine), len(mine))


class IgnoresLimit(Database):
    def is_exhausted(self, stored: Stored) -> bool:
        return False


class DiesOneTooSoon(Database):
    def is_exhausted(self, stored: Stored) -> bool:
        most = self.dead_letters.max_deliveries
        return most > 0 and stored.origin is None and stored.deliveries >= most - 1


class UnclaimKeepsDelivery(Database):
    def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        before = {stored.post.id: stored.deliveries for stored in self.of(ids)}
        changed = super().unclaim(claim, ids)
        for stored in self.of(ids):
            self.change(stored, deliveries=before[stored.post.id])
        return changed


class UndoesDeliveryOfAnotherLease(Database):
    """Lowers the count of messages that are in another lease by then."""

    def release(self, command: Release, now_ms: int) -> Settled:
        settled = super().release(command, now_ms)
        for stored in self.of(command.ids or ()):
            is_other = not stored.lease.startswith(command.lease + ".")
            if not command.is_delivered and is_other and stored.until_ms is not None:
                self.change(stored, deliveries=stored.deliveries - 1)
        return settled


class UndoesDeliveryAgain(Database):
    """Lowers the count with each repeat of a release."""

    def release(self, command: Release, now_ms: int) -> Settled:
        over = [each for each in self._of_lease(command) if each.unread and each.returned]
        settled = super().release(command, now_ms)
        for stored in over:
            if not command.is_delivered:
                self.change(stored, deliveries=stored.deliveries - 1)
        return settled


class CountsWhatWasNotDelivered(Database):
    def release(self, command: Release, now_ms: int) -> Settled:
        return super().release(replace(command, is_delivered=True), now_ms)


DEATH_BUGS = tuple(
    bug(what, *kinds)._replace(steps=DEADLY)
    for what, kinds in (
        (StaysInItsInbox, ["duplicated", "overdelivered"]),
        (LosesLifetime, ["lost"]),
        (MovesUnderNewIds, ["duplicated"]),
        (CountsDeathsTwice, ["unaccounted"]),
        (EndsBeforeCopying, ["lost"]),
        (ReleaseIgnoresLimit, ["overdelivered"]),
        (IgnoresLimit, ["overdelivered"]),
        (DiesOneTooSoon, ["premature"]),
        (UnclaimKeepsDelivery, ["miscounted", "premature"]),
        (UndoesDeliveryOfAnotherLease, ["miscounted", "overdelivered"]),
        (UndoesDeliveryAgain, ["miscounted", "overdelivered"]),
        (CountsWhatWasNotDelivered, ["miscounted", "premature"]),
    )
)
