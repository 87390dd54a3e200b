"""What arrives in inboxes, as the database tells it: a change stream, read by hand.

A wake-up and no more: the caller looks for itself, so nothing depends on where the stream begins
and nothing is resumed. Raw commands, since the driver's change stream costs several times as much
for each event.
"""

import asyncio
from collections.abc import AsyncIterator, Collection

from pymongo.errors import PyMongoError

from workers.errors import StoreUnavailable
from workers.store.connection import Connection, read_errors
from workers.store.driver import start_session
from workers.store.schema import COLLECTION

#: How long the database holds a question open that has no answer yet, and how much later than
#: that it counts as gone. In seconds.
_HOLD_S, _GRACE_S = 1.0, 4.0
_EVENTS_MAX = 1000
#: New messages with their inbox; of what became unread again an update tells only that it did.
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
    """The part of `workers.store.base.Store` that tells of arrivals."""

    async def arrivals(self) -> AsyncIterator[Collection[str] | None]:
        """See `workers.store.base.Store.arrivals`."""
        assert self._client is not None
        database = self._client[self._options.database]
        async with await start_session(self._client) as session:
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
                        # The collection was dropped or renamed, and its indexes with it.
                        self.indexes.check_soon()
                        raise StoreUnavailable("the change stream ended")
                    documents = [
                        event.get("fullDocument") for event in reply["cursor"]["nextBatch"]
                    ]
                    yield {document["username"] for document in documents if document is not None}
                    if None in documents:
                        # However many they were: who waits looks once.
                        yield None
            except TimeoutError as error:
                raise StoreUnavailable("the change stream is not answered") from error
            finally:
                try:
                    async with asyncio.timeout(_GRACE_S):
                        await database.command("killCursors", COLLECTION, cursors=[cursor])
                except (PyMongoError, TimeoutError):
                    # It is gone, or goes by itself.
                    pass
