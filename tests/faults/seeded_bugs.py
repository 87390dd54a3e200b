"""Bugs that are seeded into copies of the engine. The checker must find each one to be trusted.

Each is a `World` whose store, database, shard or client is wrong in one way, with the kinds of
violation that reveal it. Used by the `tests.faults.test_seeded_*` files.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from msgspec.structs import replace

from chat_service.api.identity import Client
from chat_service.api.request_options import hash_of
from tests.faults.checker import Verdict
from tests.faults.faulty_store import SimulatedStore
from tests.faults.races import (
    CONVERSATIONS,
    ELECTIONS,
    OVERTAKEN,
    ElectionWorld,
    FaultlessWorld,
    LateKeyedClaims,
    OvertakenWorld,
)
from tests.faults.sharing import CROWDED, FILLED, CrowdedWorld, FilledWorld
from tests.faults.simulated_clients import SimulatedClients
from tests.faults.simulated_replica_set import Database
from tests.faults.simulation import KINDS, World, run, schedule_of
from tests.support.documents import Stored
from workers.claim_rollback import ClaimRollback
from workers.claims import Claims
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    DiscardedClaims,
    KeyedBatch,
    LeaseClaim,
    Message,
    MessageStatus,
    Post,
    Resume,
    Revoke,
    Track,
    Unread,
)
from workers.errors import Expired, OutcomeUnknown, Overloaded, Rejected, StoreUnavailable
from workers.fair_queue import FairQueue
from workers.pool import WorkerPool
from workers.queue import ShardQueue
from workers.store.base import (
    ArrivalStream,
    Claimed,
    CountedEvent,
    Ended,
    Found,
    InboxSize,
    Insertion,
    Settled,
    Term,
)
from workers.term_check import TermCheck
from workers.waiters import Waiters
from workers.work_item import WorkItem

HOURS_MS = 7_200_000
#: The most schedules in which a bug must show.
SCHEDULES = 1000


class Bug(NamedTuple):
    """A seeded bug, and the kinds of violation of which one must show.

    `steps` are the kinds of steps that it takes to trigger the bug.
    """

    name: str
    world: type[World]
    kinds: frozenset[str]
    steps: Mapping[str, int] = KINDS


def detect(bug: Bug, schedules: int = SCHEDULES) -> int | None:
    """Return the seed of the first schedule in which the checker finds the bug, or None."""
    for seed in range(schedules):
        if run(schedule_of(seed, bug.steps), bug.world).kinds & bug.kinds:
            return seed
    return None


def _with_store(store: type[SimulatedStore], world: type[World] = World) -> type[World]:
    return type("BuggyWorld", (world,), {"make_store": store})


def _with_database(database: type[Database]) -> type[World]:
    return type("BuggyWorld", (World,), {"make_database": database})


class _Patched(World):
    """A world with patched shards or queues."""

    async def run(self) -> Verdict:
        with self.patches():
            return await super().run()

    @contextmanager
    def patches(self) -> Iterator[None]:
        yield


class AcceptsBeforeMajority(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        self._database.insert(posts)
        await self._return()
        return [None] * len(posts)


class DeliversBeforeMajority(SimulatedStore):
    async def claim(self, claim: Claim) -> Claimed:
        self._database.claim(claim, claim.ids)
        documents = self._database.documents
        return Claimed({each for each in claim.ids if documents[each].token == claim.token}, True)


class ClaimsReadMessages(Database):
    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return True


class RollsBackWithoutVoiding(SimulatedStore):
    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        if isinstance(claim, DiscardedClaims):
            await super().void(claim, ids)


class ClaimsVoidedMessages(Database):
    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return stored.unread


class ClaimsForDiscardedBatch(LateKeyedClaims):
    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        if isinstance(claim, Claim):
            await super().void(claim, ids)


class SharesOneToken(SimulatedStore):
    async def claim(self, claim: Claim) -> Claimed:
        return await super().claim(replace(claim, token="the same"))


class IgnoresExpiry(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        return super().unread(usernames, 0)


class UsesAnotherTimeZone(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        return super().unread(usernames, now_ms + HOURS_MS)


class RefusesItsOwnDuplicate(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        outcomes = await super().insert(posts)
        return [Rejected("E11000") if isinstance(o, OutcomeUnknown) else o for o in outcomes]


class AcceptsUnknownPosts(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        outcomes = await super().insert(posts)
        return [None if isinstance(each, OutcomeUnknown) else each for each in outcomes]


class StoresBatchTwice(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        await super().insert([replace(post, id=post.id[:-1] + "x") for post in posts])
        return await super().insert(posts)


class ClaimsWhenCounting(SimulatedStore):
    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        counts = await super().count_unread(usernames, now_ms)
        for stored in self._database.documents.values():
            if stored.post.username in usernames:
                stored.unread = False
        return counts


class ReturnsNewestFirst(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        found = super().unread(usernames, now_ms)
        return [
            post
            for name in sorted(set(usernames))
            for post in reversed(found)
            if post.username == name
        ]


class ReturnsAnotherInbox(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        found = await super().find_unread(usernames, limit, now_ms)
        if len(usernames) < 2:
            return found
        # Every inbox gets the messages of the previous one.
        names = sorted(usernames)
        turned = dict(zip(names[1:] + names[:1], names, strict=True))
        return Found(
            {turned[name]: messages for name, messages in found.messages.items()},
            {turned[name] for name in found.complete},
        )


class ReturnsEmptyOnFailure(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        try:
            return await super().find_unread(usernames, limit, now_ms)
        except StoreUnavailable:
            return Found({}, set(usernames))


class ForgetsTerm(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        return (await super().find_unread(usernames, limit, now_ms))._replace(term=None)


class ConfirmsInAnyTerm(_Patched, ElectionWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        is_current = TermCheck.is_current

        async def is_confirmed(self: TermCheck) -> bool:
            await is_current(self)
            return True

        with mock.patch.object(TermCheck, "is_current", is_confirmed):
            yield


class ConfirmsMemberInsteadOfTerm(SimulatedStore):
    """Like a linearizable read: it does not say in which term it was confirmed."""

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        member = self._known_primary().member
        found = await super().find_unread(usernames, limit, now_ms)
        return found._replace(term=found.term and member)

    async def confirm(self) -> Term | None:
        term = await super().confirm()
        return term and self._database.primary


class ConfirmsBeforeReads(SimulatedStore):
    """Uses the last confirmation of the term again."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._last: Term | None = None

    async def confirm(self) -> Term | None:
        if self._last != str(self._known_primary().term):
            self._last = await super().confirm()
        return self._last


