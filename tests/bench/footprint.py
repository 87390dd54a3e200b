"""The bytes of a message in the database. MongoDB counts them, so no clock is involved."""

import random
import secrets
import string
import time
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from workers.commands import Claim, Post
from workers.ids import IdSource
from workers.routing import route_of
from workers.store.mongo import MongoStore
from workers.store.schema import COLLECTION

Client = AsyncMongoClient[dict[str, Any]]

_AT_ONCE = 500
_LIFE_MS = 3_600_000
#: The length of the names of inboxes, in characters.
NAME_CHARS = 16


class Footprint(NamedTuple):
    """Bytes of each message, without those of its text.

    The first three are its entries in the oplog: for its insert, its claim and its deletion. The
    others are on disk, after its insert or its claim: entries in all indexes, and its document.
    """

    oplog_insert: float
    oplog_claim: float
    oplog_delete: float
    index_unread: float
    index_claimed: float
    document_unread: float
    document_claimed: float


async def measure(
    store: MongoStore, client: Client, database: str, count: int, text_bytes: int
) -> Footprint:
    """Store `count` messages in a tenth as many inboxes, claim them and delete them.

    The store has to use this empty database. Texts are random, so that they cannot be compressed.
    """
    messages = client[database][COLLECTION]
    now_ms = int(time.time() * 1000)
    ids, rng = IdSource(), random.Random(0)
    letters = string.ascii_letters + string.digits
    names = ["".join(rng.choices(letters, k=NAME_CHARS)) for _ in range(max(count // 10, 1))]
    began = (await client.admin.command("hello"))["lastWrite"]["opTime"]["ts"]

    def post(at_ms: int) -> Post:
        name, text = rng.choice(names), secrets.token_urlsafe(text_bytes)[:text_bytes]
        message_id = ids.next(at_ms, route_of(name))
        return Post(message_id, name, text, text_bytes, at_ms, at_ms + _LIFE_MS)

    for start in range(now_ms, now_ms + count, _AT_ONCE):
        assert not any(await store.insert([post(start + each) for each in range(_AT_ONCE)]))
    unread = await _sizes(client, database)
    for start in range(0, len(names), _AT_ONCE):
        found = await store.find_unread(names[start : start + _AT_ONCE], count, now_ms)
        claimed = {name: [each.message.id for each in its] for name, its in found.messages.items()}
        everything = [each for its in claimed.values() for each in its]
        for at in range(0, len(everything), _AT_ONCE):
            some = everything[at : at + _AT_ONCE]
            claim = Claim(
                secrets.token_hex(16), tuple(claimed), tuple(some), now_ms, now_ms + _LIFE_MS
            )
            assert (await store.claim(claim)).ids == set(some)
    done = await _sizes(client, database)
    await messages.delete_many({})
    oplog = client.local["oplog.rs"]
    entries = await oplog.aggregate(
        [
            {"$match": {"ts": {"$gt": began}, "ns": messages.full_name}},
            {
                "$group": {
                    "_id": "$op",
                    "n": {"$sum": 1},
                    "bytes": {"$sum": {"$bsonSize": "$$ROOT"}},
                }
            },
        ]
    )
    # Each entry names the database. Others count as if it had the default name.
    longer = len(database) - len("chat")
    each = {entry["_id"]: entry["bytes"] / entry["n"] - longer async for entry in entries}
    return Footprint(
        *(each["i"] - text_bytes, each["u"], each["d"]),
        *(unread["index"] / count, done["index"] / count),
        *(unread["document"] / count - text_bytes, done["document"] / count - text_bytes),
    )


async def _sizes(client: Client, database: str) -> dict[str, float]:
    """Return the bytes on disk of the indexes and of the documents, after a checkpoint."""
    await client.admin.command("fsync")
    stats = await client[database].command("collStats", COLLECTION)
    return {"index": stats["totalIndexSize"], "document": stats["storageSize"]}
