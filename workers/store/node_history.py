"""The history of each node in MongoDB: what its dashboard shows about the time before a restart.

The collection `history` has a few documents for each node, one for each hour of a day:

    {_id: "NODE|PLACE", node, at, content}

The places are a ring, so a node replaces its oldest document, and cannot have more than that. The
content is opaque here. The leader deletes documents of nodes that no longer exist, by `at`.

Nothing depends on it. Without the privilege for the collection, a node keeps its history in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from workers.store.connection import Connection
from workers.store.driver_errors import NOT_ALLOWED, read_errors
from workers.store.schema import HISTORY

log = structlog.get_logger(__name__)

#: How many documents a node has. A day that begins within an hour touches 25 hours.
HISTORY_PLACES = 25
#: Longest time to read or write, in seconds.
_WITHIN_S = 5.0
#: Documents are deleted this long after their time `at`, in ms.
_FORGET_AFTER_MS = HISTORY_PLACES * 3600_000


class NodeHistory(Connection):
    """The part of the store for the histories of nodes. Its methods raise `StoreUnavailable`."""

    async def save_history(self, node: str, hour: int, content: bytes, at_ms: int) -> None:
        """Replace what a node recorded in an hour, counted since 1970. `at_ms` is the time of the
        last record. Safe to repeat. Does nothing if the database's user may not store it.
        """
        if self._is_history_hidden:
            return
        assert self._client is not None
        # A failover may take this back. The next write has the same content and more.
        histories = self._client[self._options.database].get_collection(
            HISTORY, write_concern=WriteConcern(w=1)
        )
        with self._allowed(), self._operation("history", min(_WITHIN_S, self._timeout_s)):
            await histories.replace_one(
                {"_id": f"{node}|{hour % HISTORY_PLACES}"},
                {"node": node, "at": DatetimeMS(at_ms), "content": Binary(content)},
                upsert=True,
            )

    async def load_history(self, node: str) -> list[bytes]:
        """Return what a node recorded in each hour, in no particular order.

        Empty if the database's user may not see it.
        """
        assert self._client is not None
        histories = self._client[self._options.database][HISTORY]
        ids = [f"{node}|{place}" for place in range(HISTORY_PLACES)]
        found: list[bytes] = []
        with self._allowed(), self._operation("history", min(_WITHIN_S, self._timeout_s)):
            async for each in histories.find({"_id": {"$in": ids}}, {"content": 1}):
                found.append(bytes(each["content"]))
        return found

    async def _forget_histories(self, now_ms: int) -> None:
        """Delete the histories of nodes that recorded nothing for a day."""
        if self._is_history_hidden:
            return
        assert self._client is not None
        histories = self._client[self._options.database].get_collection(
            HISTORY, write_concern=WriteConcern(w=1)
        )
        with self._allowed(), self._operation("history"):
            await histories.delete_many({"at": {"$lt": DatetimeMS(now_ms - _FORGET_AFTER_MS)}})

    @contextmanager
    def _allowed(self) -> Iterator[None]:
        """Log once if the database does not allow the block, and go on without."""
        with read_errors():
            try:
                yield
            except OperationFailure as error:
                if error.code not in NOT_ALLOWED:
                    raise
                if not self._is_history_hidden:
                    self._is_history_hidden = True
                    log.warning(
                        "the dashboard forgets its history at a restart; grant the service the "
                        "actions find, insert, update and remove on the collection history, or "
                        "the role readWrite on its database"
                    )
