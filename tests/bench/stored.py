"""Store messages directly in the database, for measurements that begin with many."""

import asyncio
import time
from collections.abc import Callable
from itertools import islice

import bson
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from workers.routing import route_of
from workers.store.driver import Document
from workers.store.layout import NEWEST
from workers.store.schema import COLLECTION, ensure_indexes

_AT_ONCE = 10_000
_LIFE_MS = 86_400_000


async def store(
    uri: str, database: str, prefix: str, users: int, each: int, on: Callable[[int], None]
) -> None:
    """Store `each` unread messages in each of `users` inboxes. Call `on` with the number stored so
    far.
    """
    now_ms = int(time.time() * 1000)
    documents = (
        _document(f"{now_ms:012x}{number:020x}", f"{prefix}-{number % users}", now_ms)
        for number in range(users * each)
    )
    async with AsyncMongoClient[Document](uri) as client:
        messages = client[database][COLLECTION]
        stored = 0

        async def insert() -> None:
            nonlocal stored
            while batch := list(islice(documents, _AT_ONCE)):
                await messages.insert_many(batch, ordered=False)
                stored += len(batch)
                on(stored)

        # While the database stores the one's batch, the other encodes the next.
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(insert())
        await ensure_indexes(client[database], NEWEST)


async def drop(uri: str, database: str) -> None:
    """Drop a database."""
    async with AsyncMongoClient[Document](uri) as client:
        await client.drop_database(database)


def _document(message_id: str, username: str, now_ms: int) -> RawBSONDocument:
    fields = {
        "_id": message_id,
        "route": route_of(username),
        "username": username,
        "text": "x" * 32,
        "created_at": DatetimeMS(now_ms),
        "expires_at": DatetimeMS(now_ms + _LIFE_MS),
        "purge_at": DatetimeMS(now_ms + 2 * _LIFE_MS),
        "unread": True,
    }
    return RawBSONDocument(bson.encode(fields))
