"""Reports arrivals in inboxes, from a change stream that is read with raw commands.

An event is only a reason to search. The caller searches for itself, so nothing depends on where the
stream begins, and a broken stream is not resumed. The driver's own change stream costs several
times as much for each event.
"""

import asyncio
from collections.abc import AsyncIterator, Collection

import structlog
from pymongo.errors import PyMongoError

from workers.errors import StoreUnavailable
from workers.store.connection import Connection, StoreRefused, read_errors
from workers.store.driver import start_session
from workers.store.schema import COLLECTION

log = structlog.get_logger(__name__)

#: How long the database waits for an event before it returns none, and how much longer the store
#: waits before it gives up. In seconds.
_HOLD_S, _GRACE_S = 1.0, 4.0
_EVENTS_MAX = 1000
#: Inserts come with their inbox. For messages that become unread again, the event has no inbox.
_PIPELINE = [
    {"$changeStream": {}},
    {
        "$match": {
            "$or": [
                {"operationType": "insert"},
                {"updateDescription.updatedFields.unread": True},
                {"operationType": "invalidate"},
            ]
        }
    },
    {"$project": {"fullDocument.username": 1, "operationType": 1}},
]


class ChangeStream(Connection):
    """The part of `workers.store.base.Store` that reports arrivals."""

    async def arrivals(self) -> AsyncIterator[Collection[str] | None]:
        """See `workers.store.base.Store.arrivals`."""
        assert self._client is not None
        database = self._client[self._options.database]
        async with await start_session(self._client) as session:
            try:
                with read_errors():
                    async with asyncio.timeout(_GRACE_S):
                        reply = await database.command(
                            "aggregate",
                            COLLECTION,
                            pipeline=_PIPELINE,
                            cursor={},
                            readConcern={"level": "majority"},
                            session=session,
                        )
            except StoreRefused as error:
                if not self._are_changes_hidden:
                    self._are_changes_hidden = True
                    log.warning(
                        "this user may not read the change stream: messages of other processes "
                        "arrive up to a second later",
                        reason=str(error),
                    )
                raise
            cursor = reply["cursor"]["id"]
            yield None
            try:
                while True:
                    with read_errors():
                        async with asyncio.timeout(_HOLD_S + _GRACE_S):
                            reply = await database.command(
                                "getMore",
                                cursor,
                                collection=COLLECTION,
                                batchSize=_EVENTS_MAX,
                                maxTimeMS=int(_HOLD_S * 1000),
                                session=session,
                            )
                    if reply["cursor"]["id"] == 0:
                        # The collection was dropped or renamed, together with its indexes.
                        self.indexes.check_soon()
                        raise StoreUnavailable("the change stream ended")
                    documents = [
                        event.get("fullDocument") for event in reply["cursor"]["nextBatch"]
                    ]
                    yield {document["username"] for document in documents if document is not None}
                    if None in documents:
                        # One None for any number of such events: each waiter searches once.
                        yield None
            except TimeoutError as error:
                raise StoreUnavailable("the change stream does not answer") from error
            finally:
                try:
                    async with asyncio.timeout(_GRACE_S):
                        await database.command("killCursors", COLLECTION, cursors=[cursor])
                except (PyMongoError, TimeoutError):
                    # The cursor is gone, or the server will close it.
                    pass
