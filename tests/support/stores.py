"""Small stores that keep the contract of `workers.store.base`, for tests of the engine."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workers.commands import Claim, Message, Post
from workers.errors import ServiceError, StoreUnavailable
from workers.store.base import Claimed, Found


def new_claim(
    usernames: Sequence[str], ids: Sequence[str], at_ms: int, valid_s: float = 5.0
) -> Claim:
    """A claim as a shard makes one, with a token of its own."""
    until_ms = int((time.time() + valid_s) * 1000)
    return Claim(secrets.token_hex(16), tuple(usernames), tuple(ids), at_ms, until_ms)


@dataclass
class MemoryStore:
    """The contract on a dictionary. Counts the calls of each kind."""

    posts: dict[str, Post] = field(default_factory=dict)
    claimed: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    away: bool = False

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        self.calls["insert"] += 1
        await asyncio.sleep(0)
        for post in posts:
            self.posts.setdefault(post.id, post)
        return [None] * len(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        self.calls["find"] += 1
        await asyncio.sleep(0)
        unread = self._unread(usernames, now_ms)
        messages: dict[str, list[Message]] = {}
        for post in unread[:limit]:
            messages.setdefault(post.username, []).append(Message(post.text, post.id))
        if len(unread) < limit:
            return Found(messages, set(usernames))
        last = unread[limit - 1].username
        return Found(messages, {username for username in usernames if username < last})

    async def claim(self, claim: Claim) -> Claimed:
        self.calls["claim"] += 1
        await asyncio.sleep(0)
        owned = {each for each in claim.ids if self.claimed.get(each, claim.token) == claim.token}
        self.claimed.update(dict.fromkeys(owned, claim.token))
        return Claimed(owned, is_final=True)

    async def release(self, claim: Claim, ids: Sequence[str]) -> int:
        self.calls["release"] += 1
        await asyncio.sleep(0)
        mine = [each for each in ids if self.claimed.get(each) == claim.token]
        for each in mine:
            del self.claimed[each]
        return len(mine)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        self.calls["count"] += 1
        await asyncio.sleep(0)
        return Counter(post.username for post in self._unread(usernames, now_ms))

    async def expire(self, now_ms: int) -> int:
        return 0

    async def measure_clock(self) -> None:
        pass

    async def ping(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    def _unread(self, usernames: Collection[str], now_ms: int) -> list[Post]:
        unread = (
            post
            for post in self.posts.values()
            if post.username in usernames
            and post.id not in self.claimed
            and post.expires_ms >= now_ms
        )
        return sorted(unread, key=lambda post: (post.username, post.id))


@dataclass
class GateStore(MemoryStore):
    """Holds every call of the kinds in `shut` until `open` is called."""

    shut: set[str] = field(default_factory=set)
    _held: asyncio.Event = field(default_factory=asyncio.Event)
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    def open(self) -> None:
        """Let the calls that wait go on, and all later ones."""
        self.shut.clear()
        self._gate.set()

    def open_once(self) -> None:
        """Let the calls that wait go on, and none of the later ones."""
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

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        await self._pass("insert")
        return await super().insert(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        await self._pass("find")
        return await super().find_unread(usernames, limit, now_ms)

    async def claim(self, claim: Claim) -> Claimed:
        await self._pass("claim")
        return await super().claim(claim)

    async def release(self, claim: Claim, ids: Sequence[str]) -> int:
        await self._pass("release")
        return await super().release(claim, ids)


@dataclass
class LateStore(MemoryStore):
    """Claims nothing the first time, as where the claim's time was over when it arrived."""

    async def claim(self, claim: Claim) -> Claimed:
        if self.calls["claim"]:
            return await super().claim(claim)
        self.calls["claim"] += 1
        return Claimed(set(), is_final=True)


@dataclass
class FailingStore(MemoryStore):
    """Raises `failures[kind]` from calls of that kind, as often as it is left there."""

    failures: dict[str, BaseException] = field(default_factory=dict)

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
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
