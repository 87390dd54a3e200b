"""A message as it is read: what all of the client's ways of reading give."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Message(NamedTuple):
    """One message. Ids sort by the time of acceptance."""

    text: str
    id: str


def messages_of(documents: Iterable[Mapping[str, str]]) -> list[Message]:
    """The messages in an answer."""
    return [Message(str(each["text"]), str(each["id"])) for each in documents]
