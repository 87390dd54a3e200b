"""The interface of a store, and its guarantees.

`workers.store.mongo` is the real store; tests have small ones with the same guarantees. A method
raises `StoreUnavailable` if it changed nothing, and `OutcomeUnknown` if it may have changed
something. Callers need not handle any other error.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

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
    Unread,
)
from workers.errors import ServiceError

#: The election of a primary, which names the time until the next election.
Term: TypeAlias = str


class Found(NamedTuple):
    """Unread messages by inbox, oldest first.

    `complete` names the inboxes whose unread messages were all found. The search goes through the
    inboxes one after the other and may stop at its limit. At most one inbox is therefore found in
    part; inboxes that are neither in `messages` nor in `complete` were not searched.

    A `term` means that the search was answered by a member that was elected primary in this term
    before the search was sent. It may have been deposed since, and then lack messages. The result
    is current if `Store.confirm` returns the same term. Without a term, it is certainly current.
    """

    messages: Mapping[str, Sequence[Unread]]
    complete: Collection[str]
    term: Term | None = None


class Claimed(NamedTuple):
    """The ids that a claim took. `is_final` means that no copy of it can still take effect."""

    ids: set[str]
    is_final: bool


class Settled(NamedTuple):
    """The number of messages in the requested state, and how many of them this call changed."""

    messages: int
    changed: int


class Ended(NamedTuple):
    """What a sweep ended, leases and delays: the inboxes of its messages, and how many of them are
    unread again after a lease, had expired, or moved to a dead-letter inbox.

    `due_ms` has the due time of each scheduled message that became unread. `first_ms` is the first
    end of a lease or a delay that the sweep found, or None if there was none. If `more` is set,
    others are over that it did not handle. Of the `dead` messages, `dead_ran_out` had not been
    released.
    """

    usernames: Collection[str]
    returned: int
    expired: int
    first_ms: int | None = None
    due_ms: Sequence[int] = ()
    more: bool = False
    dead: int = 0
    dead_ran_out: int = 0


class PendingCount(NamedTuple):
    """A count of the pending messages, or None if it failed, and the time at which it began.

    From `valid_until_ms` on, there must be a newer one: otherwise their number is unknown.
    """

    messages: int | None
    counted_ms: int
    valid_until_ms: int


class Leader(NamedTuple):
    """The node that holds the leader lease, until when, and the last count that it published.

    `is_own` means that the caller holds it, and `is_sole` that no other process uses the database.
    """

    node: str
    is_own: bool
    until_ms: int
    pending: PendingCount
    is_sole: bool = False


#: How long the leader lease lasts, in seconds, and that of a process that has the database alone.
LEADER_LEASE_S, SOLE_LEASE_S = 6.0, 30.0


class Storage(NamedTuple):
    """The database's disk in bytes: total, free, and reusable inside the database's files.

    `total` is 0 if the database does not report its disk. `used` is what the messages and their
    indexes take up.
    """

    total: int
    free: int
    reusable: int
    used: int = 0


class InboxSize(NamedTuple):
    """The unread messages of an inbox, and the bytes of their texts."""

    messages: int
    bytes: int


class Arrivals(NamedTuple):
    """The inboxes that received messages. If `is_any` is set, any other inbox may have, too."""

    usernames: Collection[str]
    is_any: bool = False


class ArrivalStream(Protocol):
    """Reports which inboxes received messages from any process, once these are durable.

    One task calls `next`; another may call `close` meanwhile.
    """

    async def next(self) -> Arrivals | None:
        """Return the next arrivals, or none after a second. Returns None once this is closed.

        Raises `StoreUnavailable` if the stream has ended: arrivals may be missed from then on.
        """
        ...

    async def close(self) -> None:
        """End the stream. A call of `next` returns a second later at most. Safe to call twice."""
        ...


#: The events that are counted: accepted = read + expired + revoked + dead + pending.
CountedEvent: TypeAlias = Literal["accepted", "read", "expired", "revoked", "dead"]
#: The id of the message that an earlier post with the same key stored.
Repeated: TypeAlias = str
#: None if the message was stored, an id if the post is a repeat, or an error.
Insertion: TypeAlias = ServiceError | Repeated | None


class Store(Protocol):
    """Persistence in batches. All times are milliseconds of the database's clock."""

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        """Store messages. Returns an outcome for each once it is durable on a majority.

        A message that cannot be stored fails alone. A message whose id exists already counts as
        stored, since ids are created before the first attempt. Of all posts with the same key, in
        all processes, one is stored. The others get its id, or `KeyReused`. A post
        `is_for_full_inbox` is never stored: it gets the id of an earlier one, or `InboxFull`.
        """
        ...

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """Return at most `limit` messages of these inboxes that are unread and not expired.

        A message may be missing until `confirm` has confirmed the result's term.
        """
        ...

    @property
    def has_terms(self) -> bool:
        """Whether searches currently have terms that need a confirmation."""
        ...

    async def confirm(self) -> Term | None:
        """Return the term in which a majority has just accepted a write from the primary.

        All results of that term are then current for reads that arrived before this call, no matter
        when each search was sent. Returns None if no search needs it. Raises only
        `StoreUnavailable`.
        """
        ...

    async def claim(self, claim: Claim) -> Claimed:
        """Take these messages for the caller alone.

        This is atomic for each message: of all claims, in all processes, exactly one gets it. When
        this returns, the claim is durable on a majority. If it raises `OutcomeUnknown`, some
        messages may be claimed, or may still become claimed: `void` prevents the latter, and then
        `unclaim` undoes the former. A lease is a delivery: it adds 1 to the message's `deliveries`,
        once, also if its reply was lost. When it ends, its messages are unread again, expired, or
        dead letters (see `end_leases`).
        """
        ...

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        """Close these messages to a claim: from now on, no copy of it takes any of them.

        What it has taken already stays claimed. Safe to repeat.
        """
        ...

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        """Make messages unread again that a claim took and nobody received. Returns their number.

        A lease that is undone is no delivery. One that ran out before this call is, and its message
        may have become a dead letter, which stays one.
        Call this only for a claim that is final, or to which they are closed. Safe to repeat.
        """
        ...

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        """Count the messages of each inbox that are unread and not expired.

        A count above `COUNT_MAX` only means that there are more. Empty inboxes may be left out.
        """
        ...

    async def measure_inbox(
        self, username: str, messages_max: int, has_bytes: bool, now_ms: int
    ) -> InboxSize:
        """Measure the unread messages of an inbox. Stops after `messages_max` of them.

        The bytes are 0 unless `has_bytes` is set, since that reads every text.
        """
        ...

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        """Record the messages for reads with a key.

        Returns the valid batch of each key, which may be that of another process.
        """
        ...

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        """Return the batches of these keys that are still valid."""
        ...

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        """Make a batch permanent before it is delivered. Returns False if it was discarded.

        Safe to repeat.
        """
        ...

    async def discard_batch(self, batch: KeyedBatch) -> bool:
        """Delete a batch that got no messages. Returns False if it was delivered, and so stays.

        Safe to repeat.
        """
        ...

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        """Return a batch's messages that are claimed for it and not expired, oldest first."""
        ...

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        """Mark messages as read while their lease lasts. Safe to repeat."""
        ...

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        """Return the lost messages of a lease: those neither acknowledged nor released in time.

        Call this right after `acknowledge`, with the same command and time. Messages that were
        purged since are unknown. If the command has no `ids`, a few thousand are reported at most.
        """
        ...

    async def release(self, command: Release, now_ms: int) -> Settled:
        """End a lease early. Safe to repeat.

        If nothing was delivered, this subtracts 1 from the `deliveries` of each message that the
        lease holds, once, also if the reply was lost. Returns the messages that are unread again,
        together with the exhausted ones: nobody can acknowledge, extend or read these any more, and
        the next `end_leases` moves them. Until then they are pending and can be revoked.

        After a release with a delay, the messages are scheduled: nobody holds them, and they are
        unread from the end of the delay on, unless they expire before. A repeat returns them, too,
        and does not change their delay. Exhausted messages have none.
        """
        ...

    async def extend(self, command: Extend, now_ms: int) -> int:
        """Prolong a lease, but not beyond a message's expiry. Returns how many it holds."""
        ...

    async def held(self, command: Held, now_ms: int) -> frozenset[str]:
        """Return the ids of the messages that a lease still holds."""
        ...

    async def resume(self, command: Resume, now_ms: int) -> Settled:
        """Mark what a stream delivered up to a message as read, unless it was claimed since.

        A message that became a dead letter stays one.
        """
        ...

    async def end_leases(self, now_ms: int) -> Ended:
        """End the leases that ran out, of all nodes, and move exhausted messages.

        A message is exhausted if it was delivered at least `max_deliveries` times and is no dead
        letter itself. If it has expired, or expires within a second, it ends as expired. Otherwise
        it becomes a dead letter: its status is "dead" from then on, nobody can read, acknowledge,
        extend, resume or revoke it, and it never expires. A copy with a new id appears in its
        dead-letter inbox exactly once, no matter which nodes call this, when they die, and how
        late a write arrives. The copy has the text and an `Origin`, no deliveries, no receipt and
        no key; it lives as long as the message would have, but at least an hour.

        The copy may be readable a moment before the message is counted as dead: until then, both
        are pending. `Ended.dead` counts each message once. The caller counts it as dead, and its
        copy as accepted. `usernames` has the dead-letter inboxes, too. If a move fails, the rest of
        the sweep counts, and the next call goes on with the move.
        """
        ...

    async def lead(self, pending: PendingCount | None) -> Leader:
        """Take or renew the leader lease, if it is free, over, or the caller's. Returns who leads.

        If the caller leads, `pending` is published. Two nodes may lead at once for a moment, since
        a process may pause after this returns: everything that a leader does must allow that.
        """
        ...

    async def resign(self) -> None:
        """Give up the leader lease if the caller holds it, so that another node leads soon."""
        ...

    async def forget_nodes(self, now_ms: int) -> None:
        """Delete what nodes noted about themselves an hour ago, and what their dashboards recorded
        more than a day ago.
        """
        ...

    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        """Return the status of a message, or None if there is none with this receipt."""
        ...

    async def revoke(self, command: Revoke, now_ms: int) -> tuple[MessageStatus | None, int]:
        """Take back an unread message. Returns its status, and how many messages were revoked.

        A dead letter's original cannot be revoked, nor can the dead letter: it has no receipt.
        """
        ...

    def count_later(self, claim: KeyedClaim, ids: Sequence[str]) -> None:
        """Let `count_resolved` count which of these messages the claim has taken, when it takes no
        more, and nobody makes them unread again. Until then, it may be too early to call them read.
        """
        ...

    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        """Count what writes that raised `OutcomeUnknown` did after all, as far as that is certain.

        Each message is counted once. Claims that `unclaim` undoes are not counted.
        """
        ...

    async def count_pending(self) -> int:
        """Count the messages that are neither read, expired, revoked nor dead, in seconds."""
        ...

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        """Mark expired unread messages. Returns how many this call marked.

        The leader marks those of all nodes. It searches no time twice, so each other node marks
        those that it made unread again itself.
        """
        ...

    async def retire(self, now_ms: int) -> None:
        """Remove the text of read and expired messages that are kept for their sender."""
        ...

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        """Open a stream that reports arrivals in these inboxes. None stands for all inboxes.

        It continues where the last report of `after` ended, or begins now. The caller closes both.
        """
        ...

    async def keep_indexes(self) -> None:
        """Create lost indexes again. Cheap to call often: it rarely asks the database."""
        ...

    async def measure_clock(self) -> None:
        """Compare the local clock with the database's, and correct `DatabaseClock`."""
        ...

    async def measure_storage(self) -> Storage | None:
        """Measure the disk of the primary. Returns None if the database does not report it."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` if a write would find no primary with a majority."""
        ...
