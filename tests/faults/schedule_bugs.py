"""Seeded bugs of scheduled messages, and of those released with a delay: delivered early, twice, or
never.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from msgspec.structs import replace

from tests.faults.faulty_store import SimulatedStore
from tests.faults.races import AHEAD, AheadWorld, FaultlessWorld
from tests.faults.seeded_bugs import Bug, PatchedWorld, bug
from tests.faults.simulated_replica_set import Database
from tests.support.documents import Documents, Stored
from workers.commands import Acknowledge, Post, Release
from workers.store.base import Ended, Insertion, Settled

#: The steps of schedules in which many messages are scheduled.
SCHEDULED = {"scheduled post": 3, "scheduled keyed post": 1, "read": 2, "long poll": 2, "lease": 1}
#: The steps of schedules in which many messages are released with a delay.
PUT_OFF = {"post": 2, "lease": 4, "read": 2, "long poll": 1}


class TrustsLeadersClock(Database):
    def is_over(self, stored: Stored, now_ms: int) -> bool:
        return Documents.is_over(self, stored, now_ms)


class ChecksNoDueTime(Database):
    def is_over(self, stored: Stored, now_ms: int) -> bool:
        is_delayed = not stored.lease and stored.until_ms is not None
        return is_delayed or super().is_over(stored, now_ms)


class StoresScheduledAsUnread(Database):
    def _insert(self, post: Post) -> Insertion:
        return super()._insert(replace(post, due_ms=0))


class DeliversScheduledTwice(SimulatedStore):
    """Makes what it has found unread, without a look at what has become of it since."""

    async def end_leases(self, now_ms: int) -> Ended:
        database = self._database
        due = [
            stored.post.id
            for stored in database.documents.values()
            if not stored.lease and database.is_over(stored, now_ms)
        ]

        def release(ids: Sequence[str]) -> None:
            for stored in database.of(ids):
                database.change(stored, unread=True, until_ms=None)

        await self._write(release, due)
        return await super().end_leases(now_ms)


class ForgetsScheduled(Database):
    """Ends only what has a token."""

    def is_over(self, stored: Stored, now_ms: int) -> bool:
        return bool(stored.lease) and super().is_over(stored, now_ms)


class WaitsPastNewDueTime(PatchedWorld):
    """The leader sleeps until the first end that it knew of."""

    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch("workers.maintenance.LEASES_EVERY_S", (0.25, 3600.0)):
            yield


class LifetimeCountsFromPost(Database):
    def _insert(self, post: Post) -> Insertion:
        late_ms = post.due_ms and post.due_ms - post.created_ms
        return super()._insert(replace(post, expires_ms=post.expires_ms - late_ms))


class ReleasesWithoutDelay(Database):
    def release(self, command: Release, now_ms: int) -> Settled:
        return super().release(replace(command, delay_ms=0), now_ms)


class ForgetsReleasedWithDelay(Database):
    """Ends leases, and delays of messages that nobody has had."""

    def is_over(self, stored: Stored, now_ms: int) -> bool:
        return not stored.delayed and super().is_over(stored, now_ms)


class AcknowledgesAfterDelayedRelease(Database):
    """Takes the lease for one that goes on, with another end."""

    def acknowledge(self, command: Acknowledge, now_ms: int, token: str) -> Settled:
        for stored in self._of_lease(command):
            if stored.delayed and stored.is_scheduled:
                self.change(stored, returned=False)
        return super().acknowledge(command, now_ms, token)


SCHEDULE_BUGS = (
    Bug(
        "TrustsLeadersClock",
        type("BuggyWorld", (AheadWorld,), {"make_database": TrustsLeadersClock}),
        frozenset({"early"}),
        AHEAD,
    ),
    *(
        bug(what, *kinds)._replace(steps=SCHEDULED)
        for what, kinds in (
            (ChecksNoDueTime, ["early"]),
            (StoresScheduledAsUnread, ["early"]),
            (DeliversScheduledTwice, ["duplicated", "double lease"]),
            (ForgetsScheduled, ["lost"]),
            (WaitsPastNewDueTime, ["lost", "missed"]),
        )
    ),
    *(
        bug(what, *kinds)._replace(steps=PUT_OFF)
        for what, kinds in (
            (ReleasesWithoutDelay, ["early"]),
            (ForgetsReleasedWithDelay, ["lost", "missed"]),
            (AcknowledgesAfterDelayedRelease, ["overtime"]),
        )
    ),
    Bug(
        "LifetimeCountsFromPost",
        type("BuggyWorld", (FaultlessWorld,), {"make_database": LifetimeCountsFromPost}),
        frozenset({"lost", "missed"}),
        {"scheduled post": 1, "long poll": 2},
    ),
)
