"""Parses Server-Sent Events as the WHATWG specifies. Used by `chat_inbox.streaming`.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r")
#: Digits of the longest `retry:` that is parsed. Python refuses numbers of thousands of digits.
_RETRY_DIGITS = 9


class Event(NamedTuple):
    """An event of a stream."""

    type: str
    data: str
    last_event_id: str


class EventParser:
    """Parses the bytes of one stream, split at any position, into events. Never raises."""

    def __init__(self) -> None:
        #: The latest value of `retry:`, in ms; None if there was none.
        self.retry_ms: int | None = None
        # "utf-8-sig" skips a byte order mark at the beginning.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False
        self._line: list[str] = []
        self._type = ""
        self._data: list[str] = []
        self._last_event_id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
        if self._after_cr and text[0] == "\n":
            # The second half of a CRLF whose CR ended the previous chunk.
            text = text[1:]
        self._after_cr = text.endswith("\r")
        head, *rest = _LINE_END.split(text)
        self._line.append(head)
        events = []
        for part in rest:
            line = "".join(self._line)
            self._line = [part]
            if line:
                self._take_field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _take_field(self, line: str) -> None:
        # A comment is parsed as a field with an empty name, and ignored.
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            if "\0" not in value:
                self._last_event_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value) if len(value) <= _RETRY_DIGITS else 10**_RETRY_DIGITS

    def _dispatch(self) -> Event | None:
        kind, data = self._type, self._data
        self._type, self._data = "", []
        if not data:
            return None
        return Event(kind or "message", "\n".join(data), self._last_event_id)
