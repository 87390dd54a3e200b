"""The schema version of a database: which layout its messages and indexes have.

In `fleet`, one document, which has no field `at` and so is never deleted:

    {_id: "schema", version: 2}

A node reads it when it starts. While it runs, it reads it again every few seconds (see
`workers.store.index_keeper`), before it creates an index, and at once if a statement names an index
that does not exist.
It then builds its next statements for the version that it found. So a process that
changes the schema of a database in use

1. has every document as the new version needs it, and creates the new indexes,
2. writes the new version, acknowledged by a majority,
3. waits until each node has looked again: `READ_VERSION_EVERY_S` and `CHECK_EVERY_S` of
   `workers.store.index_keeper`, and the longest time of an operation,
4. drops the indexes that only the old version needs.

A node that is slower misses an index in step 4: the database refuses its statement, and the node
looks again. Nodes create only indexes of the version that they found.
"""

from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from workers.store.driver import Document
from workers.store.driver_errors import NOT_ALLOWED
from workers.store.layout import LAYOUT_1, LAYOUT_2, LAYOUTS, NEWEST, Layout
from workers.store.schema import COLLECTION, FLEET

#: The id of the document with the version.
SCHEMA = "schema"


class UnknownSchema(Exception):
    """Raised when this version of the service does not know the schema version of a database."""

    def __init__(self, version: object) -> None:
        super().__init__(
            f"the database has schema version {version}, but this version of the service knows "
            f"only {' and '.join(map(str, LAYOUTS))}: use the version of the service that changed "
            "it, or a newer one"
        )


async def find_layout(database: AsyncDatabase[Document]) -> Layout | None:
    """Return the layout of a database, or None if the database is new. Changes nothing.

    Without a version, or if the user may not read it, the indexes decide. Raises `UnknownSchema`.
    """
    version = await read_version(database)
    return await _layout_by_indexes(database) if version is None else _layout_of(version)


async def settle_layout(database: AsyncDatabase[Document], wanted: Layout = NEWEST) -> Layout:
    """Return the layout of a database. A new one gets the layout `wanted`, and its version.

    Of all nodes that do this at once, one decides. Raises `UnknownSchema`.
    """
    return await find_layout(database) or _layout_of(await _write_first(database, wanted.version))


def _layout_of(version: int) -> Layout:
    if version not in LAYOUTS:
        raise UnknownSchema(version)
    return LAYOUTS[version]


async def read_version(database: AsyncDatabase[Document]) -> int | None:
    """Return the version that a database carries, or None if there is none or it is hidden."""
    fleet = database.get_collection(FLEET, read_concern=ReadConcern("majority"))
    try:
        document = await fleet.find_one({"_id": SCHEMA}, projection={"version": 1})
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return None
    return None if document is None else int(document["version"])


async def _layout_by_indexes(database: AsyncDatabase[Document]) -> Layout | None:
    """Return the layout that the indexes of messages belong to, or None for a new database.

    If there are indexes of both schemas, a change was not complete, and the old one is in force.
    """
    messages = database[COLLECTION]
    names = (await messages.index_information()).keys()
    for layout in (LAYOUT_1, LAYOUT_2):
        if names & layout.indexes.keys():
            return layout
    # The indexes of messages were dropped. All messages can be found without a route.
    return None if await messages.find_one({}, projection={"_id": 1}) is None else LAYOUT_1


async def _write_first(database: AsyncDatabase[Document], version: int) -> int:
    """Write a version if there is none. Returns the one that is in force."""
    try:
        document = await database[FLEET].find_one_and_update(
            {"_id": SCHEMA},
            {"$setOnInsert": {"version": version}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return version
    assert document is not None
    return int(document["version"])
