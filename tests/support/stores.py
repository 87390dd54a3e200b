"""Small stores that keep the contract of `workers.store.base`, for tests of the engine."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workers.commands import Message, Post
from workers.errors import ServiceError
from workers.store.base import Found


@dataclass
class MemoryStore:
    """The contract on a dictionary. Counts the calls of each kind."""

    posts: dict[str, Post] = field(default_factory=dict)
    claimed: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)

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

    async def claim(self, usernames: Sequence[str], ids: Sequence[str], now_ms: int) -> set[str]:
        self.calls["claim"] += 1
        await asyncio.sleep(0)
        owned = set(ids) - self.claimed
        self.claimed |= owned
        return owned

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        self.calls["count"] += 1
        await asyncio.sleep(0)
        return Counter(post.username for post in self._unread(usernames, now_ms))

    async def expire(self, now_ms: int) -> int:
        return 0

    async def measure_clock(self) -> None:
        pass

    async def ping(self) -> None:
        pass

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

    async def claim(self, usernames: Sequence[str], ids: Sequence[str], now_ms: int) -> set[str]:
        await self._pass("claim")
        return await super().claim(usernames, ids, now_ms)


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

    async def claim(self, usernames: Sequence[str], ids: Sequence[str], now_ms: int) -> set[str]:
        if failure := self.failures.get("claim"):
            raise failure
        return await super().claim(usernames, ids, now_ms)
