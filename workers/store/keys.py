"""Reads with an idempotency key in MongoDB: what each was given is decided once, for all repeats.

The decision is a document whose `_id` is the key's hash, inserted before anything is claimed: of
two that decide at once, in two processes, one wins. The claims of all of them then mark the same
messages with the key.
"""

from collections.abc import Mapping, Sequence

from bson.datetime_ms import DatetimeMS
from pymongo.errors import BulkWriteError

from workers.commands import KeyedBatch, Message
from workers.errors import StoreUnavailable
from workers.store.database import Database, read_errors
from workers.store.driver import Document

_DUPLICATE_KEY = 11000
#: Times that something is decided before it is given up.
_DECISIONS_MAX = 5


class KeyedReads(Database):
    """The part of `workers.store.base.Store` that is about reads with a key."""

    async def remember(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        """See `workers.store.base.Store.remember`."""
        documents: list[Document] = [
            {
                "_id": batch.key,
                "username": batch.username,
                "ids": list(batch.ids),
                "until": DatetimeMS(batch.until_ms),
            }
            for batch in batches
        ]

        async def write() -> None:
            # What was decided long ago holds no more, though it is not freed yet.
            await self._reads.delete_many(
                {
                    "_id": {"$in": [batch.key for batch in batches]},
                    "until": {"$lt": DatetimeMS(now_ms)},
                }
            )
            try:
                await self._reads.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                details = error.details or {}
                codes = {each["code"] for each in details.get("writeErrors", ())}
                if codes != {_DUPLICATE_KEY} or details.get("writeConcernErrors"):
                    raise

        for _ in range(_DECISIONS_MAX):
            await self._confirmed("remember", write)
            holding = await self.recall([batch.key for batch in batches], now_ms)
            # One that was there, and was forgotten before it was looked at, is decided again.
            if all(batch.key in holding for batch in batches):
                return [holding[batch.key] for batch in batches]
        raise StoreUnavailable("what a key gets is decided and forgotten all the time")

    async def recall(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        """See `workers.store.base.Store.recall`."""
        with self._operation("recall"), read_errors():
            documents = await self._reads.find(
                {"_id": {"$in": list(keys)}, "until": {"$gte": DatetimeMS(now_ms)}}
            ).to_list(None)
        return {
            each["_id"]: KeyedBatch(
                each["_id"], each["username"], tuple(each["ids"]), int(each["until"])
            )
            for each in documents
        }

    async def forget(self, batch: KeyedBatch) -> None:
        """See `workers.store.base.Store.forget`."""

        async def write() -> None:
            await self._reads.delete_one({"_id": batch.key, "ids": list(batch.ids)})

        await self._confirmed("forget", write)

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        """See `workers.store.base.Store.keyed_messages`."""
        with self._operation("recall"), read_errors():
            documents = await self._majority.find(
                {
                    "username": batch.username,
                    "_id": {"$in": list(batch.ids)},
                    "claim.key": batch.key,
                    "expires_at": {"$gte": DatetimeMS(now_ms)},
                },
                projection={"text": 1},
                sort=[("_id", 1)],
                hint="_id_",
            ).to_list(None)
        return [Message(each["text"], each["_id"]) for each in documents]
