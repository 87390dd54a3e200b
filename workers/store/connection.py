"""The connection to MongoDB, which all parts of the store share (see `workers.store.mongo`).

It checks the deployment, limits the time of each operation, and repeats writes whose replies are
lost. Every write is acknowledged by a majority and journaled before a method returns. Only this
package catches the driver's errors; `workers.store.driver_errors` translates them.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import pymongo
import structlog
from bson.datetime_ms import DatetimeMS
from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from workers.clock import DatabaseClock
from workers.dead_letters import DeadLetters
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.ids import IdSource
from workers.metrics import WorkerMetrics
from workers.store.base import CountedEvent, Storage
from workers.store.driver import (
    TIMES_IN_MS,
    BadConnectionString,
    Client,
    Document,
    Driver,
    close_client,
    hello,
    open_client,
)
from workers.store.driver_errors import (
    NOT_ALLOWED,
    StoreRefused,
    Unsent,
    read_errors,
    short_reason,
    write_failure,
)
from workers.store.expiry import AHEAD_S, UnsearchedTimes
from workers.store.index_keeper import IndexKeeper
from workers.store.layout import Layout
from workers.store.observed_operation import ObservedOperation
from workers.store.schema import COLLECTION, FLEET, READS, create_indexes, list_indexes
from workers.store.schema_version import UnknownSchema
from workers.store.sharding import is_mongos, why_not_routed
from workers.store.targeted import Updates
from workers.tracing import UNTRACED, Tracer

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Pause before an operation whose reply was lost is repeated, in seconds.
REPEAT_AFTER_S = 0.05
#: Longest time for a ping, in seconds.
PING_S = 1.0
#: Longest time to create an index, in seconds.
BUILD_S = 3600.0
#: A comparison of the clocks is repeated if it took longer than this, in ms; and most attempts.
_CLOCK_TRIES, _CLOCK_TRIP_MS = 3, 50.0
#: Claimed messages are kept half as long as expired ones, but at least for this many seconds, since
#: a read with a key can be repeated for a minute.
CLAIMED_GRACE_MIN_S = 90
#: This many seconds after its time, an abandoned write is taken to have no effect any more.
SETTLED_AFTER_S = 1.0
#: How many abandoned writes a message remembers.
VOIDED_MAX = 32


class StoreMisconfigured(Exception):
    """Raised at startup when the database cannot keep the guarantees."""


class StoreOptions(NamedTuple):
    """How the store connects, how long it keeps documents, and which messages become dead letters.

    `timeout_s` limits an operation. Expired messages are deleted after `purge_grace_s`. A message
    with a receipt or a key is kept for `receipt_keep_s` after its end. `node` names this process in
    the documents. `is_sole` means that no other process uses the database.
    """

    driver: Driver
    database: str
    timeout_s: float
    purge_grace_s: int
    receipt_keep_s: int
    node: str
    dead_letters: DeadLetters = DeadLetters()
    is_sole: bool = False


class UnresolvedWrite(NamedTuple):
    """A write that may be applied after it was abandoned.

    `selection` and `hint` find the messages that it changed. It is counted from `due` on, in
    seconds of `time.monotonic`. Before that, the messages that `closing` selects are closed to its
    token, so that it changes no more of them.
    """

    event: CountedEvent
    selection: Document
    hint: str
    due: float
    closing: tuple[Document, str] | None


class Connection:
    """Two collections of one database. Safe for concurrent use within one event loop."""

    def __init__(
        self,
        uri: str,
        options: StoreOptions,
        clock: DatabaseClock,
        metrics: WorkerMetrics,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._uri = uri
        self._options = options
        self._timeout_s = options.timeout_s
        # Unread messages are kept for the grace period after they expire, claimed ones for half of
        # it after their claim: no claimed message lies where `expire` searches for unread ones.
        self._unread_grace_ms = options.purge_grace_s * 1000
        self._claimed_grace_ms = max(options.purge_grace_s // 2, CLAIMED_GRACE_MIN_S) * 1000
        self._keep_ms = options.receipt_keep_s * 1000
        self._node = options.node
        self._dead_letters = options.dead_letters
        # For copies of messages.
        self._copy_ids = IdSource()
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer
        # Identifies this process in the fleet. Its name may be that of an earlier process.
        self._token = secrets.token_hex(8)
        self._unsearched = UnsearchedTimes()
        self._had_peers = True
        # Whether the last topology that the driver had has other members.
        self._topology: object = None
        self._knows_peers = True
        #: Whether there is a mongos between this node and the database.
        self._is_routed = False
        self._is_storage_hidden = self._are_changes_hidden = self._is_fleet_hidden = False
        self._is_history_hidden = False
        self._unresolved: list[UnresolvedWrite] = []
        self._client: Client | None = None
        #: The version of the database, or None while it is unknown.
        self.version: str | None = None
        #: Watches the indexes; see `workers.store.index_keeper`.
        self.indexes = IndexKeeper(metrics)
        self._database: AsyncDatabase[Document]
        self._messages: AsyncCollection[Document]
        self._updates: Updates
        self._majority: AsyncCollection[Document]
        self._linearizable: AsyncCollection[Document]
        self._reads: AsyncCollection[Document]

    async def open(self, within_s: float = math.inf) -> None:
        """Connect and check the deployment within `within_s` seconds, then create the indexes.

        Raises `StoreUnavailable` if no primary answers in time, and `StoreMisconfigured` or
        `IndexMismatch` if the database is unsuitable. Safe to repeat.
        """
        if self._client is None:
            try:
                self._client = open_client(self._options.driver, self._uri)
            except BadConnectionString as error:
                raise StoreMisconfigured(
                    f"the connection string is invalid: {error}; "
                    "correct --mongo-uri (CHAT_MONGO_URI)"
                ) from error
        database = self._client[self._options.database]
        self._database = database
        self._messages = database.get_collection(COLLECTION, codec_options=TIMES_IN_MS)
        self._majority = self._messages.with_options(read_concern=ReadConcern("majority"))
        self._linearizable = self._messages.with_options(read_concern=ReadConcern("linearizable"))
        self._reads = database.get_collection(
            READS, codec_options=TIMES_IN_MS, read_concern=ReadConcern("majority")
        )
        within_s = min(within_s, self._timeout_s)
        try:
            with self._operation("open"), read_errors(), pymongo.timeout(within_s):
                server = await hello(self._client)
                self._is_routed = is_mongos(server)
                self._updates = Updates(database, is_routed=self._is_routed)
                if "setName" not in server and not self._is_routed:
                    raise StoreMisconfigured(
                        "the database is a single mongod without a replica set, which can neither "
                        "repeat a write safely nor confirm it on a majority; start it with "
                        "--replSet and run rs.initiate() once"
                    )
                self.version = (await self._client.server_info())["version"]
                await self.indexes.follow(database)
                if self._is_routed and (reason := await why_not_routed(database, self._layout)):
                    raise StoreMisconfigured(reason)
                listing = await list_indexes(database, self._layout)
            if listing.missing and listing.there:
                log.warning(
                    "creating indexes; this takes minutes if there are many messages",
                    indexes=listing.missing,
                )
            with self._operation("indexes", BUILD_S), read_errors():
                await create_indexes(database, self._layout, listing)
                await self.indexes.guard(database)
            await self.measure_clock()
        except (StoreRefused, UnknownSchema) as error:
            raise StoreMisconfigured(str(error)) from error

    @property
    def _layout(self) -> Layout:
        """The layout of the database. It may change between two statements of an operation."""
        return self.indexes.layout

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        if self._client is not None:
            await close_client(self._client)
            self._client = None

    @property
    def is_routed(self) -> bool:
        """Whether there is a mongos between this node and the database."""
        return self._is_routed

    @property
    def members(self) -> int | None:
        """How many members of the database the driver knows; None behind a mongos."""
        if self._client is None or self._is_routed:
            return None
        return len(self._client.topology_description.server_descriptions())

    def _has_peers(self) -> bool:
        """Return whether another member may have become primary without this one knowing it yet.

        The driver learns of added members at once, but with a direct connection it knows only one.
        """
        if self._had_peers:
            return True
        assert self._client is not None
        topology = self._client.topology_description
        # It never changes: the driver replaces it.
        if topology is not self._topology:
            self._topology = topology
            self._knows_peers = len(topology.server_descriptions()) > 1
        return self._knows_peers

    async def measure_clock(self) -> None:
        """See `workers.store.base.Store.measure_clock`."""
        assert self._client is not None
        with self._operation("clock"), read_errors():
            tries = []
            for _ in range(_CLOCK_TRIES):
                sent_ms = self._clock.local_ms()
                database_ms = await self._read_clock()
                received_ms = self._clock.local_ms()
                tries.append((received_ms - sent_ms, sent_ms, database_ms))
                if received_ms - sent_ms <= _CLOCK_TRIP_MS:
                    break
        trip_ms, sent_ms, database_ms = min(tries)
        self._clock.observe(sent_ms, database_ms, sent_ms + trip_ms)

    async def _read_clock(self) -> int:
        """Return what the database's clock shows, in ms.

        A mongos would answer with its own clock, and each has another one. So behind a mongos this
        is the clock of the database shard that has the collection `fleet`: `$currentDate` is the
        time of the member that carries out a write.
        """
        assert self._client is not None
        if self._is_routed and not self._is_fleet_hidden:
            fleet = self._client[self._options.database].get_collection(
                FLEET, codec_options=TIMES_IN_MS, write_concern=WriteConcern(w=1)
            )
            try:
                document = await fleet.find_one_and_update(
                    {"_id": self._node},
                    {"$currentDate": {"at": True}},
                    projection={"at": 1},
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
                assert document is not None
                return int(document["at"])
            except OperationFailure as error:
                if error.code not in NOT_ALLOWED:
                    raise
        server = await hello(self._client)
        self._had_peers = len(server.get("hosts", ())) != 1
        return int(server["localTime"])

    async def keep_indexes(self) -> None:
        """See `workers.store.base.Store.keep_indexes`."""
        client = self._client
        if client is not None and self.indexes.is_due:
            with read_errors():
                await self.indexes.check(client[self._options.database], self._timeout_s)

    async def measure_storage(self) -> Storage | None:
        """See `workers.store.base.Store.measure_storage`."""
        assert self._client is not None
        with self._operation("storage"):
            try:
                stats = await self._client[self._options.database].command(
                    {"dbStats": 1, "freeStorage": 1}
                )
            except OperationFailure as error:
                if not self._is_storage_hidden:
                    self._is_storage_hidden = True
                    log.warning(
                        "the database does not report its free space; grant the service the role "
                        "readWrite or read on its database",
                        reason=str(error.code),
                    )
                return None
            except PyMongoError as error:
                raise StoreUnavailable(
                    f"the database did not answer: {short_reason(error)}"
                ) from error
        total, taken = int(stats.get("fsTotalSize", 0)), int(stats.get("fsUsedSize", 0))
        reusable = int(stats.get("totalFreeStorageSize", 0))
        # The files have new messages only after the next checkpoint, and they seldom shrink.
        data = int(stats.get("dataSize", 0)) + int(stats.get("indexSize", 0))
        files = int(stats.get("storageSize", 0)) + int(stats.get("indexSize", 0)) - reusable
        return Storage(total, max(total - taken, 0), reusable, max(data, files))

    async def ping(self) -> None:
        """See `workers.store.base.Store.ping`.

        A linearizable read: the primary answers once a majority has confirmed that it is one.
        """
        with self._operation("ping"), read_errors(), pymongo.timeout(PING_S):
            # No message has this id. The inbox names one database shard.
            await self._linearizable.find_one(
                {**self._layout.inbox(""), "_id": ""}, projection={"_id": 1}, hint="_id_"
            )

    @contextmanager
    def _operation(self, name: str, within_s: float | None = None) -> Iterator[float]:
        """Limit the time of an operation including its retries, and record its duration.

        Yields the deadline, in seconds of `time.monotonic`. The limit is passed to the database as
        `maxTimeMS`, so that it does not continue work that nobody waits for.
        """
        within_s = within_s or self._timeout_s
        with self._observed(name), pymongo.timeout(within_s):
            yield time.monotonic() + within_s

    def _observed(self, name: str) -> ObservedOperation:
        """Record the duration of an operation whose commands take a deadline, and yield that.

        It is `timeout_s` away, in seconds of `time.monotonic`.
        """
        tracing = self._tracer.operation(name)
        return ObservedOperation(name, self._timeout_s, self._metrics, self.indexes, tracing)

    @contextmanager
    def _may_return(self, from_ms: int) -> Iterator[None]:
        """Make `expire` search for messages that the block makes unread again.

        They expire at `from_ms` or later. If the block raises, its write may take effect later.
        """
        for_s = self._timeout_s + SETTLED_AFTER_S
        try:
            yield
            for_s = AHEAD_S
        finally:
            self._unsearched.add(from_ms, for_s)

    def _in_time(self, now_ms: int) -> Document:
        """Return the condition that a write sent at `now_ms` is not late.

        It is for writes that lie in the buffers of a frozen mongod, or of a cut connection, and to
        which nobody closes messages.
        """
        return self._before(now_ms + int(self._timeout_s * 1000))

    def _before(self, until_ms: int) -> Document:
        """Return the condition that it is earlier, by the database's own clock.

        Behind a mongos there is none: that takes its own time, and when it receives the command. So
        it would not stop a late copy, but refuse all writes if its clock is ahead.
        """
        if self._is_routed:
            return {}
        return {"$expr": {"$lt": ["$$NOW", DatetimeMS(until_ms)]}}

    async def _close(self, selection: Document, token: str, hint: str = "_id_") -> None:
        """Close messages to the write with this token: no copy of it changes them any more.

        Its own filter sees to that. Safe to repeat.
        """
        added = {"$each": [token], "$slice": -VOIDED_MAX}
        await self._updates.of_inboxes(
            {**selection, "voided": {"$ne": token}}, {"$push": {"voided": added}}, hint
        )

    def _record_unresolved(
        self,
        event: CountedEvent,
        selection: Document,
        hint: str = "_id_",
        closing: tuple[Document, str] | None = None,
    ) -> None:
        """Make `count_resolved` count later what an unanswered write did after all."""
        due = time.monotonic() + self._timeout_s + SETTLED_AFTER_S
        self._unresolved.append(UnresolvedWrite(event, selection, hint, due, closing))

    async def _confirmed(self, name: str, write: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Send a repeatable write until it is answered. Returns its result, and whether it may
        have been sent more than once.

        Raises `StoreUnavailable` if it was never sent, `OutcomeUnknown` if it may have been sent.
        """
        was_sent = False
        with self._operation(name) as deadline:
            while True:
                try:
                    return await write(), was_sent
                except PyMongoError as error:
                    failure = write_failure(error)
                    was_sent = was_sent or isinstance(failure, OutcomeUnknown)
                    is_final = not was_sent and not isinstance(failure, Unsent)
                    if is_final or not await may_repeat(deadline):
                        if not was_sent:
                            raise failure from error
                        raise OutcomeUnknown(
                            f"the {name} was not confirmed: {short_reason(error)}"
                        ) from error


async def may_repeat(deadline: float) -> bool:
    """Pause before a retry. Returns False if there is no time left for one."""
    if time.monotonic() + REPEAT_AFTER_S >= deadline:
        return False
    await asyncio.sleep(REPEAT_AFTER_S)
    return True
