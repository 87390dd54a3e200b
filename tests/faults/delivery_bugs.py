"""Seeded bugs of delivery: posts, searches, claims, and their rollback."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest import mock

from msgspec.structs import replace

from tests.faults.faulty_store import SimulatedStore
from tests.faults.races import (
    ELECTIONS,
    ElectionWorld,
)
from tests.faults.seeded_bugs import Bug, PatchedWorld, bug, with_store
from tests.faults.simulated_replica_set import Database
from tests.support.documents import Stored
from workers.claim_rollback import ClaimRollback
from workers.commands import (
    Claim,
    DiscardedClaims,
    Message,
    Post,
    Unread,
)
from workers.errors import Expired, OutcomeUnknown, Rejected, StoreUnavailable
from workers.fair_queue import FairQueue
from workers.store.base import (
    Claimed,
    Found,
    Insertion,
    Term,
)
from workers.term_check import TermCheck
from workers.work_item import WorkItem

HOURS_MS = 7_200_000


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


class ConfirmsInAnyTerm(PatchedWorld, ElectionWorld):
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


class NeverRollsBack(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(ClaimRollback, "add"):
            yield


class DropsAnAnswer(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        resolve = WorkItem.resolve

        def resolve_but_one(self: WorkItem, outcome: object) -> bool:
            if isinstance(outcome, str) and outcome.endswith("7"):
                return True
            return resolve(self, outcome)

        with mock.patch.object(WorkItem, "resolve", resolve_but_one):
            yield


class ExecutesRefusedRequests(PatchedWorld):
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


def _election_bug(what: type[SimulatedStore]) -> Bug:
    world = with_store(what, ElectionWorld)
    return Bug(what.__name__, world, frozenset({"missed"}), ELECTIONS)


DELIVERY_BUGS = (
    bug(AcceptsBeforeMajority, "lost"),
    bug(DeliversBeforeMajority, "duplicated"),
    bug(ClaimsReadMessages, "duplicated"),
    # A late claim seldom meets a later read. With these steps it does so more often.
    *(
        bug(what, "lost", "missed")._replace(steps={"post": 3, "read": 2})
        for what in (RollsBackWithoutVoiding, ClaimsVoidedMessages, VoidsAfterReturning)
    ),
    bug(SharesOneToken, "duplicated"),
    bug(IgnoresExpiry, "late"),
    bug(UsesAnotherTimeZone, "lost", "missed"),
    bug(RefusesItsOwnDuplicate, "phantom"),
    bug(AcceptsUnknownPosts, "lost", "missed"),
    bug(StoresBatchTwice, "unexpected", "duplicated"),
    bug(ClaimsWhenCounting, "lost", "missed"),
    bug(ReturnsNewestFirst, "disordered"),
    bug(ReturnsAnotherInbox, "crossed"),
    bug(ReturnsEmptyOnFailure, "missed"),
    _election_bug(ForgetsTerm),
    bug(ConfirmsInAnyTerm, "missed")._replace(steps=ELECTIONS),
    _election_bug(ConfirmsMemberInsteadOfTerm),
    _election_bug(ConfirmsBeforeReads),
    _election_bug(AcceptsAnyMember),
    bug(AltersText, "unexpected"),
    bug(NeverRollsBack, "lost"),
    bug(DropsAnAnswer, "endless"),
    bug(ExecutesRefusedRequests, "phantom"),
)
