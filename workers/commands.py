"""What is asked of a shard, and what it gives back: small frozen values.

Made by `workers.pool`, carried by `workers.work_item`, carried out by `workers.shard`; a `Claim` is
what a shard makes of a batch of reads.
Times are milliseconds of the database's clock since 1970; a command's `size` is what it has a queue
hold, in bytes of UTF-8. Its `username` is the inbox by which it finds its shard.

A lease's `token` is its name, a dot and a number: a stream has one lease with many numbers, in the
order of its deliveries; any other has the number 0 (`delivery`).
"""

from typing import ClassVar, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct

#: What a command gives back.
R = TypeVar("R", covariant=True)


class Command(Struct, Generic[R], frozen=True, gc=False):
    """What the pool can be asked to do; its future gives an `R`."""

    size: ClassVar[int] = 0

    @property
    def username(self) -> str:
        """The inbox by which it finds its shard."""
        raise NotImplementedError


class Message(Struct, frozen=True, gc=False):
    """A message as its reader gets it, in the field order of the original specification."""

    text: str
    id: str


class Unread(Struct, frozen=True, gc=False):
    """A message that was found unread, and when it expires."""

    message: Message
    expires_ms: int


class Key(Struct, frozen=True, gc=False):
    """The idempotency key of a post, and what it was first used for, both hashed."""

    hash: str
    body: str


class Post(Command["str | Stored"], frozen=True, gc=False):
    """Store one message. Gives back its id, or for one with a key a `Stored`.

    `receipt` is the hash of the sender's receipt, or empty.
    """

    id: str
    username: str
    text: str
    # A ClassVar of the other commands, whose queues need not reserve room for a text.
    size: int  # type: ignore[misc]
    created_ms: int
    expires_ms: int
    key: Key | None = None
    receipt: str = ""


class Lease(Struct, frozen=True, gc=False):
    """The lease under which a read takes messages: its token, and how long it lasts."""

    token: str
    ttl_ms: int


class Read(Command["Slice"], frozen=True, gc=False):
    """Claim the unread messages of an inbox, oldest first. Gives back a `Slice`.

    `limit` is the most that may be claimed, or None for no limit of the reader's own.
    `upto` is the greatest id that may be claimed, or None: a read that goes on slice by slice
    names the moment it began, so that it ends however fast others post.
    `wait_s` is how long a first message is waited for, in seconds.
    With a `lease` they are taken on loan; with a `key` (hashed) a repeat gets the same again.
    """

    username: str
    limit: int | None = None
    upto: str | None = None
    wait_s: float = 0.0
    lease: Lease | None = None
    key: str = ""


#: Unread messages of one inbox are counted so far; of more it is only said that they are more.
COUNT_MAX = 10_000


class Count(Command[int], frozen=True, gc=False):
    """Count the unread messages of an inbox, claiming none. Gives back an int.

    That is greater than `COUNT_MAX`, by whatever, where there are more than that.
    """

    username: str


class Acknowledge(Command[int], frozen=True, gc=False):
    """Mark as read what a lease holds, or these ids of it. Gives back how many are."""

    username: str
    lease: str
    ids: tuple[str, ...] | None = None


class Finish(Command["Finished"], frozen=True, gc=False):
    """Acknowledge, and tell which of these messages are lost. Gives back a `Finished`."""

    username: str
    lease: str
    ids: tuple[str, ...] | None = None


class Release(Command[int], frozen=True, gc=False):
    """End a lease of all its messages, or of these: unread again. Gives back how many."""

    username: str
    lease: str
    ids: tuple[str, ...] | None = None


class Extend(Command[int], frozen=True, gc=False):
    """Have a lease end `ttl_ms` from now, not sooner. Gives back how many messages it holds."""

    username: str
    lease: str
    ttl_ms: int


class Held(Command[frozenset[str]], frozen=True, gc=False):
    """Name the messages that a lease still holds. Gives back their ids."""

    username: str
    lease: str


class Resume(Command[int], frozen=True, gc=False):
    """Mark as read what a stream delivered up to and with `last`. Gives back how many are."""

    username: str
    last: str


class Track(Command["MessageStatus | None"], frozen=True, gc=False):
    """Tell what became of a message. Gives back a `MessageStatus`; None where the receipt is not its own.

    `receipt` is hashed.
    """

    id: str
    receipt: str

    @property
    def username(self) -> str:
        """What it is routed by: nobody says whose inbox the message is in."""
        return self.id


class Revoke(Track, frozen=True, gc=False):
    """Take back a message while it is unread. Gives back its `MessageStatus`, or None, as `Track`."""


class Finished(Struct, frozen=True, gc=False):
    """The outcome of a `Finish`.

    `messages` is as for `Acknowledge`. `is_all` is set if every message that was asked for is
    acknowledged, now or by an earlier call, and there is one, or none was asked for. Otherwise
    `acknowledged` has the ids that are, and `lost` those that are not: their lease was over.
    """

    messages: int
    is_all: bool
    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Audit(Struct, frozen=True, gc=False):
    """The ids of a lease's messages that were acknowledged, and of those that were lost.

    Where nothing was lost, `acknowledged` is empty: nobody asks.
    """

    acknowledged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Stored(Struct, frozen=True, gc=False):
    """The outcome of a post with a key: the message's id, and whether it was there already."""

    id: str
    is_repeated: bool


class Slice(Struct, frozen=True, gc=False):
    """What one read claimed. Where `more` is set, unread messages may be left."""

    messages: tuple[Message, ...]
    more: bool


Status: TypeAlias = Literal["pending", "leased", "read", "expired", "revoked"]


class MessageStatus(Struct, frozen=True, gc=False):
    """What became of a message, and when; None while it is pending or leased."""

    status: Status
    at_ms: int | None


class Claim(Struct, frozen=True, gc=False):
    """One attempt to take messages for plain reads.

    No other attempt has its `token`. It never takes effect after `until_ms`, however late it
    reaches the database.
    """

    token: str
    usernames: tuple[str, ...]
    ids: tuple[str, ...]
    at_ms: int
    until_ms: int


class LeaseClaim(Claim, frozen=True, gc=False):
    """A claim that leases its messages for at most `lease_ms`. Its token is that of a delivery."""

    lease_ms: int


class KeyedClaim(Claim, frozen=True, gc=False):
    """A claim that marks its messages with an idempotency key, for repeats of the read."""

    key: str


class DiscardedClaims(Struct, frozen=True, gc=False):
    """All claims for a key that were made before `at_ms`, by any process.

    Their batch was discarded, so whatever they took is to be made unread again. None of them takes
    effect after `until_ms`.
    """

    usernames: tuple[str, ...]
    ids: tuple[str, ...]
    at_ms: int
    until_ms: int
    key: str


class KeyedBatch(Struct, frozen=True, gc=False):
    """What a read with a key is given: decided once, for all repeats until `until_ms`.

    `more` where messages were left unread then; `is_given` once somebody may have been given it.
    """

    key: str
    username: str
    ids: tuple[str, ...]
    until_ms: int
    more: bool = False
    is_given: bool = False


def delivery(lease: str, number: int = 0) -> str:
    """The token of a lease's delivery of this number; tokens of a lease sort by it."""
    return f"{lease}.{number:010d}"
