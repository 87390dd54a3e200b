"""Bugs, each seeded into a copy of the behaviour: what the checker must catch to be believed.

Each is a `World` whose store, database or shard is wrong in one way, and the kinds of violation
that give it away. Used by `tests.faults.test_checker` and the report of `scripts/chaos`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from msgspec.structs import replace

from tests.faults.simulation import (
    Database,
    SimulatedStore,
    Stored,
    World,
    run,
    schedule_of,
)
from workers.commands import Claim, Message, Post
from workers.errors import Expired, OutcomeUnknown, Rejected, ServiceError, StoreUnavailable
from workers.queue import ShardQueue
from workers.releases import Releases
from workers.store.base import Claimed, Found
from workers.ticket import Ticket

HOURS_MS = 7_200_000


class Bug(NamedTuple):
    """A seeded bug, and how it shows: one of these kinds of violation."""

    name: str
    world: type[World]
    kinds: frozenset[str]


def detect(bug: Bug, schedules: int) -> int | None:
    """The seed of the first schedule in which the checker catches it; None where none does."""
    for seed in range(schedules):
        if run(schedule_of(seed), bug.world).kinds & bug.kinds:
            return seed
    return None


def _with_store(store: type[SimulatedStore]) -> type[World]:
    return type("BuggyWorld", (World,), {"make_store": store})


def _with_database(database: type[Database]) -> type[World]:
    return type("BuggyWorld", (World,), {"make_database": database})


class AcknowledgesBeforeMajority(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        self._database.insert(posts)
        await self._return()
        return [None] * len(posts)


class DeliversBeforeMajority(SimulatedStore):
    async def claim(self, claim: Claim) -> Claimed:
        self._database.claim(claim, claim.ids)
        documents = self._database.documents
        return Claimed({each for each in claim.ids if documents[each].token == claim.token}, True)


class ClaimsWhatIsRead(Database):
    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return self.now_ms() < claim.until_ms


class ClaimsHoweverLate(Database):
    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return stored.unread


class OneTokenForAll(SimulatedStore):
    async def claim(self, claim: Claim) -> Claimed:
        return await super().claim(replace(claim, token="the same"))


class ForgetsExpiry(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        return super().unread(usernames, 0)


class LivesInAnotherTimeZone(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        return super().unread(usernames, now_ms + HOURS_MS)


class TakesItsOwnDuplicateForAFailure(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        outcomes = await super().insert(posts)
        return [Rejected("E11000") if isinstance(o, OutcomeUnknown) else o for o in outcomes]


class TakesPartForTheWhole(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        outcomes = await super().insert(posts)
        return [None if isinstance(each, OutcomeUnknown) else each for each in outcomes]


class StoresABatchTwice(SimulatedStore):
    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        await super().insert([replace(post, id=post.id[:-1] + "x") for post in posts])
        return await super().insert(posts)


class ClaimsOnACount(SimulatedStore):
    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Counter[str]:
        counts = await super().count_unread(usernames, now_ms)
        for stored in self._database.documents.values():
            if stored.post.username in usernames:
                stored.unread = False
        return counts


class NewestFirst(SimulatedStore):
    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        found = super().unread(usernames, now_ms)
        return [
            post
            for name in sorted(set(usernames))
            for post in reversed(found)
            if post.username == name
        ]


class AnothersInbox(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        found = await super().find_unread(usernames, limit, now_ms)
        if len(usernames) < 2:
            return found
        # Every inbox gets what is in the one before it.
        names = sorted(usernames)
        turned = dict(zip(names[1:] + names[:1], names, strict=True))
        return Found(
            {turned[name]: messages for name, messages in found.messages.items()},
            {turned[name] for name in found.complete},
        )


class SaysNothingThereForNotKnown(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        try:
            return await super().find_unread(usernames, limit, now_ms)
        except StoreUnavailable:
            return Found({}, set(usernames))


class AltersATextThatItRepeats(SimulatedStore):
    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        found = await super().find_unread(usernames, limit, now_ms)
        altered = {
            name: [Message(each.text.replace("t1", "t 1"), each.id) for each in messages]
            for name, messages in found.messages.items()
        }
        return Found(altered, found.complete)


class _Patched(World):
    """A world whose shards or queues are wrong."""

    async def run(self):  # type: ignore[no-untyped-def]
        with self.patches():
            return await super().run()

    @contextmanager
    def patches(self) -> Iterator[None]:
        yield


class GivesBackTooSoon(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        add = Releases.add

        def add_at_once(self: Releases, claim: Claim, ids: Sequence[str], is_final: bool) -> None:
            add(self, claim, ids, is_final=True)

        with mock.patch.object(Releases, "add", add_at_once):
            yield


class GivesNothingBack(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(Releases, "add"):
            yield


class SwallowsAnAnswer(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        resolve = Ticket.resolve

        def resolve_but_one(self: Ticket, outcome: object) -> bool:
            if isinstance(outcome, str) and outcome.endswith("7"):
                return True
            return resolve(self, outcome)  # type: ignore[arg-type]

        with mock.patch.object(Ticket, "resolve", resolve_but_one):
            yield


class CarriesOutWhatItRefused(_Patched):
    @contextmanager
    def patches(self) -> Iterator[None]:
        def expire(self: ShardQueue, now: float) -> int:
            return sum(
                ticket.fail(Expired("late"))
                for ticket in self._queue
                if ticket is not None and ticket.deadline <= now
            )

        with (
            mock.patch.object(ShardQueue, "expire", expire),
            mock.patch.object(Ticket, "is_open", True),
        ):
            yield


def _bug(what: type, *kinds: str) -> Bug:
    world = what
    if issubclass(what, SimulatedStore):
        world = _with_store(what)
    elif issubclass(what, Database):
        world = _with_database(what)
    return Bug(what.__name__, world, frozenset(kinds))


BUGS = (
    _bug(AcknowledgesBeforeMajority, "lost"),
    _bug(DeliversBeforeMajority, "duplicated"),
    _bug(ClaimsWhatIsRead, "duplicated"),
    _bug(ClaimsHoweverLate, "lost", "duplicated", "missed"),
    _bug(OneTokenForAll, "duplicated"),
    _bug(ForgetsExpiry, "late"),
    _bug(LivesInAnotherTimeZone, "lost", "missed"),
    _bug(TakesItsOwnDuplicateForAFailure, "phantom"),
    _bug(TakesPartForTheWhole, "lost", "missed"),
    _bug(StoresABatchTwice, "unexpected", "duplicated"),
    _bug(ClaimsOnACount, "lost", "missed"),
    _bug(NewestFirst, "disordered"),
    _bug(AnothersInbox, "crossed"),
    _bug(SaysNothingThereForNotKnown, "missed"),
    _bug(AltersATextThatItRepeats, "unexpected"),
    _bug(GivesBackTooSoon, "lost", "duplicated", "missed"),
    _bug(GivesNothingBack, "lost"),
    _bug(SwallowsAnAnswer, "endless"),
    _bug(CarriesOutWhatItRefused, "phantom"),
)
