"""What is asked of a shard, and what it gives back: small frozen values.

Made by `workers.pool`, carried by `workers.ticket`, carried out by `workers.shard`; a `Claim` is
what a shard makes of a batch of reads.
Times are milliseconds of the database's clock since 1970; a command's `size` is what it has a queue
hold, in bytes of UTF-8.
"""

from typing import ClassVar, TypeAlias

from msgspec import Struct


class Message(Struct, frozen=True, gc=False):
    """A message as its reader gets it, in the field order of the original specification."""

    text: str
    id: str


class Post(Struct, frozen=True, gc=False):
    """Store one message. Gives back its id."""

    id: str
    username: str
    text: str
    size: int
    created_ms: int
    expires_ms: int


class Read(Struct, frozen=True, gc=False):
    """Claim the unread messages of an inbox, oldest first. Gives back a `Slice`.

    `limit` is the most that may be claimed, or None for no limit of the reader's own.
    `upto` is the greatest id that may be claimed, or None: a read that goes on slice by slice
    names the moment it began, so that it ends however fast others post.
    """

    size: ClassVar[int] = 0

    username: str
    limit: int | None = None
    upto: str | None = None


class Count(Struct, frozen=True, gc=False):
    """Count the unread messages of an inbox, claiming none. Gives back an int."""

    size: ClassVar[int] = 0

    username: str


Command: TypeAlias = Post | Read | Count


class Slice(Struct, frozen=True, gc=False):
    """What one read claimed. Where `more` is set, unread messages may be left."""

    messages: tuple[Message, ...]
    more: bool


class Claim(Struct, frozen=True, gc=False):
    """One attempt to take messages, under a token that no other attempt has.

    It never takes effect after `until_ms`, however late it reaches the database.
    """

    token: str
    usernames: tuple[str, ...]
    ids: tuple[str, ...]
    at_ms: int
    until_ms: int


Outcome: TypeAlias = str | Slice | int
