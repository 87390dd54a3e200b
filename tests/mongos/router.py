"""An emulated mongos: a router in front of two real mongods, for tests.

There is no mongos in the package registries, so none can be run in the tests. This one routes each
statement by the rules of `tests.mongos.targeting`, records it, and carries it out on real mongods.

Emulated:
- `hello` says `isdbgrid`, without the name and the members of a replica set.
- Statements of one `insert`, `update` or `delete` are split by database shard, together with their
  numbers for retryable writes. Replies are merged.
- Reads skip orphans. A write statement that is not targeted is refused, or, if `refuses_broadcasts`
  is off, goes to all database shards and changes orphans.
- `$$NOW` is replaced by the time at which the router receives a statement.
- If `leaves_orphans` is set, every inserted message has an orphan.
- Cursors belong to their router: another one does not know them.
- A change stream returns events once all database shards have answered, so it waits its whole time
  for the idle ones (SERVER-98054).
- Unique indexes have to begin with the shard key.

Not emulated: moving chunks, stale routing tables, transactions, users, the config servers and the
no-ops in their oplog, `findAndModify` on sharded collections, results above 16 MiB.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

from bson.datetime_ms import DatetimeMS

from tests.mongos.backend import Backend, ClusterTime
from tests.mongos.reading import Reader
from tests.mongos.streams import MergedStream
from tests.mongos.targeting import SHARDED, Reach
from tests.mongos.wire import Message, encode, encode_greeting, read_message
from tests.mongos.writing import Refused, Writer
from workers.store.driver import Document
from workers.store.schema import COLLECTION

#: Sent to all database shards.
_FOR_ALL = frozenset(
    ("create", "createIndexes", "drop", "dropIndexes", "collMod", "dropDatabase", "endSessions")
)
_WRITES = frozenset(("insert", "update", "delete"))
#: In a reply to `hello`, what tells that a server is a member of a replica set.
_OF_MEMBERS = (
    *("setName", "setVersion", "hosts", "primary", "me", "electionId", "lastWrite", "secondary"),
    *("topologyVersion", "compression", "isWritablePrimary", "ismaster"),
)


class Statement(NamedTuple):
    """A statement as the router received it, and the database shards that it reaches."""

    command: str
    collection: str
    reach: Reach
    filter: Document
    hint: str

    @property
    def is_write(self) -> bool:
        """Whether it may change documents."""
        return self.command in _WRITES

    def __str__(self) -> str:
        shards = len(self.reach.shards)
        fields = ", ".join(self.filter)
        return f"{self.command} {self.collection} ({fields}): {shards} shards, {self.reach.why}"


class Cluster:
    """Two database shards. Several routers may share it."""

    def __init__(self, uris: tuple[str, str]) -> None:
        time = ClusterTime()
        self.shards = [Backend(uri, time) for uri in uris]

    async def close(self) -> None:
        """Close the connections to the mongods."""
        for shard in self.shards:
            await shard.close()


class Router:
    """Listens on a port of loopback. Use as an async context."""

    def __init__(self, cluster: Cluster) -> None:
        self._shards = cluster.shards
        #: Whether write statements that are not targeted are refused.
        self.refuses_broadcasts = True
        #: Whether the other database shard gets an orphan of each inserted message, as if the
        #: message's chunk had been there.
        self.leaves_orphans = False
        #: What this router's clock is ahead of the others'.
        self.clock_ahead_ms = 0
        #: The statements so far.
        self.statements: list[Statement] = []
        #: The number of each command that had these statements.
        self.commands: Counter[str] = Counter()
        #: A copy of each write to which this returns true is kept, for `send_late`.
        self.keeps: Callable[[Document], bool] = lambda command: False
        self._late: list[tuple[Backend, Document]] = []
        #: A command with this name waits for `release` before it is carried out.
        self.hold = ""
        self.held = asyncio.Event()
        self._released = asyncio.Event()
        self._cursors: dict[int, Backend | MergedStream] = {}
        self._reader = Reader(self._shards)
        self._writer = Writer(self._shards)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Router":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.uri = f"mongodb://{self.address}/"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send_late(self) -> list[Document]:
        """Send the kept copies to their database shards again, as if they had been on their way.

        Returns the replies.
        """
        late, self._late = self._late, []
        return [await shard.run(command) for shard, command in late]

    def untargeted(self) -> list[Statement]:
        """Return the statements so far that are not targeted."""
        return [each for each in self.statements if not each.reach.is_targeted]

    def release(self) -> None:
        """Let the held commands continue."""
        self.hold = ""
        self._released.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    request = await read_message(reader)
                    reply = await self._answer(request)
                    if request.is_greeting:
                        writer.write(encode_greeting(reply, 0, request.number))
                    elif not request.is_unanswered:
                        writer.write(encode(reply, 0, request.number))
                    await writer.drain()
        finally:
            writer.close()

    async def _answer(self, request: Message) -> Document:
        command = request.body
        name = next(iter(command))
        command.pop("$readPreference", None)
        if name in ("hello", "ismaster", "isMaster"):
            return await self._hello()
        if name == self.hold:
            self.held.set()
            await self._released.wait()
        try:
            return await self._carry_out(name, command)
        except Refused as refused:
            return refused.reply()

    async def _carry_out(self, name: str, command: Document) -> Document:
        if name in _WRITES:
            return await self._write(name, command)
        if name in ("find", "aggregate"):
            return await self._read(name, command)
        if name in ("getMore", "killCursors"):
            return await self._continue(name, command)
        if name in _FOR_ALL:
            if name == "createIndexes":
                _require_indexes_to_fit(command)
            replies = await asyncio.gather(*(shard.run(command) for shard in self._shards))
            return next((each for each in replies if not each["ok"]), replies[0])
        if name == "dbStats":
            return await self._sum_stats(command)
        if command.get(name) in SHARDED and name not in ("listIndexes", "collStats"):
            raise Refused(59, f"the emulated router does not know {name}")
        return await self._shards[0].run(command)

    async def _hello(self) -> Document:
        reply = await self._shards[0].run({"hello": 1, "$db": "admin"})
        for field in _OF_MEMBERS:
            reply.pop(field, None)
        reply["localTime"] = DatetimeMS(int(reply["localTime"]) + self.clock_ahead_ms)
        reply |= {"ismaster": True, "isWritablePrimary": True, "helloOk": True}
        reply["msg"] = "isdbgrid"
        return reply

    async def _write(self, name: str, command: Document) -> Document:
        plan = self._writer.plan(name, command)
        self._record(name, command, plan.reaches, plan.filters, plan.hints)
        if self.refuses_broadcasts:
            for reach in plan.reaches:
                if not reach.is_targeted:
                    raise Refused(61, f"a write that is not targeted: {reach.why}")
        keep = self.keeps(command)

        async def send(shard: Backend, part: Document) -> Document:
            if keep:
                self._late.append((shard, part))
            return await shard.run(part)

        if name == "insert" and self.leaves_orphans and command[name] == COLLECTION:
            await self._leave_orphans(plan.reaches, command)
        return await self._writer.carry_out(plan, send, self.clock_ahead_ms)

    async def _leave_orphans(self, reaches: list[Reach], command: Document) -> None:
        """Store each document where it does not belong. A repeated insert stores no second one."""
        for number, shard in enumerate(self._shards):
            documents = [
                document
                for document, reach in zip(command["documents"], reaches, strict=True)
                if number not in reach.shards
            ]
            if documents:
                only = {"insert": COLLECTION, "documents": documents, "ordered": False}
                await shard.run({**only, "$db": command["$db"]})

    async def _read(self, name: str, command: Document) -> Document:
        pipeline = command.get("pipeline") or [{}]
        if name == "aggregate" and "$changeStream" in pipeline[0]:
            stream = MergedStream(self._shards, secrets.randbits(62))
            return self._registered(await stream.open(command), stream)
        reach, query = self._reader.reach(name, command)
        if command["$db"] != "config":
            self._record(name, command, [reach], [query], [command.get("hint", "")])
        reply, shard = await self._reader.run(name, command, reach)
        return self._registered(reply, shard)

    def _registered(self, reply: Document, owner: "Backend | MergedStream | None") -> Document:
        if reply["ok"] and reply["cursor"]["id"]:
            assert owner is not None
            self._cursors[reply["cursor"]["id"]] = owner
        return reply

    async def _continue(self, name: str, command: Document) -> Document:
        """Carry out a command on cursors, if they are this router's."""
        numbers = [command["getMore"]] if name == "getMore" else command["cursors"]
        owners = [self._cursors.get(each) for each in numbers]
        if None in owners:
            raise Refused(43, f"cursor id {numbers[0]} not found")
        owner = owners[0]
        assert owner is not None
        reply = await owner.run(command)
        if name == "killCursors" or not reply["ok"] or not reply["cursor"]["id"]:
            for each in numbers:
                del self._cursors[each]
        return reply

    async def _sum_stats(self, command: Document) -> Document:
        """The sizes of all database shards together. Their disks are left out."""
        replies = [await shard.run(command) for shard in self._shards]
        total: Document = {"db": command["$db"], "ok": 1.0}
        for field in ("dataSize", "storageSize", "indexSize", "totalFreeStorageSize"):
            total[field] = sum(reply.get(field, 0) for reply in replies)
        return total

    def _record(
        self,
        name: str,
        command: Document,
        reaches: list[Reach],
        filters: list[Document],
        hints: list[Any],
    ) -> None:
        self.commands[name] += 1
        for reach, query, hint in zip(reaches, filters, hints, strict=True):
            self.statements.append(Statement(name, command[name], reach, query, str(hint)))


def _require_indexes_to_fit(command: Document) -> None:
    """Refuse unique indexes that do not begin with the shard key."""
    key = SHARDED.get(command["createIndexes"])
    for index in command["indexes"] if key else ():
        fields = list(index["key"])
        assert key is not None
        if index.get("unique") and fields[: len(key.fields)] != list(key.fields):
            raise Refused(
                67, f"cannot create unique index over {index['key']} with shard key {key.pattern}"
            )
