"""A small database in memory, and the effect of each operation of a store on it.

Each method is one operation with the guarantees of `workers.store.base`, applied at once. Every
change can be undone, for a database that fails over. The small stores of the tests and the
simulation use this.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import structs

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
    Origin,
    Post,
    Release,
    Resume,
    Revoke,
    Track,
    Unread,
)
from workers.dead_letters import DeadLetters
from workers.errors import InboxFull, KeyReused
from workers.store.base import Ended, Found, Insertion, Settled

#: An exhausted message with less time than this expires instead of moving, in ms. The shortest
#: lifetime of a dead letter, in ms.
LIFE_LEFT_MIN_MS, DEAD_LETTER_MS = 1000, 3_600_000


class Death(NamedTuple):
    """The mark of a message that moves, or has moved, to a dead-letter inbox."""

    at_ms: int
    id: str
    inbox: str


@dataclass
class Stored:
    """A document.

    `token` is the claim's token, and `batch` that of its batch if it has a key. `voided` has the
    tokens of abandoned claims. `lease` is the last lease's token; `acknowledged`, `returned` and
    `delayed` say how that lease ended. One that was returned with a delay is both. `lost_by` has
    the earlier leases that ran out. `mark` identifies the call that expired, revoked or moved the
    message. `deliveries` counts its leases. A message that moves has a `death`, and the copy of it
    an `origin`.
    """

    post: Post
    unread: bool = True
    token: str = ""
    key: str = ""
    batch: str = ""
    voided: tuple[str, ...] = ()
    claimed_ms: int = 0
    lease: str = ""
    until_ms: int | None = None
    again: bool = False
    acknowledged: bool = False
    returned: bool = False
    delayed: bool = False
    lost_by: tuple[str, ...] = ()
    expired: bool = False
    mark: str = ""
    revoked_ms: int | None = None
    receipts: tuple[str, ...] = ()
    deliveries: int = 0
    death: Death | None = None
    origin: Origin | None = None

    @property
    def is_pending(self) -> bool:
        return self.unread or self.until_ms is not None

    @property
    def is_scheduled(self) -> bool:
        """Whether its `until_ms` is the end of a delay, not of a lease."""
        return self.until_ms is not None and (not self.lease or self.delayed)


class Decision(NamedTuple):
    """The batch of a key, and whether it may have been delivered."""

    batch: KeyedBatch
    is_given: bool


@dataclass
class Documents:
    """Messages by id, and batches by key."""

    documents: dict[str, Stored] = field(default_factory=dict)
    reads: dict[str, Decision] = field(default_factory=dict)
    #: Functions that undo the changes, oldest first. A second call makes the change again.
    undo: list[Callable[[], None]] = field(default_factory=list)
    dead_letters: DeadLetters = field(default_factory=DeadLetters)

    def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        """Insert documents. An existing document is not changed."""
        return [self._insert(post) for post in posts]

    def _insert(self, post: Post) -> Insertion:
        if post.id in self.documents:
            return None
        for other in self.documents.values():
            if post.key is not None and other.post.key is not None:
                if other.post.key.hash != post.key.hash or other.post.username != post.username:
                    continue
                if other.post.key.body != post.key.body:
                    return KeyReused("another body")
                if post.receipt and post.key.gets_receipt:
                    self.change(other, receipts=(*other.receipts, post.receipt))
                return other.post.id
        if post.is_for_full_inbox:
            return InboxFull()
        receipts = (post.receipt,) if post.receipt else ()
        stored = Stored(
            post, unread=not post.due_ms, until_ms=post.due_ms or None, receipts=receipts
        )
        self.documents[post.id] = stored

        def undo() -> None:
            if self.documents.pop(post.id, None) is None:
                self.documents[post.id] = stored

        self.undo.append(undo)
        return None

    def unread(self, usernames: Collection[str], now_ms: int) -> list[Post]:
        """Return the posts that a search finds, in its order."""
        found = (
            stored.post
            for stored in self.documents.values()
            if stored.unread
            and stored.post.username in usernames
            and stored.post.expires_ms >= now_ms
        )
        return sorted(found, key=lambda post: (post.username, post.id))

    def claim(self, claim: Claim, ids: Sequence[str]) -> None:
        """Claim these messages of a claim."""
        for stored in self.of(ids):
            if not self.is_claimable(stored, claim):
                continue
            if not isinstance(claim, LeaseClaim):
                self.change(
                    stored,
                    unread=False,
                    token=claim.token,
                    key=claim.key if isinstance(claim, KeyedClaim) else "",
                    batch=claim.batch if isinstance(claim, KeyedClaim) else "",
                    claimed_ms=claim.at_ms,
                )
            else:
                until_ms = min(claim.at_ms + claim.lease_ms, stored.post.expires_ms)
                self.change(
                    stored,
                    unread=False,
                    lease=claim.token,
                    until_ms=until_ms,
                    again=bool(stored.lease),
                    deliveries=stored.deliveries + 1,
                    returned=False,
                    delayed=False,
                    lost_by=stored.lost_by + ((stored.lease,) if _has_run_out(stored) else ()),
                )

    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        """Return whether the filter of a claim matches a document."""
        lives = stored.post.expires_ms >= claim.at_ms
        is_open = stored.unread and not {*claim.fences} & {*stored.voided}
        if isinstance(claim, LeaseClaim):
            # A copy that arrives after the lease has ended is no second delivery.
            return is_open and stored.lease != claim.token
        return is_open and (lives or not isinstance(claim, KeyedClaim))

    def owned(self, claim: Claim) -> set[str]:
        """Return the ids that have the claim's token."""
        return {
            stored.post.id
            for stored in self.of(claim.ids)
            if claim.token == (stored.lease if isinstance(claim, LeaseClaim) else stored.token)
        }

    def void(self, token: str, ids: Sequence[str]) -> None:
        """Close messages to the claims with this token."""
        for stored in self.of(ids):
            if token not in stored.voided:
                self.change(stored, voided=(*stored.voided, token))

    def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        """Make messages unread that the claim took."""
        if isinstance(claim, DiscardedClaims):
            mine = [stored for stored in self.of(ids) if stored.batch == claim.token]
        else:
            mine = [
                stored
                for stored in self.of(ids)
                if claim.token == stored.token
                or (
                    claim.token == stored.lease
                    and stored.until_ms is not None
                    and stored.death is None
                )
            ]
        for stored in mine:
            # The lease has neither lost nor delivered messages that nobody received.
            was_leased = isinstance(claim, LeaseClaim)
            free: dict[str, Any] = {"unread": True, "token": "", "key": "", "batch": ""}
            self.change(
                stored,
                **free,
                until_ms=None,
                returned=stored.returned or was_leased,
                deliveries=stored.deliveries - was_leased,
            )
        return len(mine)

    def record_batch(self, batch: KeyedBatch, now_ms: int) -> KeyedBatch:
        """Record a batch, unless the key has a valid one."""
        holding = self.reads.get(batch.key)
        if holding is None or holding.batch.until_ms < now_ms:
            self._set_read(batch.key, Decision(batch, is_given=False))
        return self._holding(batch.key)

    def _holding(self, key: str) -> KeyedBatch:
        batch, is_given = self.reads[key]
        return structs.replace(batch, is_given=is_given)

    def _set_read(self, key: str, decision: Decision | None) -> None:
        other = decision

        def swap() -> None:
            nonlocal other
            other, before = self.reads.pop(key, None), other
            if before is not None:
                self.reads[key] = before

        swap()
        self.undo.append(swap)

    def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        return {
            key: self._holding(key)
            for key in keys
            if key in self.reads and self.reads[key].batch.until_ms >= now_ms
        }

    def mark_delivered(self, batch: KeyedBatch) -> bool:
        holding = self.reads.get(batch.key)
        if holding is None or holding.batch.token != batch.token:
            return False
        if not holding.is_given:
            self._set_read(batch.key, holding._replace(is_given=True))
        return True

    def discard_batch(self, batch: KeyedBatch) -> bool:
        holding = self.reads.get(batch.key)
        if holding is None or holding.batch.token != batch.token:
            return True
        if not holding.is_given:
            self._set_read(batch.key, None)
        return not holding.is_given

    def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        return [
            Message(stored.post.text, stored.post.id)
            for stored in sorted(self.of(batch.ids), key=lambda stored: stored.post.id)
            if stored.batch == batch.token and stored.post.expires_ms >= now_ms
        ]

    def acknowledge(self, command: Acknowledge, now_ms: int, token: str) -> Settled:
        leased = self._of_lease(command)
        changed = self._read([each for each in leased if _lasts(each, now_ms)], now_ms, token)
        if changed and (command.ids is None or changed == len(command.ids)):
            return Settled(changed, changed)
        return Settled(sum(each.acknowledged for each in leased), changed)

    def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        leased = self._of_lease(command)
        acknowledged = tuple(each.post.id for each in leased if each.acknowledged)
        if command.ids is not None:
            return Audit(
                acknowledged, tuple(each for each in command.ids if each not in acknowledged)
            )
        lost = [each for each in leased if _has_run_out(each) and not _lasts(each, now_ms)]
        lost += [
            stored
            for stored in self.documents.values()
            if stored.post.username == command.username
            and not stored.lease.startswith(command.lease + ".")
            and any(each.startswith(command.lease + ".") for each in stored.lost_by)
        ]
        return Audit(acknowledged if lost else (), tuple(each.post.id for each in lost))

    def release(self, command: Release, now_ms: int) -> Settled:
        leased = self._of_lease(command)
        mine = [each for each in leased if _lasts(each, now_ms)]
        for stored in mine:
            if not command.is_delivered:
                self.change(stored, deliveries=max(stored.deliveries - 1, 0))
            self.change(stored, **self._end_of(stored, command, now_ms), returned=True)
        before = [
            each
            for each in leased
            if each.unread or (command.delay_ms and each.delayed and each.is_pending)
        ]
        return Settled(len(mine) or len(before), len(mine))

    def _end_of(self, stored: Stored, command: Release, now_ms: int) -> dict[str, Any]:
        """Return the change with which a release ends a lease."""
        if self.is_exhausted(stored):
            # Over by every clock: the next sweep moves it.
            return {"until_ms": 0}
        if command.delay_ms:
            until_ms = min(now_ms + command.delay_ms, stored.post.expires_ms)
            return {"until_ms": until_ms, "delayed": True}
        return {"unread": True, "until_ms": None}

    def extend(self, command: Extend, now_ms: int) -> int:
        leased = [each for each in self._of_lease(command) if _lasts(each, now_ms)]
        for stored in leased:
            longer_ms = max(stored.until_ms or 0, now_ms + command.ttl_ms)
            self.change(stored, until_ms=min(longer_ms, stored.post.expires_ms))
        return len(leased)

    def held(self, command: Held, now_ms: int) -> frozenset[str]:
        return frozenset(each.post.id for each in self._of_lease(command) if _lasts(each, now_ms))

    def resume(self, command: Resume, now_ms: int, token: str) -> Settled:
        last = self.documents.get(command.last)
        if last is None or last.post.username != command.username or not last.lease:
            return Settled(0, 0)
        name = last.lease.partition(".")[0] + "."
        mine = [
            stored
            for stored in self.documents.values()
            if stored.post.username == command.username
            and stored.is_pending
            and not stored.delayed
            and stored.death is None
            and stored.post.expires_ms >= now_ms
            and (
                stored is last
                if last.again
                else stored.lease.startswith(name)
                and (stored.lease, stored.post.id) <= (last.lease, last.post.id)
            )
        ]
        changed = self._read(mine, now_ms, token)
        return Settled(changed, changed)

    def end_leases(self, now_ms: int, mark: str = "") -> Ended:
        """End leases and delays, except those of exhausted messages."""
        over = [stored for stored in self.documents.values() if self.is_over(stored, now_ms)]
        expired = 0
        due_ms: list[int] = []
        for stored in over:
            is_late = stored.post.expires_ms < now_ms
            expired += is_late
            if not is_late and stored.is_scheduled:
                due_ms.append(stored.until_ms or 0)
            end = {"expired": True, "mark": mark} if is_late else {"unread": True}
            self.change(stored, until_ms=None, **end)
        usernames = list(dict.fromkeys(stored.post.username for stored in over))
        ends = [each.until_ms for each in self.documents.values() if each.until_ms is not None]
        first_ms = now_ms if over else min(ends, default=None)
        returned = len(over) - expired - len(due_ms)
        return Ended(usernames, returned, expired, first_ms, sorted(due_ms))

    def is_over(self, stored: Stored, now_ms: int) -> bool:
        """Return whether a lease or a delay is over, and its message unread or expired then."""
        if stored.until_ms is None or stored.until_ms >= now_ms or stored.death is not None:
            return False
        return stored.post.expires_ms < now_ms or not self.is_exhausted(stored)

    def is_exhausted(self, stored: Stored) -> bool:
        """Return whether a message becomes a dead letter when its lease ends."""
        return self.dead_letters.is_exhausted(
            stored.deliveries, is_dead_letter=stored.origin is not None
        )

    def moving(self, now_ms: int) -> list[str]:
        """Return the ids of the messages that move: exhausted ones whose lease is over."""
        return [
            stored.post.id
            for stored in self.documents.values()
            if stored.until_ms is not None
            and stored.until_ms < now_ms
            and (stored.death is not None or self.is_exhausted(stored))
        ]

    def mark_dead(self, copies: Sequence[tuple[str, str]], now_ms: int) -> None:
        """Step 1 of a move: mark messages, given with the ids of their copies to be."""
        for message_id, copy_id in copies:
            stored = self.documents.get(message_id)
            if stored is None or stored.death is not None or not self.is_exhausted(stored):
                continue
            lives = stored.post.expires_ms >= now_ms + LIFE_LEFT_MIN_MS
            if lives and stored.until_ms is not None and stored.until_ms < now_ms:
                inbox = self.dead_letters.inbox_of(stored.post.username)
                self.change(stored, death=Death(now_ms, copy_id, inbox), until_ms=0)

    def copy_dead(self, ids: Sequence[str], now_ms: int) -> None:
        """Step 2 of a move: store the dead letters of marked messages, unless they exist."""
        for stored in self.of(ids):
            if stored.death is None or stored.until_ms is None:
                continue
            post = structs.replace(
                stored.post,
                id=stored.death.id,
                username=stored.death.inbox,
                created_ms=now_ms,
                expires_ms=max(stored.post.expires_ms, now_ms + DEAD_LETTER_MS),
                key=None,
                receipt="",
                due_ms=0,
            )
            if post.id not in self.documents:
                self._insert(post)
                origin = Origin(stored.post.username, stored.post.id, stored.deliveries)
                self.documents[post.id].origin = origin

    def end_dead(self, ids: Sequence[str], mark: str) -> int:
        """Step 3 of a move: end messages that have a dead letter. Returns how many it ended."""
        mine = [
            stored
            for stored in self.of(ids)
            if stored.death is not None
            and stored.until_ms is not None
            and stored.death.id in self.documents
            and mark not in stored.voided
        ]
        for stored in mine:
            self.change(stored, until_ms=None, mark=mark)
        return len(mine)

    def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        stored = self.documents.get(command.id)
        if stored is None or command.receipt not in stored.receipts:
            return None
        if stored.revoked_ms is not None:
            return MessageStatus("revoked", stored.revoked_ms)
        if stored.token:
            return MessageStatus("read", stored.claimed_ms)
        if stored.death is not None:
            return MessageStatus("dead", stored.death.at_ms)
        if stored.post.expires_ms < now_ms:
            return MessageStatus("expired", stored.post.expires_ms)
        if (stored.until_ms or 0) < now_ms:
            return MessageStatus("pending", None)
        if stored.is_scheduled:
            return MessageStatus("scheduled", stored.until_ms)
        return MessageStatus("leased", None)

    def revoke(
        self, command: Revoke, now_ms: int, mark: str = ""
    ) -> tuple[MessageStatus | None, int]:
        fate = self.track(command, now_ms)
        stored = self.documents.get(command.id)
        if fate is None or stored is None or fate.status not in ("pending", "scheduled"):
            return fate, 0
        if not stored.is_pending:
            return fate, 0
        if mark in stored.voided:
            return fate, 0
        # The lease may be over, but not ended by a sweep yet.
        self.change(stored, unread=False, until_ms=None, revoked_ms=now_ms, mark=mark)
        return MessageStatus("revoked", now_ms), 1

    def expire(self, now_ms: int, mark: str = "", from_ms: int = 0) -> int:
        dead = [
            stored
            for stored in self.documents.values()
            if stored.unread and from_ms <= stored.post.expires_ms < now_ms
        ]
        for stored in dead:
            self.change(stored, unread=False, expired=True, mark=mark)
        return len(dead)

    def pending(self) -> int:
        return sum(stored.is_pending for stored in self.documents.values())

    def of(self, ids: Sequence[str]) -> list[Stored]:
        """Return the existing documents with these ids."""
        return [self.documents[each] for each in ids if each in self.documents]

    def change(self, stored: Stored, **fields: Any) -> None:
        """Change a document, and record how to undo it."""
        other = fields

        def swap() -> None:
            nonlocal other
            other, values = {name: getattr(stored, name) for name in other}, other
            for name, value in values.items():
                setattr(stored, name, value)

        swap()
        self.undo.append(swap)

    def _of_lease(self, command: Acknowledge | Release | Extend | Held) -> list[Stored]:
        ids = None if isinstance(command, Extend | Held) else command.ids
        return [
            stored
            for stored in self.documents.values()
            if stored.post.username == command.username
            and stored.lease.startswith(command.lease + ".")
            and (ids is None or stored.post.id in ids)
        ]

    def _read(self, mine: Sequence[Stored], now_ms: int, token: str) -> int:
        mine = [stored for stored in mine if token not in stored.voided]
        for stored in mine:
            self.change(
                stored,
                unread=False,
                until_ms=None,
                token=token,
                claimed_ms=now_ms,
                acknowledged=True,
            )
        return len(mine)


def found_of(
    unread: Sequence[Post],
    usernames: Sequence[str],
    limit: int,
    documents: Mapping[str, Stored],
) -> Found:
    """Return the result of a search that finds these posts among these documents."""
    messages: dict[str, list[Unread]] = {}
    for post in unread[:limit]:
        stored = documents.get(post.id)
        found = Unread(
            Message(post.text, post.id),
            post.expires_ms,
            stored.deliveries if stored is not None else 0,
            stored.origin if stored is not None else None,
        )
        messages.setdefault(post.username, []).append(found)
    if len(unread) < limit:
        return Found(messages, set(usernames))
    last = unread[limit - 1].username
    return Found(messages, {username for username in usernames if username < last})


def _has_run_out(stored: Stored) -> bool:
    """Return whether the last lease ran out, if it is over."""
    return bool(stored.lease) and not stored.acknowledged and not stored.returned


def _lasts(stored: Stored, now_ms: int) -> bool:
    return stored.until_ms is not None and stored.until_ms >= now_ms and not stored.returned
