"""The guard of schema 2: the database refuses messages without a route, which no node would find.

Nodes of earlier versions store such messages. The guard is a validator of the collection. It is set
when the collection is created, by `chat migrate`, and by each node that finds none: another node
may have created the collection, or an insert may have, after it was dropped.
"""

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from workers.store.driver import Document
from workers.store.driver_errors import NOT_ALLOWED
from workers.store.layout import Layout
from workers.store.schema import COLLECTION, VALIDATOR

#: Longest time for a command, in seconds.
_ANSWER_S = 30.0


async def read_validator(database: AsyncDatabase[Document]) -> Document | None:
    """Return the validator of the messages, or None if this user may not see it."""
    try:
        listed = await database.command({"listCollections": 1, "filter": {"name": COLLECTION}})
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return None
    found: list[Document] = listed["cursor"]["firstBatch"]
    return found[0]["options"].get("validator", {}) if found else {}


async def set_validator(database: AsyncDatabase[Document], validator: Document) -> bool:
    """Set the validator of the messages. Return False if this user may not."""
    try:
        await database.command(
            {
                "collMod": COLLECTION,
                "validator": validator,
                # Messages that have no route yet can be read and expire meanwhile.
                "validationLevel": "moderate",
                "writeConcern": {"w": "majority"},
            }
        )
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return False
    return True


async def ensure_guard(database: AsyncDatabase[Document], layout: Layout) -> bool:
    """Set the guard if the layout needs it and there is no validator.

    Returns False if this user may not. A validator of the operator's own stays.
    """
    if not layout.has_route:
        return True
    with pymongo.timeout(_ANSWER_S):
        return await read_validator(database) != {} or await set_validator(database, VALIDATOR)


async def has_unrouted(database: AsyncDatabase[Document], layout: Layout) -> bool:
    """Return whether there are unread messages that no node finds, since they have no route.

    Reads one key of the inbox index, where a missing field is null. Not for use through a mongos.
    """
    if not layout.has_route:
        return False
    lost = {"route": None, "unread": True}
    found = await database[COLLECTION].find_one(
        lost, projection={"_id": 1}, hint=layout.inbox_index
    )
    return found is not None
