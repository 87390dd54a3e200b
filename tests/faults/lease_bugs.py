"""Seeded bugs of leases and streams."""

from collections.abc import Collection, Sequence

from tests.faults.faulty_store import SimulatedStore
from tests.faults.seeded_bugs import bug
from tests.faults.simulated_clients import SimulatedClients
from tests.faults.simulated_replica_set import Database
from tests.support.documents import Stored
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    LeaseClaim,
    Post,
    Resume,
)
from workers.store.base import (
    Ended,
    Settled,
)


class AcknowledgesAfterLeaseEnd(Database):
    def acknowledge(self, command: Acknowledge, now_ms: int, token: str) -> Settled:
        pending = [stored for stored in self._of_lease(command) if stored.is_pending]
        return Settled(len(pending), self._read(pending, now_ms, token))


class AcknowledgesWithoutEffect(Database):
    def acknowledge(self, command: Acknowledge, now_ms: int, token: str) -> Settled:
        leased = [stored for stored in self._of_lease(command) if stored.until_ms is not None]
        return Settled(len(leased), len(leased))


class HidesLoss(SimulatedStore):
    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        return Audit()


class HidesLossOfRedeliveredMessage(Database):
    def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        audit = super().audit(command, now_ms)
        mine = {stored.post.id for stored in self._of_lease(command)}
        lost = tuple(each for each in audit.lost if each in mine)
        return Audit(audit.acknowledged if lost else (), lost)


class ReadsLeasedMessages(Database):
    def claim(self, claim: Claim, ids: Sequence[str]) -> None:
        if not isinstance(claim, LeaseClaim):
            for stored in self.of(ids):
                self.change(stored, until_ms=None)
        super().claim(claim, ids)

    def unread(self, usernames: Collection[str], now_ms: int) -> list[Post]:
        leased = [each for each in self.documents.values() if each.until_ms is not None]
        for stored in leased:
            stored.unread = True
        found = super().unread(usernames, now_ms)
        for stored in leased:
            stored.unread = False
        return found

    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return stored.is_pending


class LeaseOutlivesMessage(Database):
    def claim(self, claim: Claim, ids: Sequence[str]) -> None:
        super().claim(claim, ids)
        for stored in self.of(ids):
            if isinstance(claim, LeaseClaim) and stored.lease == claim.token and stored.until_ms:
                self.change(stored, until_ms=claim.at_ms + claim.lease_ms)


class NeverEndsLease(SimulatedStore):
    async def end_leases(self, now_ms: int) -> Ended:
        return Ended((), 0, 0)


class ResumeAcknowledgesWholeStream(Database):
    def resume(self, command: Resume, now_ms: int, token: str) -> Settled:
        last = self.documents.get(command.last)
        if last is None or not last.lease:
            return Settled(0, 0)
        name = last.lease.partition(".")[0]
        mine = [
            stored
            for stored in self.documents.values()
            if stored.lease.startswith(name) and stored.is_pending
        ]
        return Settled(len(mine), self._read(mine, now_ms, token))


class ContinuesFailedLease(SimulatedClients):
    keeps_lease = True


LEASE_BUGS = (
    bug(AcknowledgesAfterLeaseEnd, "overtime"),
    bug(AcknowledgesWithoutEffect, "duplicated"),
    bug(HidesLoss, "hidden"),
    # The lease is acknowledged in part and ends, and another reader leases the rest before it is
    # acknowledged.
    bug(HidesLossOfRedeliveredMessage, "hidden")._replace(steps={"post": 2, "lease": 3}),
    bug(ReadsLeasedMessages, "double lease"),
    bug(LeaseOutlivesMessage, "overtime"),
    bug(NeverEndsLease, "lost"),
    bug(ResumeAcknowledgesWholeStream, "excess", "lost"),
    bug(ContinuesFailedLease, "double lease"),
)
