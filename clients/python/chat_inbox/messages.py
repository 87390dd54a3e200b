"""What the clients take and return: messages to post, messages that were read, and statuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

MessageStatus = Literal["scheduled", "pending", "leased", "read", "expired", "revoked", "dead"]


class Draft(NamedTuple):
    """A message to post.

    It can be read `delay_s` after it is accepted, or at once. Its lifetime begins then: it is
    `timeout_s`, or 60 unless the service is configured otherwise. Both are in seconds.
    """

    username: str
    text: str
    timeout_s: int | None = None
    delay_s: float | None = None

    def body(self) -> bytes:
        """Return the JSON that is posted for it."""
        fields: dict[str, Any] = {"text": self.text, "username": self.username}
        if self.timeout_s is not None:
            fields["timeout"] = self.timeout_s
        if self.delay_s is not None:
            fields["delay"] = self.delay_s
        return _encode(fields).encode()


def _refuse(value: object) -> object:
    raise TypeError(f"a username and a text must be str, not {type(value).__name__}")


_encode = json.JSONEncoder(default=_refuse).encode


class Posted(NamedTuple):
    """A stored message. `receipt` is None unless one was requested.

    `is_replayed` tells whether an earlier post with the same key stored it, also an earlier try of
    the same call. After `post_batch`, it is always False: the service does not tell.
    """

    id: str
    receipt: str | None = None
    is_replayed: bool = False


@dataclass(frozen=True)
class Message:
    """A message. Ids sort by the time at which messages can be read."""

    text: str
    id: str


@dataclass(frozen=True)
class Origin:
    """Where a dead letter was before: its inbox, its id there, and how often it was leased."""

    username: str
    id: str
    deliveries: int


@dataclass(frozen=True)
class Delivered(Message):
    """A leased message.

    `deliveries` is how often it was leased, including this time; 0 if the service does not count.
    `dead` is None, or for a dead letter what it was before.
    """

    deliveries: int = 0
    dead: Origin | None = None


class Status(NamedTuple):
    """The status of a message, and the time that belongs to it.

    `at` is when the message was read, expired, was revoked or became a dead letter. For a scheduled
    message it is the due time. It is None for a message that is pending or leased.
    """

    status: MessageStatus
    at: datetime | None


def messages_of(documents: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return the messages in an answer."""
    return [Message(str(each["text"]), str(each["id"])) for each in documents]


def delivered_of(documents: Iterable[Mapping[str, Any]]) -> list[Delivered]:
    """Return the leased messages in an answer."""
    return [
        Delivered(
            str(each["text"]),
            str(each["id"]),
            int(each.get("deliveries", 0)),
            _origin_of(each.get("dead")),
        )
        for each in documents
    ]


def _origin_of(document: Mapping[str, Any] | None) -> Origin | None:
    if document is None:
        return None
    return Origin(str(document["username"]), str(document["id"]), int(document["deliveries"]))


def status_of(document: Mapping[str, Any]) -> Status:
    """Return the status in an answer."""
    at = document["at"]
    # Before Python 3.11, `fromisoformat` does not know the letter for UTC.
    return Status(
        document["status"],
        None if at is None else datetime.fromisoformat(at.replace("Z", "+00:00")),
    )
