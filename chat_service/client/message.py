"""The messages that reads, leases and streams return."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Message(NamedTuple):
    """A message. Ids sort by time of acceptance."""

    text: str
    id: str


def messages_of(documents: Iterable[Mapping[str, str]]) -> list[Message]:
    """Return the messages in an answer."""
    return [Message(str(each["text"]), str(each["id"])) for each in documents]
