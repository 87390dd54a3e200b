"""The commands that a pool carries out, and their results: small frozen values.

`workers.pool` creates a command, a `workers.work_item` carries it to a shard, and `workers.shard`
carries it out. A shard turns a batch of reads into `Claim`s.

Times are milliseconds of the database's clock since 1970. The `username` of a command decides which
shard serves it. Its `size` is the number of bytes of UTF-8 that a queue holds for it.

A lease's `token` is the lease's name, a dot, and a number (see `delivery`). A stream has one lease;
its tokens number the deliveries in order. All other leases use the number 0.
"""

from typing import ClassVar, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct

#: The result of a command.
R = TypeVar("R", covariant=True)


class Command(Struct, Generic[R], frozen=True, gc=False):
    """A request to the pool. Its future returns an `R`."""

    size: ClassVar[int] = 0

    @property
    def username(self) -> str:
        """The name that decides which shard serves the command."""
        raise NotImplementedError


class Message(Struct, frozen=True, gc=False):
    """A message as its reader receives it, with the fields in the order of the specification."""

    text: str
    id: str


class Origin(Struct, frozen=True, gc=False):
    """Where a dead letter comes from: its inbox, its id there, and how often it was delivered."""

    username: str
    id: str
    deliveries: int


class Delivered(Message, frozen=True, gc=False, omit_defaults=True):
    """A message as the holder of its lease receives it.

    `deliveries` is the number of its leases at the time of the search, and this one. `dead` is the
    origin of a dead letter.
    """

    deliveries: int
    dead: Origin | None = None


class Unread(Struct, frozen=True, gc=False):
    """A message that a search found unread, and the time at which it expires.

    `deliveries` says how often it was leased before, and `origin` where a dead letter comes from.
    """

    message: Message
    expires_ms: int
    deliveries: int = 0
    origin: Origin | None = None

    def delivered(self) -> Delivered:
        """Return the message as the holder of a new lease receives it."""
        message = self.message
        return Delivered(message.text, message.id, self.deliveries + 1, self.origin)


class Key(Struct, frozen=True, gc=False):
    """The hash of a post's idempotency key, and the hash of the request that it belongs to.

    `gets_receipt` says whether a repeat of the post gets a receipt of its own.
    """

    hash: str
    body: str
    gets_receipt: bool = True


class Post(Command["str | Stored"], frozen=True, gc=False):
    """Store one message. Returns its id, or a `Stored` if the post has a key.

    `receipt` is the hash of the sender's receipt, or empty. With `is_for_full_inbox`, nothing is
    stored: the post is answered only if it repeats an earlier one, and otherwise raises
    `InboxFull`. A scheduled message is unread from its due time `due_ms` on; 0 stands for none.
    """

    id: str
    username: str
    text: str
    # Only a post has a size of its own; for all other commands it is a constant.
    size: int  # type: ignore[misc]
    created_ms: int
    expires_ms: int
    key: Key | None = None
    receipt: str = ""
    is_for_full_inbox: bool = False
    due_ms: int = 0


class Lease(Struct, frozen=True, gc=False):
    """The lease for a read: its token, and how long it lasts."""

    token: str
    ttl_ms: int


class Read(Command["Slice"], frozen=True, gc=False):
    """Claim the unread messages of an inbox, oldest first. Returns a `Slice`.

    - `limit`: claim at most this many messages; None for no limit.
    - `upto`: claim no message with a greater id. A read in several slices passes the time at which
      it began, so that it ends even if others keep posting.
    - `wait_s`: wait this many seconds for a first message.
    - `lease`: lease the messages instead of marking them as read.
    - `key`: the hash of an idempotency key. A repeat with this key returns the same messages.
    """

    username: str
    limit: int | None = None
    upto: str | None = None
    wait_s: float = 0.0
    lease: Lease | None = None
    key: str = ""


#: Counting stops at this number of unread messages in one inbox.
COUNT_MAX = 10_000


class Count(Command[int], frozen=True, gc=False):
    """Count the unread messages of an inbox without claiming any.

    Returns the exact number up to `COUNT_MAX`, and some greater number if there are more.
    """

    username: str


class Acknowledge(Command[int], frozen=True, gc=False):
    """Mark all messages of a lease, or those in `ids`, as read. Returns how many are read."""

    username: str
    lease: str
    ids: tuple[str, ...] | None = None


class Finish(Command["Finished"], frozen=True, gc=False):
    """Acknowledge, and report which of these messages were lost. Returns a `Finished`."""

    username: str
    lease: str
    ids: tuple[str, ...] | None = None


