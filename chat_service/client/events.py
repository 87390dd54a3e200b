"""Server-Sent Events from bytes, by the rules of the WHATWG. Used by `chat_service.client.stream`.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import codecs
import re
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r")
#: Python refuses to read a number of thousands of digits; nobody waits for so many ms.
_RETRY_DIGITS = 9


class Event(NamedTuple):
    """One event."""

    type: str
    data: str
    last_event_id: str


class EventParser:
    """Takes one stream's bytes, cut anywhere, and gives its events. Never raises."""

    def __init__(self) -> None:
        #: What `retry:` said last, in ms; None where it has not.
        self.retry_ms: int | None = None
        # A byte order mark at the beginning is none of the stream.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._after_cr = False
        self._line: list[str] = []
        self._type = ""
        self._data: list[str] = []
        self._last_event_id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete."""
        text = self._decoder.decode(chunk)
        if not text:
            return []
        if self._after_cr and text[0] == "\n":
            # The other half of a line end that has been seen.
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
        # A comment is a field without a name.
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
