"""A client for Server-Sent Events: one stream on a real socket."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.support.raw import get


class Event(NamedTuple):
    """One event as received. A comment has the name `comment`."""

    name: str
    id: str
    data: Any


class EventStream:
    """A connection to a stream. Use as an async context."""

    def __init__(
        self,
        port: int,
        username: str = "bob",
        last_event_id: str = "",
        headers: Sequence[bytes] = (),
    ) -> None:
        """`headers` are more header lines of the request."""
        self._port = port
        if last_event_id:
            headers = [*headers, f"Last-Event-ID: {last_event_id}".encode()]
        self._request = get(f"/chat/{username}/stream".encode(), *headers, host=b"Host: localhost")
        self.status = 0
        self.headers: Mapping[str, str] = {}
        #: The lease under which the stream's messages can be acknowledged.
        self.lease = ""

    async def __aenter__(self) -> "EventStream":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.rstrip().split("\r\n")
        self.status = int(line.split(" ")[1])
        self.headers = dict(field.split(": ", 1) for field in fields)
        self._text = ""
        if self.status == 200:
            opened = await self.next()
            assert opened.name == "open"
            self.lease = opened.data["lease"]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Abort the connection, like a client that dies."""
        self._writer.transport.abort()

    async def next(self) -> Event:
        """Return the next event or comment. Raise `asyncio.IncompleteReadError` at the stream's
        end.
        """
        while "\n\n" not in self._text:
            size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
            if not size:
                raise asyncio.IncompleteReadError(b"", None)
            self._text += (await self._reader.readexactly(size + 2))[:-2].decode()
        block, _, self._text = self._text.partition("\n\n")
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        if "" in fields:
            return Event("comment", "", fields[""])
        if "data" not in fields:
            return await self.next()
        return Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))

    async def texts(self, number: int) -> list[str]:
        """Return the texts of the next messages."""
        events = [await self.next() for _ in range(number)]
        assert all(event.name == "message" for event in events)
        assert all(event.id == event.data["id"] for event in events)
        return [event.data["text"] for event in events]
