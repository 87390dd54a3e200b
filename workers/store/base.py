"""What the shards need of a store, and what it promises them.

`workers.store.mongo` is the real one; tests have small ones that keep the same promises.
A method raises `StoreUnavailable` where it changed nothing, `OutcomeUnknown` where it may have,
and nothing else that a caller should handle.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    DiscardedClaims,
    Extend,
    Held,
    KeyedBatch,
    Message,
    MessageStatus,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
    Unread,
)
from workers.errors import ServiceError


class Found(NamedTuple):
    """Unread messages by inbox, oldest first.

    `complete` names the inboxes whose unread messages are all here. The search goes through the
    inboxes one after the other and may stop at its limit, so that at most one inbox is there in
    part, and those that are neither in `messages` nor in `complete` were not looked at.
    """

    messages: Mapping[str, Sequence[Unread]]
    complete: Collection[str]


class Claimed(NamedTuple):
    """The ids that a claim got, and whether no copy of it can still take effect."""

    ids: set[str]
    is_final: bool


class Settled(NamedTuple):
    """The messages in the state that was asked for, and how many this call brought there."""

    messages: int
    changed: int


class Ended(NamedTuple):
    """Leases that ran out: the inboxes with messages that are unread again, how many messages
    are, and how many had expired meanwhile.
    """

    usernames: Collection[str]
    returned: int
    expired: int


class Storage(NamedTuple):
    """The bytes of the database's disk: in all, free, and free inside the database's files."""

    total: int
    free: int
    reusable: int


#: What is counted of messages: accepted = read + expired + revoked + pending.
CountedEvent: TypeAlias = Literal["accepted", "read", "expired", "revoked"]
#: The id of the message that was first stored under a key, where a post repeats it.
Repeated: TypeAlias = str
#: None for a message that was stored, the id of the first for a repeat, or what went wrong.
Insertion: TypeAlias = ServiceError | Repeated | None


class Store(Protocol):
    """Persistence, a batch at a time. All times are milliseconds of the database's clock."""

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        """Store messages; for each what became of it, once that is durable on a majority.

        One message that cannot be stored fails alone. A message that is there already counts
        as stored: its id was made before the first try. Of the posts with one key, over all
        processes, one is stored; the others are told its id, or `KeyReused`.
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
        A message that is taken on loan is unread again when that is over, or expired.
        """
        ...

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        """Make messages unread again that this claim took and nobody got; how many there were.

        For ids of a claim that is final, or whose time is over. Without a token, those of all
        claims for its key before it. Safe to repeat.
        """
        ...

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        """How many messages of these inboxes are unread and not expired.

        Above `COUNT_MAX` any greater number stands for all. Inboxes without any may be left out.
        """
        ...

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        """Decide what reads with a key get: for each the batch that holds, maybe another's."""
        ...

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        """What was decided for these keys, as far as it holds."""
        ...

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        """Have a decision hold for good, before anybody is answered; False where it is forgotten.

        Safe to repeat.
        """
        ...

    async def discard_batch(self, batch: KeyedBatch) -> None:
        """Take back a decision that came to nothing, unless it was given. Safe to repeat."""
        ...

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        """The messages of a batch that are claimed for its key and not expired, oldest first."""
        ...

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        """Mark leased messages as read, as long as their lease lasts. Safe to repeat."""
        ...

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        """Which messages of a lease are lost: neither acknowledged nor given back in time.

        For a command that `acknowledge` has carried out at the same time. A message that has been
        purged since is not known any more. Without `ids` of at most thousands of them.
        """
        ...

    async def release(self, command: Release, now_ms: int) -> Settled:
        """End a lease before its time. Safe to repeat."""
        ...

    async def extend(self, command: Extend, now_ms: int) -> int:
        """Put off a lease's end, not past a message's own. How many messages it holds."""
        ...

    async def held(self, command: Held, now_ms: int) -> frozenset[str]:
        """The ids of the messages that a lease still holds."""
        ...

    async def resume(self, command: Resume, now_ms: int) -> Settled:
        """Mark as read what a stream delivered up to a message, and nobody took since."""
        ...

    async def end_leases(self, now_ms: int) -> Ended:
        """Give back what was leased and not acknowledged in time."""
        ...

    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        """What became of a message; None where there is none with this receipt."""
        ...

    async def revoke(self, command: Revoke, now_ms: int) -> tuple[MessageStatus | None, int]:
        """Take back a message that is unread: its status, and how many this call took back."""
        ...

    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        """What writes that raised `OutcomeUnknown` have done after all, as far as that is certain.

        Each message is told once. Not the claims that `release` gives back.
        """
        ...

    async def count_pending(self) -> int:
        """How many messages are neither read, nor expired, nor revoked. May take seconds."""
        ...

    async def expire(self, now_ms: int) -> int:
        """Mark the unread messages that have expired; how many this call marked."""
        ...

    async def retire(self, now_ms: int) -> None:
        """Take the text out of dead messages that are kept for their sender."""
        ...

    def arrivals(self) -> AsyncIterator[Collection[str] | None]:
        """Inboxes that got a message, as it becomes durable, of whatever process.

        None where something was missed: whoever waits has to look. That is always the first.
        Ends by raising; the caller begins again.
        """
        ...

    async def keep_indexes(self) -> None:
        """Make indexes again that were lost while the store is open. Often called; seldom looks."""
        ...

    async def measure_clock(self) -> None:
        """Compare the local clock with the database's, and correct the former's reading."""
        ...

    async def measure_storage(self) -> Storage | None:
        """Measure the disk of the primary; None where the database does not say."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` where a write would find no primary with a majority."""
        ...
