"""Small stores with the guarantees of `workers.store.base`, for tests of the engine."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.documents import Documents, found_of
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    DiscardedClaims,
    Extend,
    Held,
    KeyedBatch,
    KeyedClaim,
    LeaseClaim,
    Message,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
)
from workers.errors import StoreUnavailable
from workers.store.base import (
    LEADER_LEASE_S,
    Arrivals,
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


def new_claim(
    usernames: Sequence[str],
    ids: Sequence[str],
    at_ms: int,
    valid_s: float = 5.0,
    lease_ms: int | None = None,
    key: str = "",
    batch: str = "",
) -> Claim:
    """Return a claim like that of a shard, with a new token."""
    until_ms = int((time.time() + valid_s) * 1000)
    token = secrets.token_hex(16)
    names, wanted = tuple(usernames), tuple(ids)
    if key:
        return KeyedClaim(token, names, wanted, at_ms, until_ms, key, batch or token)
    if lease_ms is not None:
        return LeaseClaim(f"{token}.0000000000", names, wanted, at_ms, until_ms, lease_ms)
    return Claim(token, names, wanted, at_ms, until_ms)


def new_batch(
    key: str, username: str, ids: Sequence[str], until_ms: int, *, more: bool = False
) -> KeyedBatch:
    """Return a batch of a read with a key, with a new token."""
    return KeyedBatch(key, username, tuple(ids), until_ms, secrets.token_hex(16), more)


@dataclass
class MemoryStore:
    """A store on a dictionary, which counts the calls of each kind."""

    data: Documents = field(default_factory=Documents)
    calls: Counter[str] = field(default_factory=Counter)
    away: bool = False
    #: Another node that leads, or an empty string; and what the leader has published.
    leader: str = ""
    published: PendingCount = field(default_factory=lambda: PendingCount(None, 0, 0))
    #: The arrivals that streams report. None stands for an unnamed inbox.
    told: asyncio.Queue[Collection[str] | None] = field(default_factory=asyncio.Queue)
    #: The inboxes of each stream that was opened, and the streams that are open.
    watched: list[Collection[str] | None] = field(default_factory=list)
    streams: "list[MemoryArrivals]" = field(default_factory=list)
    #: Claims for keys, and their messages that are to be counted.
    later: list[tuple[KeyedClaim, Sequence[str]]] = field(default_factory=list)

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        await self._call("insert")
        return self.data.insert(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        await self._call("find")
        unread = self.data.unread(usernames, now_ms)
        return found_of(unread, usernames, limit, self.data.documents)

    @property
    def has_terms(self) -> bool:
        return False

    async def confirm(self) -> Term | None:
        return None

    async def claim(self, claim: Claim) -> Claimed:
        await self._call("claim")
        self.data.claim(claim, claim.ids)
        return Claimed(self.data.owned(claim), is_final=True)

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        await self._call("void")
        self.data.void(claim.token, ids)

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        await self._call("unclaim")
        return self.data.unclaim(claim, ids)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        await self._call("count")
        return Counter(post.username for post in self.data.unread(usernames, now_ms))

    async def measure_inbox(
        self, username: str, messages_max: int, has_bytes: bool, now_ms: int
    ) -> InboxSize:
        await self._call("measure")
        unread = self.data.unread((username,), now_ms)[:messages_max]
        return InboxSize(len(unread), sum(post.size for post in unread))

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        await self._call("record_batch")
        return [self.data.record_batch(batch, now_ms) for batch in batches]

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        await self._call("find_batches")
        return self.data.find_batches(keys, now_ms)

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        await self._call("mark_delivered")
        return self.data.mark_delivered(batch)

    async def discard_batch(self, batch: KeyedBatch) -> bool:
        await self._call("discard_batch")
        return self.data.discard_batch(batch)

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        await self._call("keyed messages")
        return self.data.keyed_messages(batch, now_ms)

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        await self._call("acknowledge")
        return self.data.acknowledge(command, now_ms, secrets.token_hex(16))

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        await self._call("audit")
        return self.data.audit(command, now_ms)

    async def release(self, command: Release, now_ms: int) -> Settled:
        await self._call("release")
        return self.data.release(command, now_ms)

    async def extend(self, command: Extend, now_ms: int) -> int:
        await self._call("extend")
        return self.data.extend(command, now_ms)

    async def held(self, command: Held, now_ms: int) -> frozenset[str]:
        await self._call("held")
        return self.data.held(command, now_ms)

    async def resume(self, command: Resume, now_ms: int) -> Settled:
        await self._call("resume")
        return self.data.resume(command, now_ms, secrets.token_hex(16))

    async def end_leases(self, now_ms: int) -> Ended:
        ended, ids = self.data.end_leases(now_ms), self.data.moving(now_ms)
        self.data.mark_dead([(each, secrets.token_hex(16)) for each in ids], now_ms)
        self.data.copy_dead(ids, now_ms)
        return ended._replace(dead=self.data.end_dead(ids, secrets.token_hex(4)))

    async def lead(self, pending: PendingCount | None) -> Leader:
        self.published = pending or self.published
        until_ms = int((time.time() + LEADER_LEASE_S) * 1000)
        return Leader(self.leader or "this", not self.leader, until_ms, self.published)

    async def resign(self) -> None:
        self.calls["resign"] += 1

    async def forget_nodes(self, now_ms: int) -> None:
        pass

    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        await self._call("track")
        return self.data.track(command, now_ms)

    async def revoke(self, command: Revoke, now_ms: int) -> tuple[MessageStatus | None, int]:
        await self._call("revoke")
        return self.data.revoke(command, now_ms)

    def count_later(self, claim: KeyedClaim, ids: Sequence[str]) -> None:
        self.later.append((claim, ids))

    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        read = sum(len(self.data.owned(claim) & set(ids)) for claim, ids in self.later)
        self.later.clear()
        return {"read": read}

    async def count_pending(self) -> int:
        return self.data.pending()

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        return self.data.expire(now_ms)

    async def retire(self, now_ms: int) -> None:
        pass

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        self.watched.append(usernames)
        await self._call("arrivals")
        stream = MemoryArrivals(self, usernames)
        self.streams.append(stream)
        return stream

    async def keep_indexes(self) -> None:
        pass

    async def measure_clock(self) -> None:
        pass

    async def measure_storage(self) -> Storage | None:
        return None

    async def ping(self) -> None:
        if self.away:
            raise StoreUnavailable("unavailable")

    async def _call(self, kind: str) -> None:
        self.calls[kind] += 1
        await asyncio.sleep(0)


class MemoryArrivals:
    """A stream of a small store. Nothing is lost between two streams."""

    def __init__(self, store: MemoryStore, usernames: Collection[str] | None) -> None:
        self._store = store
        self._usernames = usernames
        self._closed = asyncio.Event()

    async def next(self) -> Arrivals | None:
        getting = asyncio.create_task(self._store.told.get())
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((getting, closing), return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                return None
        finally:
            getting.cancel()
            closing.cancel()
        told = getting.result()
        if told is None:
            return Arrivals((), is_any=True)
        names = self._usernames
        return Arrivals([name for name in told if names is None or name in names])

    async def close(self) -> None:
        self._closed.set()
        if self in self._store.streams:
            self._store.streams.remove(self)


@dataclass
class GateStore(MemoryStore):
    """Holds the calls of the kinds in `shut` until `open` is called."""

    shut: set[str] = field(default_factory=set)
    _held: asyncio.Event = field(default_factory=asyncio.Event)
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        """Let the held calls and all later ones continue."""
        self.shut.clear()
        self._gate.set()

    def open_once(self) -> None:
        """Let the held calls continue, but hold later ones."""
        self._held.clear()
        self._gate.set()
        self._gate = asyncio.Event()

    async def reached(self) -> None:
        """Wait until a call is held."""
        async with asyncio.timeout(5):
            await self._held.wait()

    async def _pass(self, kind: str) -> None:
        if kind in self.shut:
            self._held.set()
            await self._gate.wait()

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        await self._pass("insert")
        return await super().insert(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        await self._pass("find")
        return await super().find_unread(usernames, limit, now_ms)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        await self._pass("count")
        return await super().count_unread(usernames, now_ms)

    async def claim(self, claim: Claim) -> Claimed:
        await self._pass("claim")
        return await super().claim(claim)

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        await self._pass("unclaim")
        return await super().unclaim(claim, ids)

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        await self._pass("arrivals")
        return await super().arrivals(usernames, after)


@dataclass
class LateStore(MemoryStore):
    """Claims nothing the first time, as if the claim had arrived too late."""

    async def claim(self, claim: Claim) -> Claimed:
        if self.calls["claim"]:
            return await super().claim(claim)
        self.calls["claim"] += 1
        return Claimed(set(), is_final=True)


@dataclass
class FailingStore(MemoryStore):
    """Raises `failures[kind]` from every call of that kind."""

    failures: dict[str, BaseException] = field(default_factory=dict)

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        if failure := self.failures.get("insert"):
            raise failure
        return await super().insert(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        if failure := self.failures.get("find"):
            raise failure
        return await super().find_unread(usernames, limit, now_ms)

    async def claim(self, claim: Claim) -> Claimed:
        if failure := self.failures.get("claim"):
            raise failure
        return await super().claim(claim)
