"""Gives a route to each message that has none, while nodes use the database.

Messages are taken in the order of their ids, a few at a time. How many and how often depends on how
long the database takes: a busy one gets longer pauses. A message's route is a function of its
inbox, so setting it twice, or by two processes at once, changes nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pymongo
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect

from workers.routing import route_of
from workers.store.driver import Document, aggregate
from workers.store.schema import COLLECTION

#: The share of the time in which the database works for the backfill. The rest is for the service.
SHARE = 0.25
#: How long the database may work for it at a time, in seconds, and how many messages that can be.
#: A request may have to wait for so long.
SLICE_S, SLICE_MAX, SLICE_MIN = 0.015, 300, 20
#: The longest pause, in seconds, after a slice that took very long; and the longest time for one.
_PAUSE_MAX_S, _ANSWER_S = 2.0, 60.0


class Slice(NamedTuple):
    """A part that is done: the number of its messages, those that lacked a route, the last id."""

    seen: int
    filled: int
    after: str


async def fill_routes(database: AsyncDatabase[Document], after: str) -> AsyncIterator[Slice]:
    """Set the routes of all messages with greater ids that are stored now. Yield each slice.

    Messages that are stored meanwhile may or may not be among them. Raises
    `pymongo.errors.PyMongoError`; the slices before it are acknowledged by a majority.
    """
    messages = database[COLLECTION]
    with pymongo.timeout(_ANSWER_S):
        last = await messages.find_one({}, projection={"_id": 1}, sort=[("_id", -1)])
    size = SLICE_MIN
    while last is not None:
        began = time.monotonic()
        with pymongo.timeout(_ANSWER_S):
            found = await _next_slice(messages, after, last["_id"], size)
            if found is None:
                return
            lacking = found["lacking"]
            if lacking:
                await _set_routes(database, lacking)
        after = found["last"]
        took_s = time.monotonic() - began
        yield Slice(found["seen"], len(lacking), after)
        # Half of the way towards the right size: one slow slice proves little.
        size = max(SLICE_MIN, min(SLICE_MAX, int(size * (1 + SLICE_S / took_s) / 2), 2 * size))
        await asyncio.sleep(min(took_s * (1 / SHARE - 1), _PAUSE_MAX_S))


async def _next_slice(
    messages: AsyncCollection[Document], after: str, upto: str, size: int
) -> Document | None:
    """Return the next messages: their number, the last id, and those that lack a route."""
    lacks = {"$eq": [{"$type": "$route"}, "missing"]}
    one = {"_id": "$_id", "username": "$username"}
    found = await aggregate(
        messages,
        [
            {"$match": {"_id": {"$gt": after, "$lte": upto}}},
            {"$sort": {"_id": 1}},
            {"$limit": size},
            {
                "$group": {
                    "_id": None,
                    "seen": {"$sum": 1},
                    "last": {"$max": "$_id"},
                    "lacking": {"$push": {"$cond": [lacks, one, "$$REMOVE"]}},
                }
            },
        ],
        hint="_id_",
    )
    return found[0] if found else None


async def _set_routes(database: AsyncDatabase[Document], lacking: list[Document]) -> None:
    # As a command, the driver does not repeat it, which would cost the database a record of each
    # message. Messages that have been deleted since are not found.
    answer = await database.command(
        {
            "update": COLLECTION,
            "updates": [
                {"q": {"_id": each["_id"]}, "u": {"$set": {"route": route_of(each["username"])}}}
                for each in lacking
            ],
            "ordered": False,
            "writeConcern": {"w": "majority", "j": True},
        }
    )
    for failure in ("writeErrors", "writeConcernError"):
        if failure in answer:
            # Such as an election. Whether a majority has them or not, a repeat sets them again.
            raise AutoReconnect(f"routes were not stored: {answer[failure]}")
