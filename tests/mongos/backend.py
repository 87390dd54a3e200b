"""A database shard behind the emulated router: a real mongod."""

import asyncio
from itertools import count
from typing import Any
from urllib.parse import unquote, urlsplit

from bson.timestamp import Timestamp

from tests.mongos.wire import encode, read_message
from workers.store.driver import Document

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ClusterTime:
    """The latest time that any database shard has reported. All of them are told of it.

    So what is written after an event, on any database shard, is later than the event.
    """

    def __init__(self) -> None:
        self._latest: Document | None = None

    def note(self, reply: Document) -> None:
        """Learn from a reply, and remove what a client of the router need not see."""
        reply.pop("operationTime", None)
        found: Document | None = reply.pop("$clusterTime", None)
        if found is not None and (self._latest is None or _time(found) > _time(self._latest)):
            self._latest = found

    def added_to(self, command: Document) -> Document:
        """Return a command that tells the latest time."""
        own = {name: value for name, value in command.items() if name != "$clusterTime"}
        return own if self._latest is None else own | {"$clusterTime": self._latest}


class Backend:
    """One mongod on a unix socket, with a pool of connections."""

    def __init__(self, uri: str, time: ClusterTime) -> None:
        self._path = unquote(urlsplit(uri).netloc)
        self._time = time
        self._idle: list[_Connection] = []
        self._all: list[asyncio.StreamWriter] = []
        self._numbers = count(1)

    async def run(self, command: Document) -> Document:
        """Return the reply to a command. A connection whose reply was not awaited is closed."""
        reader, writer = self._idle.pop() if self._idle else await self._connect()
        try:
            writer.write(encode(self._time.added_to(command), next(self._numbers)))
            reply = (await read_message(reader)).body
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))
        self._time.note(reply)
        return reply

    async def all_documents(self, command: Document) -> tuple[Document, list[Document]]:
        """Run a command that returns a cursor. Returns its first reply and all documents."""
        first = reply = await self.run(command)
        if not first["ok"]:
            return first, []
        cursor = reply["cursor"]
        documents: list[Document] = list(cursor["firstBatch"])
        collection = cursor["ns"].partition(".")[2]
        session = {"lsid": command["lsid"]} if "lsid" in command else {}
        while cursor["id"]:
            more = {"getMore": cursor["id"], "collection": collection, "$db": command["$db"]}
            reply = await self.run(more | session)
            if not reply["ok"]:
                return reply, []
            cursor = reply["cursor"]
            documents += cursor["nextBatch"]
        return first, documents

    async def close(self) -> None:
        """Close all connections."""
        for writer in self._all:
            writer.close()
        await asyncio.gather(*(each.wait_closed() for each in self._all), return_exceptions=True)

    async def _connect(self) -> _Connection:
        reader, writer = await asyncio.open_unix_connection(self._path)
        self._all.append(writer)
        return reader, writer


def _time(document: Document) -> Any:
    time: Timestamp = document["clusterTime"]
    return (time.time, time.inc)