class Release(Command[int], frozen=True, gc=False):
    """End the lease of all its messages, or of those in `ids`. Returns how many are released.

    They are unread at once, or in `delay_ms`. Unless `is_delivered`, the reader did not begin with
    them, and the lease was no delivery.
    """

    username: str
    lease: str
    ids: tuple[str, ...] | None = None
    is_delivered: bool = True
    delay_ms: int = 0


class Extend(Command[int], frozen=True, gc=False):
    """Let a lease end `ttl_ms` from now, but never earlier than it would have.

    Returns how many messages it holds.
    """

    username: str
    lease: str
    ttl_ms: int


class Held(Command[frozenset[str]], frozen=True, gc=False):
    """Return the ids of the messages that a lease still holds."""

    username: str
    lease: str


class Resume(Command[int], frozen=True, gc=False):
    """Mark the messages that a stream delivered up to and including `last` as read.

    Returns how many messages this call marked.
    """

    username: str
    last: str


class Track(Command["MessageStatus | None"], frozen=True, gc=False):
    """Return the `MessageStatus` of a message, or None if the receipt does not belong to it.

    `receipt` is hashed.
    """

    id: str
    receipt: str

    @property
    def username(self) -> str:
        """The message's id: the caller does not say which inbox the message is in."""
        return self.id


class Revoke(Track, frozen=True, gc=False):
    """Take back a message if it is unread. Returns its `MessageStatus` or None, as `Track` does."""


class Finished(Struct, frozen=True, gc=False):
    """The result of a `Finish`.

    `messages` counts as for `Acknowledge`. `is_all` is True if every requested message is
    acknowledged, by this call or an earlier one, and either there is at least one or an empty list
    was requested. Otherwise `acknowledged` has the ids of the acknowledged messages, and `lost`
    those of the others: their lease was over.
    """

    messages: int
    is_all: bool
    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Audit(Struct, frozen=True, gc=False):
    """The ids of a lease's acknowledged and lost messages.

    If the whole lease was audited and nothing was lost, `acknowledged` is empty: nobody needs it.
    """

    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Stored(Struct, frozen=True, gc=False):
    """The result of a post with a key: the message's id, and whether an earlier post stored it."""

    id: str
    is_repeated: bool


class Slice(Struct, frozen=True, gc=False):
    """The messages that one read claimed. If `more` is set, unread messages may be left."""

    messages: tuple[Message, ...]
    more: bool


Status: TypeAlias = Literal["pending", "scheduled", "leased", "read", "expired", "revoked", "dead"]


class MessageStatus(Struct, frozen=True, gc=False):
    """What became of a message and when.

    `at_ms` is None while it is pending or leased, and the due time of a scheduled message.
    """

    status: Status
    at_ms: int | None


class Claim(Struct, frozen=True, gc=False):
    """One attempt to take messages for plain reads.

    No other attempt has its `token`. However late it reaches the database, it takes no message on
    which one of its `fences` was voided, and none after `until_ms` by the database's clock.
    """

    token: str
    usernames: tuple[str, ...]
    ids: tuple[str, ...]
    at_ms: int
    until_ms: int

    @property
    def fences(self) -> tuple[str, ...]:
        """The tokens with which a message can be closed to this claim."""
        return (self.token,)


class LeaseClaim(Claim, frozen=True, gc=False):
    """A claim that leases its messages for at most `lease_ms`. Its token is the lease's token."""

    lease_ms: int


class KeyedClaim(Claim, frozen=True, gc=False):
    """A claim that marks its messages with a hashed idempotency key, for repeats of the read.

    All claims for one batch, by any process, carry the batch's token.
    """

    key: str
    batch: str

    @property
    def fences(self) -> tuple[str, ...]:
        """The tokens with which a message can be closed to this claim."""
        return (self.token, self.batch)


class KeyedBatch(Struct, frozen=True, gc=False):
    """The messages for a read with a key: chosen once, for all repeats until `until_ms`.

    No other batch has its `token`, not even one of the same key. `more` is True if unread messages
    were left at that time. `is_given` is True once the batch may have been delivered.
    """

    key: str
    username: str
    ids: tuple[str, ...]
    until_ms: int
    token: str
    more: bool = False
    is_given: bool = False


class DiscardedClaims(Struct, frozen=True, gc=False):
    """All claims for a discarded batch, by any process. What they took becomes unread again.

    No message of the batch had expired at `at_ms`.
    """

    batch: KeyedBatch
    at_ms: int

    @property
    def token(self) -> str:
        """The token that all of these claims carry."""
        return self.batch.token

    @property
    def usernames(self) -> tuple[str, ...]:
        """The inbox of the messages."""
        return (self.batch.username,)


def delivery(lease: str, number: int = 0) -> str:
    """Return the token of a lease's delivery. Tokens of one lease sort by `number`."""
    return f"{lease}.{number:010d}"
