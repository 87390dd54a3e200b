"""The simulation's store, which fails in every way that a real one may.

It works on a simulated replica set and keeps the contract of `workers.store.base`. It fails
wherever the contract allows it: before it has applied a command, after that, or in the middle. It
hangs. An abandoned command takes effect later. A failover rolls back everything that no majority
has confirmed. One seed determines all of it.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tests.faults.faulty_calls import HANG_MAX_S, LATE_MAX_S, MARGIN_MS
from tests.faults.faulty_moves import FaultyMoves
from tests.faults.simulated_arrivals import SimulatedArrivals
from tests.faults.simulated_replica_set import Database
from tests.support.documents import found_of
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    DiscardedClaims,
    Extend,
    Held,
    KeyedBatch,
    KeyedClaim,
    Message,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
)
from workers.errors import OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store.base import (
    ArrivalStream,
    Claimed,
    CountedEvent,
    Ended,
    Found,
    InboxSize,
    Insertion,
    Leader,
    PendingCount,
    Settled,
    Storage,
    Term,
)

#: Seconds after an election until a driver has heard of it.
_LEARNS_AFTER_S = (0.0, 0.005, 0.1, 1.0)


class _Primary(NamedTuple):
    """The primary, as a driver knows it."""

    member: str
    term: int


class SimulatedStore(FaultyMoves):
    """A node's connection to the database."""

    #: The share of searches that are sent to a deposed member although the driver knew another one.
    misrouted = 0.05

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._known = _Primary(database.primary, database.term)
        # The last election that the driver has not heard of, and when it will.
        self._unheard, self._learns_at = 0, 0.0
        self._name = self._token()

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        first_ms = min(post.expires_ms for post in posts)
        # As the real store does, without its clock.
        with self._may_return(first_ms):
            return await self._insert(posts)

    async def _insert(self, posts: Sequence[Post]) -> list[Insertion]:
        try:
            return (await self._confirmed(self._database.insert, posts))[0]
        except ServiceError as error:
            if isinstance(error, OutcomeUnknown):
                ids = {post.id for post in posts}
                self._note_unresolved("accepted", lambda stored: stored.post.id in ids)
                self._unsearched.add(min(post.expires_ms for post in posts), LATE_MAX_S)
            return [error] * len(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """Search the primary that the driver knows. Now and then, it cannot confirm a term."""
        if self._rng.random() < 0.1:
            return await self._find_linearizable(usernames, limit, now_ms)
        while True:
            known = self._known_primary()
            member = self._choose_member(known)
            await self._reach(needs_majority=False)
            with self._database.as_seen_by(member) as is_answering:
                unread = self.unread(usernames, now_ms)
                found = found_of(unread, usernames, limit, self._database.documents)
            await self._return()
            if not is_answering:
                # The driver learns of the new primary and repeats the search.
                self._learn()
                continue
            if self._is_answer_of(member, known):
                return found._replace(term=str(known.term))

    async def _find_linearizable(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """Run a linearizable read: a majority has its results by the time it is answered."""
        await self._reach()
        database = self._database
        unread = self.unread(usernames, now_ms)
        found = found_of(unread, usernames, limit, database.documents)
        position, term = database.position, database.term
        await asyncio.sleep(self._rng.choice((0.0005, 0.001, 0.003, 0.02)))
        if database.term != term:
            raise StoreUnavailable("another became primary")
        database.confirm(position)
        return found

    @property
    def has_terms(self) -> bool:
        return True

    async def confirm(self) -> Term | None:
        """Write to the log until a majority has the entry.

        The driver may send it to a deposed member first, and repeat it later with another one.
        """
        database, rng = self._database, self._rng
        await self._reach()
        if self._known_primary().term != database.term:
            await asyncio.sleep(rng.choice((0.001, 0.02, 0.2, 0.5)))
            if rng.random() < 0.3:
                raise StoreUnavailable("no majority answered")
            self._learn()
        database.note()
        position, term = database.position, database.term
        await self._return()
        if rng.random() < database.fault_rate / 4:
            await asyncio.sleep(rng.uniform(0, HANG_MAX_S))
            raise StoreUnavailable("no answer")
        if database.term != term:
            raise StoreUnavailable("another became primary")
        database.confirm(position)
        await self._return()
        return str(term)

    def _known_primary(self) -> _Primary:
        """Return the primary that the driver knows. It learns of an election after a while."""
        database = self._database
        if database.term != self._known.term:
            if database.term != self._unheard:
                self._unheard = database.term
                self._learns_at = database.elected_at + self._rng.choice(_LEARNS_AFTER_S)
            if database.loop.time() >= self._learns_at:
                self._learn()
        return self._known

    def _learn(self) -> None:
        self._known = _Primary(self._database.primary, self._database.term)

    def _choose_member(self, known: _Primary) -> str:
        """Return the member that a search is sent to: at times another one than the driver knew."""
        if self._database.deposed and self._rng.random() < self.misrouted:
            return self._rng.choice(list(self._database.deposed))
        return known.member

    def _is_answer_of(self, member: str, known: _Primary) -> bool:
        return member == known.member

    async def claim(self, claim: Claim) -> Claimed:
        """Send the claim again with the same token while there is time, like the real store."""
        tries = 0
        # Whether the claim may have taken effect, and whether no copy of it can still arrive.
        was_sent, is_final = False, True
        while True:
            tries += 1
            is_answered = False
            try:
                await self._write(lambda part: self._database.claim(claim, part), claim.ids)
                is_answered = was_sent = True
                owned = await self._seen(lambda: self._database.owned(claim))
                if isinstance(claim, KeyedClaim) and not is_final:
                    self.count_later(claim, [each for each in claim.ids if each not in owned])
                return Claimed(owned, is_final)
            except ServiceError as error:
                if not was_sent and isinstance(error, StoreUnavailable):
                    raise
                if self._gives_up(tries):
                    if isinstance(claim, KeyedClaim):
                        self.count_later(claim, claim.ids)
                    raise OutcomeUnknown("the claim was not confirmed") from error
                was_sent = True
                is_final = is_final and is_answered

    def count_later(self, claim: KeyedClaim, ids: Sequence[str]) -> None:
        self._note_unresolved(
            "read",
            lambda stored: stored.token == claim.token and stored.post.id in ids,
            lambda: self._database.void(claim.token, ids),
        )

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        await self._write(lambda part: self._database.void(claim.token, part), ids)

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        with self._may_return(claim.at_ms):
            return await self._write(lambda part: self._database.unclaim(claim, part), ids)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        await self._reach()
        return Counter(post.username for post in self.unread(usernames, now_ms))

    async def measure_inbox(
        self, username: str, messages_max: int, has_bytes: bool, now_ms: int
    ) -> InboxSize:
        await self._reach()
        unread = self._database.unread((username,), now_ms)[:messages_max]
        return InboxSize(len(unread), sum(post.size for post in unread))

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        database, keys = self._database, [batch.key for batch in batches]
        while True:
            await self._confirmed(
                lambda part: [database.record_batch(batch, now_ms) for batch in part], batches
            )
            holding = await self._seen(lambda: database.find_batches(keys, now_ms))
            # A batch that was valid may have been discarded in between.
            if len(holding) == len(batches):
                return [holding[key] for key in keys]

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        return await self._seen(lambda: self._database.find_batches(keys, now_ms))

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        return (await self._once(lambda: self._database.mark_delivered(batch)))[0]

    async def discard_batch(self, batch: KeyedBatch) -> bool:
        return (await self._once(lambda: self._database.discard_batch(batch)))[0]

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        return await self._seen(lambda: self._database.keyed_messages(batch, now_ms))

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        return await self._read(lambda token: self._database.acknowledge(command, now_ms, token))

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        return await self._seen(lambda: self._database.audit(command, now_ms))

    async def resume(self, command: Resume, now_ms: int) -> Settled:
        settled = await self._read(lambda token: self._database.resume(command, now_ms, token))
        return Settled(settled.changed, settled.changed)

    async def release(self, command: Release, now_ms: int) -> Settled:
        with self._may_return(now_ms - MARGIN_MS):
            return (await self._once(lambda: self._database.release(command, now_ms)))[0]

    async def extend(self, command: Extend, now_ms: int) -> int:
        return (await self._once(lambda: self._database.extend(command, now_ms)))[0]

    async def held(self, command: Held, now_ms: int) -> frozenset[str]:
        return await self._seen(lambda: self._database.held(command, now_ms))

    async def end_leases(self, now_ms: int) -> Ended:
        database, mark = self._database, self._token()
        with self._may_return(now_ms - MARGIN_MS):
            ended = await self._marked(mark, lambda: database.end_leases(now_ms, mark))
        moved = await self._move(now_ms)
        usernames = [*ended.usernames, *moved.inboxes]
        return ended._replace(usernames=usernames, dead=moved.messages)

    async def lead(self, pending: PendingCount | None) -> Leader:
        return await self._write(lambda _: self._database.lead(self._name, pending), [self._name])

    async def resign(self) -> None:
        await self._write(lambda _: self._database.resign(self._name), [self._name])

    async def forget_nodes(self, now_ms: int) -> None:
        pass

    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        return await self._seen(lambda: self._database.track(command, now_ms))

    async def revoke(self, command: Revoke, now_ms: int) -> tuple[MessageStatus | None, int]:
        mark, database, ids = self._token(), self._database, [command.id]

        def count_later() -> None:
            self._note_unresolved(
                *("revoked", lambda stored: stored.mark == mark),
                lambda: database.void(mark, ids),
            )

        try:
            (fate, changed), was_repeated = await self._once(
                lambda: database.revoke(command, now_ms, mark)
            )
        except OutcomeUnknown:
            count_later()
            raise
        if not was_repeated:
            return fate, changed
        try:
            # Otherwise a late copy could make the answer false.
            await self._write(lambda part: database.void(mark, part), ids)
            return await self._seen(lambda: self._revoked(command, now_ms, mark))
        except ServiceError as error:
            count_later()
            raise OutcomeUnknown(str(error)) from error

    def _revoked(self, command: Revoke, now_ms: int, mark: str) -> tuple[MessageStatus | None, int]:
        stored = self._database.documents.get(command.id)
        fate = self._database.track(command, now_ms)
        return fate, int(stored is not None and stored.mark == mark)

    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        await self._reach()
        database = self._database
        due = [write for write in self._unresolved if write.due <= database.loop.time()]
        self._unresolved = [write for write in self._unresolved if write not in due]
        counts: Counter[CountedEvent] = Counter()
        for write in due:
            write.close()
            counts[write.fate] += sum(map(write.is_affected, database.documents.values()))
        return counts

    async def count_pending(self) -> int:
        return await self._seen(self._database.pending)

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        database, mark = self._database, self._token()
        search = self._unsearched.begin(leads=leads)
        if search is None:
            return 0
        upto_ms = now_ms - MARGIN_MS
        expired = await self._marked(mark, lambda: database.expire(upto_ms, mark, search.from_ms))
        self._unsearched.complete(search, upto_ms)
        return expired

    async def retire(self, now_ms: int) -> None:
        await self._reach()

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        await self._reach()
        stream = SimulatedArrivals(self._database, self._reach, usernames)
        if isinstance(after, SimulatedArrivals):
            stream.position = after.position
        await self._return()
        return stream

    async def keep_indexes(self) -> None:
        pass

    async def measure_clock(self) -> None:
        pass

    async def measure_storage(self) -> Storage | None:
        return None

    async def ping(self) -> None:
        await self._reach()

    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        """Return what a search finds, in its order."""
        return self._database.unread(usernames, now_ms)
