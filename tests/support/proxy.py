"""A proxy in front of mongod that can lose the reply of a command that was applied.

It understands enough of the wire protocol for that. Each fault applies to one command name
(`insert`, `update`, `find`, ...), either a number of times or with a probability.
"""

import asyncio
import random
import struct
from collections import Counter
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, unquote, urlsplit

import bson

_HEADER = struct.Struct("<iiii")
_OP_MSG = 2013


class MongoProxy:
    """Forwards from one unix socket to a mongod on another. An async context manager."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._target = unquote(urlsplit(uri).netloc)
        self._path = str(folder / "proxy.sock")
        self.uri = f"mongodb://{quote(self._path, safe='')}/?directConnection=true"
        #: Commands whose reply is lost after they were carried out, and how many times.
        self.lose_reply: Counter[str] = Counter()
        #: Commands that are cut off before they reach mongod, and how many times.
        self.cut_before: Counter[str] = Counter()
        #: For each command name, the probability that its reply is lost, that it is cut off before
        #: it reaches mongod, and that its reply is cut off in the middle.
        self.lose_rate: dict[str, float] = {}
        self.cut_rate: dict[str, float] = {}
        self.truncate_rate: dict[str, float] = {}
        #: The mean delay of every reply, in seconds.
        self.delay_s = 0.0
        #: The number of faults so far.
        self.faults = 0
        self._rng = random.Random(0)
        #: Commands that are held until `release` is called, with a byte string that they must have:
        #: the service's maintenance sends the same commands at unpredictable times.
        self.hold: dict[str, bytes] = {}
        self.held = asyncio.Event()
        #: How many commands are held now.
        self.holding = 0
        self._released = asyncio.Event()
        #: The number of each command that reached mongod and that has `naming` in it.
        self.sent: Counter[str] = Counter()
        self.naming = b""
        #: How many of the next connections are closed at once, and whether later ones are never
        #: answered.
        self._refused, self._is_frozen = 0, False
        self._connections: set[asyncio.Task[None]] = set()
        #: Those that had a command, and not only the driver's checks.
        self._used: set[asyncio.StreamWriter] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "MongoProxy":
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        # A connection that was cancelled before it started has closed nothing.
        for writer in self._writers:
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in self._writers), return_exceptions=True
        )

    def release(self) -> None:
        """Forward the held commands."""
        self.hold.clear()
        self._released.set()

    def leave(self) -> None:
        """Close all connections, and accept no more."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def freeze_new(self) -> None:
        """Answer nothing on new connections, and make the driver open some for its commands."""
        self._is_frozen = True
        self._close_used()

    def refuse_new(self, connections: int) -> None:
        """Close the next connections at once, and make the driver open some for its commands."""
        self._refused = connections
        self._close_used()

    def _close_used(self) -> None:
        for writer in self._used:
            writer.transport.abort()

    def _happens(self, rates: dict[str, float], command: str) -> bool:
        happens = self._rng.random() < rates.get(command, 0.0)
        self.faults += happens
        return happens

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._refused > 0:
            self._refused -= 1
            writer.close()
            return
        if self._is_frozen:
            return
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_unix_connection(self._target)
        self._writers.append(forth)
        try:
            while True:
                request = await _message(client)
                command = _command(request)
                if command not in ("hello", "ismaster"):
                    self._used.add(back)
                if self.cut_before[command] > 0:
                    self.cut_before[command] -= 1
                    return
                if self._happens(self.cut_rate, command):
                    return
                if command in self.hold and self.hold[command] in request:
                    self.held.set()
                    self.holding += 1
                    await self._released.wait()
                    self.holding -= 1
                forth.write(request)
                self.sent[command] += self.naming in request
                if _more_to_come(request):
                    continue
                reply = await _message(server)
                while True:
                    if self.lose_reply[command] > 0:
                        self.lose_reply[command] -= 1
                        return
                    if self._happens(self.lose_rate, command):
                        return
                    if self._happens(self.truncate_rate, command):
                        back.write(reply[: self._rng.randrange(len(reply))])
                        return
                    if self.delay_s:
                        await asyncio.sleep(self._rng.uniform(0, 2 * self.delay_s))
                    back.write(reply)
                    await back.drain()
                    if not _more_to_come(reply):
                        break
                    reply = await _message(server)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for writer in (forth, back):
                writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(_HEADER.size)
    length = _HEADER.unpack(head)[0]
    return head + await reader.readexactly(length - _HEADER.size)


def _command(message: bytes) -> str:
    """Return the name of the command in an OP_MSG: the first key of its body section."""
    if _HEADER.unpack_from(message)[3] != _OP_MSG:
        return "hello"
    assert message[20] == 0, "the body is the first section"
    size = struct.unpack_from("<i", message, 21)[0]
    return next(iter(bson.decode(message[21 : 21 + size])))


def _flags(message: bytes) -> int:
    if _HEADER.unpack_from(message)[3] != _OP_MSG:
        return 0
    flags: int = struct.unpack_from("<I", message, 16)[0]
    return flags


def _more_to_come(message: bytes) -> bool:
    return bool(_flags(message) & 2)
