"""Reads with an idempotency key in MongoDB: their messages are chosen once, for all repeats.

The choice is a batch: a document whose `_id` is the key's hash. It is inserted before any message
is claimed, so if two processes choose at the same time, one of them wins. All then claim the same
messages, and mark them with the key. Before a process answers, it marks the batch as delivered. A
batch that got no messages is discarded. A delivered batch cannot be discarded, and a discarded
batch cannot be delivered.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from bson.datetime_ms import DatetimeMS
from pymongo.errors import BulkWriteError

from workers.commands import KeyedBatch, Message
from workers.errors import StoreUnavailable
from workers.store.connection import Connection
from workers.store.driver import Document
from workers.store.driver_errors import read_errors

_DUPLICATE_KEY = 11000
#: Attempts to record a batch.
_DECISIONS_MAX = 5


class IdempotentReads(Connection):
    """The part of `workers.store.base.Store` for reads with a key."""

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        """See `workers.store.base.Store.record_batch`."""
        documents: list[Document] = [
            {
                "_id": batch.key,
                "username": batch.username,
                "ids": list(batch.ids),
                "until": DatetimeMS(batch.until_ms),
                "token": batch.token,
                "more": batch.more,
            }
            for batch in batches
        ]

        async def write() -> bool:
            """Return whether all of them are new."""
            try:
                await self._reads.insert_many(documents, ordered=False)
                return True
            except BulkWriteError as error:
                details = error.details or {}
                codes = {each["code"] for each in details.get("writeErrors", ())}
                if codes != {_DUPLICATE_KEY} or details.get("writeConcernErrors"):
                    raise
                return False

        keys = [batch.key for batch in batches]
        for _ in range(_DECISIONS_MAX):
            if (await self._confirmed("remember", write))[0]:
                return list(batches)
            holding = await self.find_batches(keys, now_ms)
            if all(key in holding for key in keys):
                return [holding[key] for key in keys]
            # A batch was discarded before it was found, or is no longer valid: record it again.
            await self._confirmed("remember", partial(self._clear, keys, now_ms))
        raise StoreUnavailable("the batches of a key are recorded and discarded repeatedly")

    async def _clear(self, keys: Sequence[str], now_ms: int) -> None:
        """Delete batches that are no longer valid, but that the TTL index has not deleted yet."""
        for key in keys:
            # One by one: behind a mongos, only the id tells which database shard has a batch.
            await self._reads.delete_one({"_id": key, "until": {"$lt": DatetimeMS(now_ms)}})

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        """See `workers.store.base.Store.find_batches`."""
        with self._operation("recall"), read_errors():
            documents = await self._reads.find(
                {"_id": {"$in": list(keys)}, "until": {"$gte": DatetimeMS(now_ms)}}
            ).to_list(None)
        return {
            each["_id"]: KeyedBatch(
                *(each["_id"], each["username"], tuple(each["ids"]), int(each["until"])),
                # Earlier versions record none.
                token=each.get("token", str(int(each["until"]))),
                more=each.get("more", False),
                is_given=each.get("given", False),
            )
            for each in documents
        }

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        """See `workers.store.base.Store.mark_delivered`."""

        async def write() -> bool:
            result = await self._reads.update_one(_same(batch), {"$set": {"given": True}})
            return result.matched_count == 1

        return (await self._confirmed("give", write))[0]

    async def discard_batch(self, batch: KeyedBatch) -> bool:
        """See `workers.store.base.Store.discard_batch`."""

        async def write() -> int:
            result = await self._reads.delete_one({**_same(batch), "given": None})
            return result.deleted_count

        if (await self._confirmed("forget", write))[0]:
            return True
        with self._operation("recall"), read_errors():
            return await self._reads.find_one(_same(batch), projection={"_id": 1}) is None

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        """See `workers.store.base.Store.keyed_messages`."""
        with self._operation("recall"), read_errors():
            documents = await self._majority.find(
                {
                    **self._layout.inbox(batch.username),
                    "_id": {"$in": list(batch.ids)},
                    "claim.key": batch.key,
                    # Claims by earlier versions have none.
                    "claim.batch": {"$in": [batch.token, None]},
                    "expires_at": {"$gte": DatetimeMS(now_ms)},
                },
                projection={"text": 1},
                sort=[("_id", 1)],
                hint="_id_",
            ).to_list(None)
        return [Message(each["text"], each["_id"]) for each in documents]


def _same(batch: KeyedBatch) -> Document:
    """Return the filter for this very batch: its key may have another one by now."""
    same: Document = {"_id": batch.key, "ids": list(batch.ids), "until": DatetimeMS(batch.until_ms)}
    # Earlier versions record no token.
    return same | {"token": {"$in": [batch.token, None]}}
