"""Reports arrivals in inboxes, from a change stream that is read with raw commands.

An event is only a reason to search, and a broken stream is not resumed: the caller opens another
one and searches for itself. The database selects the events, since an event that nobody waits for
costs fifty times as much if it is sent. The driver's own change stream costs several times as much
for each event.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import structlog
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from workers.errors import StoreUnavailable
from workers.store.base import Arrivals, ArrivalStream
from workers.store.connection import Connection
from workers.store.driver import Address, Document, any_mongos, pinned, start_session
from workers.store.driver_errors import StoreRefused, read_errors
from workers.store.index_keeper import IndexKeeper
from workers.store.schema import COLLECTION

log = structlog.get_logger(__name__)

#: How long the database waits for an event before it returns none, and how much longer the store
#: waits before it gives up. In seconds.
_HOLD_S, _GRACE_S = 1.0, 4.0
#: How long a mongos waits. It returns no event before all database shards and the config servers
#: have answered or waited that long (SERVER-98054), so this is how late an event may be.
_ROUTED_HOLD_S = 0.2
_EVENTS_MAX = 1000
#: The events without their other fields. The database needs `_id`, where it continues.
_PROJECTION = {
    "$project": {
        "fullDocument.username": 1,
        "updateDescription.updatedFields.returned_to": 1,
        "clusterTime": 1,
    }
}


class ChangeStream(Connection):
    """The part of `workers.store.base.Store` that reports arrivals."""

    async def arrivals(
        self, usernames: Collection[str] | None, after: ArrivalStream | None = None
    ) -> ArrivalStream:
        """See `workers.store.base.Store.arrivals`."""
        assert self._client is not None
        start = after.position if isinstance(after, MongoArrivals) else {}
        pipeline = [{"$changeStream": start}, {"$match": _events(usernames)}, _PROJECTION]
        session = await start_session(self._client)
        router = any_mongos(self._client) if self._is_routed else None
        database = self._client[self._options.database]
        stream = MongoArrivals(database, session, self.indexes, router)
        try:
            await stream.open(pipeline)
        except BaseException as error:
            await session.end_session()
            if isinstance(error, StoreRefused) and not self._are_changes_hidden:
                self._are_changes_hidden = True
                log.warning(
                    "this user may not read the change stream: messages of other processes "
                    "arrive up to a second later",
                    reason=str(error),
                )
            raise
        return stream


class MongoArrivals:
    """An open change stream: see `workers.store.base.ArrivalStream`."""

    def __init__(
        self,
        database: AsyncDatabase[Document],
        session: AsyncClientSession,
        indexes: IndexKeeper,
        router: Address | None = None,
    ) -> None:
        """`router` is the mongos that has the cursor, if there is a mongos."""
        self._database = database
        self._session = session
        self._indexes = indexes
        self._router = router
        self._hold_s = _HOLD_S if router is None else _ROUTED_HOLD_S
        self._cursor = 0
        self._last_event: Document | None = None
        self._is_reading = self._is_closed = False
        #: The option of `$changeStream` with which another stream continues where this one is.
        self.position: Document = {}

    async def open(self, pipeline: list[Document]) -> None:
        """Open the cursor. Raises `StoreUnavailable`, or `StoreRefused` without the privilege."""
        await self._run(
            _GRACE_S,
            "aggregate",
            COLLECTION,
            pipeline=pipeline,
            # The first reply does not wait until the database has read all changes so far.
            cursor={"batchSize": 0},
            readConcern={"level": "majority"},
        )

    async def next(self) -> Arrivals | None:
        """See `workers.store.base.ArrivalStream.next`."""
        self._is_reading = True
        try:
            if self._is_closed:
                return None
            events = await self._run(
                self._hold_s + _GRACE_S,
                "getMore",
                self._cursor,
                collection=COLLECTION,
                batchSize=_EVENTS_MAX,
                maxTimeMS=int(self._hold_s * 1000),
            )
            usernames = {_inbox_of(event) for event in events}
            return Arrivals(usernames - {""}, "" in usernames)
        except StoreUnavailable:
            if self._is_closed:
                return None
            raise
        finally:
            self._is_reading = False
            if self._is_closed:
                await self._session.end_session()

    async def close(self) -> None:
        """See `workers.store.base.ArrivalStream.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self._is_reading:
            await self._session.end_session()
        try:
            with pinned(self._router):
                async with asyncio.timeout(_GRACE_S):
                    await self._database.command("killCursors", COLLECTION, cursors=[self._cursor])
        except (PyMongoError, TimeoutError):
            # The cursor is gone, or the server will close it.
            pass

    async def _run(self, within_s: float, name: str, target: Any, **fields: Any) -> list[Document]:
        """Run a command on the cursor. Returns its events, and notes where they end."""
        try:
            with read_errors(), pinned(self._router):
                async with asyncio.timeout(within_s):
                    reply = await self._database.command(
                        name, target, session=self._session, **fields
                    )
        except TimeoutError as error:
            raise StoreUnavailable("the change stream does not answer") from error
        cursor = reply["cursor"]
        self._cursor = cursor["id"]
        if not self._cursor:
            # The collection was dropped or renamed, together with its indexes.
            self._indexes.check_soon()
            raise StoreUnavailable("the change stream ended")
        events: list[Document] = cursor.get("nextBatch", [])
        self._note_position(events, cursor["postBatchResumeToken"])
        return events

    def _note_position(self, events: list[Document], token: Mapping[str, Any]) -> None:
        """Note where a batch ends.

        The token of an event need not suit a stream that does not report the event, so the
        position after an event is its time. Any other token stands for a time.
        """
        if events:
            self._last_event = events[-1]
        if self._last_event is not None and self._last_event["_id"] == token:
            self.position = {"startAtOperationTime": self._last_event["clusterTime"]}
        else:
            self.position = {"resumeAfter": token}


def _events(usernames: Collection[str] | None) -> Document:
    """Return the condition for the events of arrivals in these inboxes, or in all.

    Updates by earlier versions, and by hand, do not say whose message became unread again; null
    stands for no such field.
    """
    # A scheduled message is not unread when it is stored.
    stored: Document = {
        "operationType": {"$in": ["insert", "replace"]},
        "fullDocument.unread": True,
    }
    returned: Document = {"updateDescription.updatedFields.unread": True}
    if usernames is not None:
        stored["fullDocument.username"] = {"$in": list(usernames)}
        returned["updateDescription.updatedFields.returned_to"] = {"$in": [*usernames, None]}
    return {"$or": [stored, returned, {"operationType": "invalidate"}]}


def _inbox_of(event: Mapping[str, Any]) -> str:
    """Return the inbox of an event, or an empty string if the event does not name it."""
    if "fullDocument" in event:
        return str(event["fullDocument"].get("username", ""))
    updated = event.get("updateDescription", {}).get("updatedFields", {})
    return str(updated.get("returned_to", ""))