class AcceptsAnyMember(SimulatedStore):
    # So that it shows soon.
    misrouted = 0.3

    def _is_answer_of(self, *_: object) -> bool:
        return True


class AltersText(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        found = await super().find_unread(usernames, limit, now_ms)
        altered = {
            name: [
                Unread(
                    Message(each.message.text.replace("t1", "t 1"), each.message.id),
                    each.expires_ms,
                )
                for each in messages
            ]
            for name, messages in found.messages.items()
        }
        return Found(altered, found.complete)


class VoidsAfterReturning(SimulatedStore):
    """A late copy of the claim may take the messages between the two steps, and keeps them."""

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        pass

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        released = await super().unclaim(claim, ids)
        await asyncio.sleep(0.2)
        await super().void(claim, ids)
        return released


class NeverRollsBack(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(ClaimRollback, "add"):
            yield


class DropsAnAnswer(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        resolve = WorkItem.resolve

        def resolve_but_one(self: WorkItem, outcome: object) -> bool:
            if isinstance(outcome, str) and outcome.endswith("7"):
                return True
            return resolve(self, outcome)

        with mock.patch.object(WorkItem, "resolve", resolve_but_one):
            yield


class ExecutesRefusedRequests(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        def expire(self: FairQueue, now: float) -> int:
            return sum(
                item.fail(Expired("late")) for item in self._arrivals if item.deadline <= now
            )

        with (
            mock.patch.object(FairQueue, "expire", expire),
            mock.patch.object(WorkItem, "is_open", True),
        ):
            yield


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


class ForgetsKeyedBatches(SimulatedStore):
    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        await self._reach()
        return {}


class KeepsKeysInMemory(SimulatedStore):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._batches: dict[str, KeyedBatch] = {}

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        await self._reach()
        return [self._batches.setdefault(batch.key, batch) for batch in batches]

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        await self._reach()
        return {key: self._batches[key] for key in keys if key in self._batches}


class StoresKeyedRepeat(Database):
    def _insert(self, post: Post) -> Insertion:
        return super()._insert(replace(post, key=None))


class RevokesReadMessages(Database):
    def revoke(
        self, command: Revoke, now_ms: int, mark: str = ""
    ) -> tuple[MessageStatus | None, int]:
        fate = self.track(command, now_ms)
        if fate is None or fate.status != "read":
            return super().revoke(command, now_ms, mark)
        self.change(self.documents[command.id], revoked_ms=now_ms, mark=mark)
        return MessageStatus("revoked", now_ms), 1


class ReportsAllAsPending(SimulatedStore):
    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        fate = await super().track(command, now_ms)
        return fate and MessageStatus("pending", None)


class IgnoresResolvedWrites(SimulatedStore):
    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        return {}


class NeverWakesWaiters(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(Waiters, "wake"):
            yield


class MissesWakeUps(_Patched, FaultlessWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        @contextmanager
        def record_wakes(self: Waiters) -> Iterator[set[str | None]]:
            yield set()

        with mock.patch.object(Waiters, "record_wakes", record_wakes):
            yield


class ForgetsWaitsDuringOpening(_Patched, FaultlessWorld):
    """Takes an inbox for watched that somebody began to wait for while the stream was opened."""

    @contextmanager
    def patches(self) -> Iterator[None]:
        take_over = SimulatedStore.arrivals
        pools: dict[SimulatedStore, Waiters] = {}
        start = WorkerPool.start

        async def start_known(self: WorkerPool) -> None:
            assert isinstance(self._store, SimulatedStore)
            pools[self._store] = self._waiters
            await start(self)

        async def arrivals(
            self: SimulatedStore,
            usernames: Collection[str] | None,
            after: ArrivalStream | None = None,
        ) -> ArrivalStream:
            stream = await take_over(self, usernames, after)
            waiters = pools[self]
            waiters.set_reported({*(usernames or ()), *waiters.usernames()})
            return stream

        with (
            mock.patch.object(SimulatedStore, "arrivals", arrivals),
            mock.patch.object(WorkerPool, "start", start_known),
        ):
            yield


class NeverWaits(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(Waiters, "add", return_value=False):
            yield


class RollsBackKeyedBatch(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        give = Claims._deliver_batch

        async def give_or_roll_back(self: Claims, item: WorkItem, batch: KeyedBatch) -> bool:
            claims: list[Claim] = []
            new_claim = self._new_keyed_claim

            def noted(batch: KeyedBatch) -> Claim:
                claims.append(new_claim(batch))
                return claims[-1]

            try:
                with mock.patch.object(self, "_new_keyed_claim", noted):
                    return await give(self, item, batch)
            except OutcomeUnknown:
                for claim in claims:
                    self._rollback.add(claim, claim.ids, is_final=False)
                raise

        with mock.patch.object(Claims, "_deliver_batch", give_or_roll_back):
            yield


class SharesKeys(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        def hash_for_everybody(_client: Client, *parts: str) -> str:
            return hash_of(*parts)

        with mock.patch("tests.faults.simulated_clients.post_key_hash", hash_for_everybody):
            yield


class ServesInOrderOfArrival(CrowdedWorld):
    async def run(self) -> Verdict:
        def get_oldest(self: FairQueue) -> WorkItem:
            oldest = next(iter(self._arrivals))
            self.remove(oldest)
            return oldest

        with mock.patch.object(FairQueue, "_get_next", get_oldest):
            return await super().run()


class MakesNoRoom(CrowdedWorld):
    async def run(self) -> Verdict:
        with mock.patch.object(ShardQueue, "_make_room", side_effect=Overloaded("full")):
            return await super().run()


class ReadsOvertakePosts(CrowdedWorld):
    async def run(self) -> Verdict:
        with mock.patch.object(ShardQueue, "_is_behind", return_value=False):
            return await super().run()


class ForgetsPostsInFlight(CrowdedWorld):
    async def run(self) -> Verdict:
        def is_behind(self: ShardQueue, item: WorkItem) -> bool:
            return item.command.username in self.posts.per_inbox

        with mock.patch.object(ShardQueue, "_is_behind", is_behind):
            return await super().run()


class CountsNothing(SimulatedStore):
    async def measure_inbox(self, *_: object) -> InboxSize:
        await self._reach()
        return InboxSize(0, 0)


def _bug(what: type, *kinds: str) -> Bug:
    world = what
    if issubclass(what, SimulatedStore):
        world = _with_store(what)
    elif issubclass(what, Database):
        world = _with_database(what)
    elif issubclass(what, SimulatedClients):
        world = type("BuggyWorld", (World,), {"make_clients": what})
    return Bug(what.__name__, world, frozenset(kinds))


def _election_bug(what: type[SimulatedStore]) -> Bug:
    world = _with_store(what, ElectionWorld)
    return Bug(what.__name__, world, frozenset({"missed"}), ELECTIONS)


DELIVERY_BUGS = (
    _bug(AcceptsBeforeMajority, "lost"),
    _bug(DeliversBeforeMajority, "duplicated"),
    _bug(ClaimsReadMessages, "duplicated"),
    # A late claim seldom meets a later read. With these steps it does so more often.
    *(
        _bug(what, "lost", "missed")._replace(steps={"post": 3, "read": 2})
        for what in (RollsBackWithoutVoiding, ClaimsVoidedMessages, VoidsAfterReturning)
    ),
    _bug(SharesOneToken, "duplicated"),
    _bug(IgnoresExpiry, "late"),
    _bug(UsesAnotherTimeZone, "lost", "missed"),
    _bug(RefusesItsOwnDuplicate, "phantom"),
    _bug(AcceptsUnknownPosts, "lost", "missed"),
    _bug(StoresBatchTwice, "unexpected", "duplicated"),
    _bug(ClaimsWhenCounting, "lost", "missed"),
    _bug(ReturnsNewestFirst, "disordered"),
    _bug(ReturnsAnotherInbox, "crossed"),
    _bug(ReturnsEmptyOnFailure, "missed"),
    _election_bug(ForgetsTerm),
    _bug(ConfirmsInAnyTerm, "missed")._replace(steps=ELECTIONS),
    _election_bug(ConfirmsMemberInsteadOfTerm),
    _election_bug(ConfirmsBeforeReads),
    _election_bug(AcceptsAnyMember),
    _bug(AltersText, "unexpected"),
    _bug(NeverRollsBack, "lost"),
    _bug(DropsAnAnswer, "endless"),
    _bug(ExecutesRefusedRequests, "phantom"),
)

LEASE_BUGS = (
    _bug(AcknowledgesAfterLeaseEnd, "overtime"),
    _bug(AcknowledgesWithoutEffect, "duplicated"),
    _bug(HidesLoss, "hidden"),
    # The lease is acknowledged in part and ends, and another reader leases the rest before it is
    # acknowledged.
    _bug(HidesLossOfRedeliveredMessage, "hidden")._replace(steps={"post": 2, "lease": 3}),
    _bug(ReadsLeasedMessages, "double lease"),
    _bug(LeaseOutlivesMessage, "overtime"),
    _bug(NeverEndsLease, "lost"),
    _bug(ResumeAcknowledgesWholeStream, "excess", "lost"),
    _bug(ContinuesFailedLease, "double lease"),
)

#: Bugs of keys, receipts, counters and long polls.
KEY_BUGS = (
    _bug(ForgetsKeyedBatches, "inconsistent"),
    _bug(KeepsKeysInMemory, "inconsistent", "lost"),
    _bug(RollsBackKeyedBatch, "duplicated"),
    Bug(
        "ClaimsForDiscardedBatch",
        _with_store(ClaimsForDiscardedBatch, OvertakenWorld),
        frozenset({"lost", "missed"}),
        OVERTAKEN,
    ),
    _bug(StoresKeyedRepeat, "duplicated"),
    _bug(RevokesReadMessages, "revoked"),
    _bug(ReportsAllAsPending, "untrue"),
    _bug(IgnoresResolvedWrites, "unaccounted"),
    _bug(NeverWakesWaiters, "missed"),
    _bug(SharesKeys, "foreign key")._replace(steps={"keyed post": 1}),
    _bug(MissesWakeUps, "missed")._replace(steps=CONVERSATIONS),
    _bug(ForgetsWaitsDuringOpening, "missed")._replace(steps=CONVERSATIONS),
    _bug(NeverWaits, "impatient"),
)

#: Bugs that let one client harm others.
CLIENT_BUGS = (
    _bug(ServesInOrderOfArrival, "starved")._replace(steps=CROWDED),
    _bug(MakesNoRoom, "starved")._replace(steps=CROWDED),
    _bug(ReadsOvertakePosts, "ahead")._replace(steps=CROWDED),
    _bug(ForgetsPostsInFlight, "ahead")._replace(steps=CROWDED),
    Bug(
        "CountsNothing",
        type("BuggyWorld", (FilledWorld,), {"make_store": CountsNothing}),
        frozenset({"overfull"}),
        FILLED,
    ),
)
