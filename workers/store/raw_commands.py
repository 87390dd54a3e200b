"""The three commands that posts and reads are made of, without the driver's bulk API and cursors.

Those cost as much as the rest of a call: they encode each document by itself, and build an object
for each write and each cursor. `Database.command` encodes a whole command at once.

They raise the driver's errors. Each takes a deadline in seconds of `time.monotonic`, since a limit
of `pymongo.timeout` costs a task for each command. After the deadline, it raises `NetworkTimeout`,
and what was sent may take effect later.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    WriteConcernError,
    WriteError,
)

from workers.store.driver import Document, run

#: Every write is on the disk of a majority before it is answered.
_DURABLE = {"w": "majority", "j": True}


class Inserted(NamedTuple):
    """The errors of an insert by the position of their documents, and whether a majority has
    confirmed the others.
    """

    errors: Mapping[int, Document]
    is_confirmed: bool


async def insert(
    database: AsyncDatabase[Document],
    collection: str,
    documents: Sequence[Mapping[str, Any]],
    deadline: float,
) -> Inserted:
    """Insert documents in any order. An error of one does not affect the others.

    They have at most 16 MiB together. Raises the errors of `bson` if one cannot be encoded; then
    nothing was sent.
    """
    reply = await run(
        database,
        {
            "insert": collection,
            "ordered": False,
            "documents": documents,
            "writeConcern": _DURABLE,
        },
        deadline,
    )
    errors = {entry["index"]: entry for entry in reply.get("writeErrors", ())}
    return Inserted(errors, "writeConcernError" not in reply)


async def find(
    database: AsyncDatabase[Document],
    collection: str,
    options: Mapping[str, Any],
    deadline: float,
) -> list[Document]:
    """Return all documents of one reply. `options` are those of the command `find`."""
    reply = await run(database, {"find": collection, **options, "singleBatch": True}, deadline)
    found: list[Document] = reply["cursor"]["firstBatch"]
    return found


async def update(
    database: AsyncDatabase[Document],
    collection: str,
    selections: Iterable[Mapping[str, Any]],
    change: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    hint: str,
    deadline: float | None = None,
) -> int:
    """Update all documents that one of the filters selects, each in a statement of its own.

    Returns how many changed. Without a deadline, the limit of `pymongo.timeout` applies. Some
    statements may have taken effect if this raises.
    """
    reply = await run(
        database,
        {
            "update": collection,
            "ordered": False,
            "updates": [
                {"q": selection, "u": change, "multi": True, "hint": hint}
                for selection in selections
            ],
            "writeConcern": _DURABLE,
        },
        deadline,
    )
    for error in reply.get("writeErrors", ()):
        raise WriteError(error.get("errmsg"), error.get("code"), error)
    if unconfirmed := reply.get("writeConcernError"):
        raise WriteConcernError(unconfirmed.get("errmsg"), unconfirmed.get("code"), unconfirmed)
    changed: int = reply["nModified"]
    return changed
