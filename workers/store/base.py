"""What the shards need of a store, and what it promises them.

`workers.store.mongo` is the real one; tests have small ones that keep the same promises.
A method raises `StoreUnavailable` where it changed nothing, `OutcomeUnknown` where it may have,
and nothing else that a caller should handle.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from workers.commands import Claim, Message, Post
from workers.errors import ServiceError


class Found(NamedTuple):
    """Unread messages by inbox, oldest first.

    `complete` names the inboxes whose unread messages are all here. The search goes through the
    inboxes one after the other and may stop at its limit, so that at most one inbox is there in
    part, and those that are neither in `messages` nor in `complete` were not looked at.
    """

    messages: Mapping[str, Sequence[Message]]
    complete: Collection[str]


class Claimed(NamedTuple):
    """The ids that a claim got, and whether no copy of it can still take effect."""

    ids: set[str]
    is_final: bool


class Store(Protocol):
    """Persistence, a batch at a time. All times are milliseconds of the database's clock."""

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        """Store messages; for each None once it is durable on a majority, or what went wrong.

        One message that cannot be stored fails alone. A message that is there already counts
        as stored: its id was made before the first try.
        """
        ...

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """At most `limit` messages of these inboxes that are unread and not expired."""
        ...

    async def claim(self, claim: Claim) -> Claimed:
        """Take these messages for the caller alone.

        Atomic for each message: of all claims of it, over all processes, one gets it. When this
        returns, the claim is durable on a majority. Where it raises `OutcomeUnknown`, some may
        be claimed, or become so until the claim's time is over; `release` gives those back.
        """
        ...

    async def release(self, claim: Claim, ids: Sequence[str]) -> int:
        """Make messages unread again that this claim took and nobody got; how many there were.

        For ids of a claim that is final, or whose time is over. Safe to repeat.
        """
        ...

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        """How many messages of these inboxes are unread and not expired."""
        ...

    async def expire(self, now_ms: int) -> int:
        """Mark the unread messages that have expired; how many this call marked."""
        ...

    async def measure_clock(self) -> None:
        """Compare the local clock with the database's, and correct the former's reading."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` where a write would find no primary with a majority."""
        ...
