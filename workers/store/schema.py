"""The documents and indexes in MongoDB. The indexes are created and checked at startup.

In `messages`:

    {_id, route, username, text, created_at, expires_at, purge_at, unread: true}

- `route` is that of the inbox (see `workers.routing`). Documents of earlier versions lack it in
  schema 1; in schema 2 the database refuses documents without it.
- A claim removes `unread` and adds `claim: {token, at, by}`, for a read with a key also its `key`
  and the token of its `batch`.
- Expiry removes `unread` and adds `expired`, the id of the sweep that marked the message.
- A lease removes `unread`, adds `lease: {token, at, by, until}`, and adds 1 to `deliveries`. When
  it ends, `until` is removed and the message is claimed, unread, expired or dead. `lost_by` has the
  tokens of earlier leases that ran out.
- A message that moves to a dead-letter inbox gets `dead: {at, id, inbox, deliveries}`, and the copy
  there has `origin: {username, id, deliveries}` (see `workers.store.moves`).
- A message that becomes unread again gets `returned_to`, the name of its inbox: an event in the
  change stream has only the fields that an update changed. So the next claim removes it.
- `voided` has the tokens of the last abandoned writes, which must not change the message any more.
- `revoked` is the time at which the sender took the message back.

Only messages with `unread` are in the inbox index, so the cost of a read depends on the unread
messages and not on the history. The TTL index deletes messages after `purge_at`; no guarantee
depends on it.

A message with a receipt or an idempotency key has `receipts: [hash]`, `key: {hash, body}` and
`kept: true`, and its `purge_at` is null. Some time after its end it loses `text` and `kept`, and
gets a `purge_at`. Until then its sender can ask for its status.

In `reads`, the batches of reads with an idempotency key:

    {_id: hash, username, ids, until, token, more, given: true}

In `fleet`, the schema version (see `workers.store.schema_version`), the leader lease (see
`workers.store.fleet`) and the confirmations of each process (see `workers.store.confirmations`).
The leader deletes other documents an hour after their time `at`.

In `history`, what the dashboards of the nodes show (see `workers.store.node_history`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pymongo
from pymongo import IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from workers.store.driver import Document, aggregate
from workers.store.driver_errors import NOT_ALLOWED
from workers.store.layout import Layout

COLLECTION = "messages"
READS = "reads"
FLEET = "fleet"
HISTORY = "history"
#: The id of the leader lease.
LEADER = "leader"
#: The id of the key by which logs name inboxes.
LOG_KEY = "log-names"
PURGE_INDEX = "purge"
KEPT_INDEX = "kept"
LEASE_INDEX = "leases"
LEASE_END_INDEX = "lease_ends"
LOST_INDEX = "lost_leases"

_EXISTS = {"$exists": True}

#: The definitions of the indexes that every layout has, by collection and name.
_COMMON: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    COLLECTION: {
        PURGE_INDEX: {"key": {"purge_at": 1}, "expireAfterSeconds": 0},
        KEPT_INDEX: {
            "key": {"claim.at": 1, "expires_at": 1},
            "partialFilterExpression": {"kept": True},
        },
        LEASE_INDEX: {
            "key": {"lease.token": 1},
            "partialFilterExpression": {"lease.token": _EXISTS},
        },
        LEASE_END_INDEX: {
            "key": {"lease.until": 1},
            "partialFilterExpression": {"lease.until": _EXISTS},
        },
        LOST_INDEX: {
            "key": {"lost_by": 1},
            "partialFilterExpression": {"lost_by": _EXISTS},
        },
    },
    READS: {PURGE_INDEX: {"key": {"until": 1}, "expireAfterSeconds": 60}},
}

#: What the database requires of documents in schema 2. Nodes that know no routes could otherwise
#: store messages that no other node finds.
VALIDATOR: Document = {"route": {"$exists": True}}

#: Indexes that earlier versions used and this one does not, by collection.
OBSOLETE: Mapping[str, Sequence[str]] = {COLLECTION: ("unread_by_inbox",)}

#: The options of an index that change its behavior.
_MEANING = (
    "key",
    "partialFilterExpression",
    "expireAfterSeconds",
    "unique",
    "sparse",
    "collation",
    "hidden",
)


#: Longest time to search for messages that prevent the unique index, in seconds, and how many of
#: them an error names.
_LOOK_S, _NAMED = 10.0, 5

_DUPLICATE_KEY, _NAMESPACE_NOT_FOUND, _NAMESPACE_EXISTS = 11000, 26, 48
#: 85 IndexOptionsConflict, 86 IndexKeySpecsConflict, 67 CannotCreateIndex.
_CONFLICTS = frozenset({85, 86, 67})


class IndexMismatch(Exception):
    """Raised when an index differs from its definition or cannot be created."""


def indexes_of(layout: Layout) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return the definition of each index that a layout needs, by collection and name."""
    return {**_COMMON, COLLECTION: {**layout.indexes, **_COMMON[COLLECTION]}}


async def _create_messages(database: AsyncDatabase[Document], layout: Layout) -> None:
    """Create the collection of messages with its validator, if it does not exist.

    Without the right to do that, the collection comes into being with its first index, and has no
    validator.
    """
    if not layout.has_route:
        return
    try:
        await database.command(
            {"create": COLLECTION, "validator": VALIDATOR, "validationLevel": "moderate"}
        )
    except OperationFailure as error:
        if error.code != _NAMESPACE_EXISTS and error.code not in NOT_ALLOWED:
            raise


class Listing(NamedTuple):
    """The names of all existing indexes, and of the required ones that are missing or differ.

    A name consists of the collection, a dot, and the index. An index that is being built is not
    there yet, and is missing if it is required.
    """

    there: set[str]
    missing: list[str]
    different: list[str]

    def to_create(self, collection: str) -> list[str]:
        """Return the names of a collection's required indexes that are not as they must be."""
        prefix = f"{collection}."
        names = self.missing + self.different
        return [each.removeprefix(prefix) for each in names if each.startswith(prefix)]


async def list_indexes(
    database: AsyncDatabase[Document],
    layout: Layout,
    collections: Iterable[str] = (COLLECTION, READS),
) -> Listing:
    """Compare the indexes of these collections with their definitions. Changes nothing.

    Sends one command for each collection.
    """
    listing = Listing(set(), [], [])
    for collection in collections:
        found = await existing_indexes(database, collection)
        listing.there.update(f"{collection}.{name}" for name in found)
        for name, wanted in indexes_of(layout)[collection].items():
            if name not in found:
                listing.missing.append(f"{collection}.{name}")
            elif not _is_as_wanted(found[name], wanted):
                listing.different.append(f"{collection}.{name}")
    return listing


async def existing_indexes(
    database: AsyncDatabase[Document], collection: str
) -> dict[str, Document]:
    """Return the definitions of a collection's indexes by name, without those being built."""
    try:
        # The driver's method cannot tell which of them are being built.
        answer = await database.command({"listIndexes": collection, "includeIndexBuildInfo": True})
    except OperationFailure as error:
        if error.code != _NAMESPACE_NOT_FOUND:
            raise
        return {}
    # A collection has at most 64 indexes, which are always in the first batch.
    entries: Sequence[Document] = answer["cursor"]["firstBatch"]
    return {each["spec"]["name"]: each["spec"] for each in entries if "indexBuildInfo" not in each}


async def create_indexes(
    database: AsyncDatabase[Document], layout: Layout, listing: Listing
) -> None:
    """Create the indexes that a listing misses, and wait for those that another node is building.

    Sends one command for each collection that lacks any, so that the database reads the documents
    once. Raises `IndexMismatch` if an index differs, or if the documents do not allow it.
    """
    if f"{COLLECTION}._id_" not in listing.there:
        await _create_messages(database, layout)
    for collection, indexes in indexes_of(layout).items():
        names = listing.to_create(collection)
        if not names:
            continue
        try:
            await database[collection].create_indexes(
                [_model(each, indexes[each]) for each in names]
            )
        except OperationFailure as error:
            if error.code not in (*_CONFLICTS, _DUPLICATE_KEY):
                raise
            # One by one, to learn which of them cannot be created.
            for name in names:
                await _create(database[collection], name, indexes[name], layout)


async def ensure_indexes(database: AsyncDatabase[Document], layout: Layout) -> None:
    """Do what `create_indexes` does, after a look at what there is."""
    await create_indexes(database, layout, await list_indexes(database, layout))


def _model(name: str, wanted: Mapping[str, Any]) -> IndexModel:
    options = {option: value for option, value in wanted.items() if option != "key"}
    return IndexModel(list(wanted["key"].items()), name=name, **options)


async def drop_obsolete(database: AsyncDatabase[Document], names: Iterable[str]) -> None:
    """Drop the indexes of earlier versions that are in `names`, the existing indexes."""
    there = set(names)
    for collection, obsolete in OBSOLETE.items():
        for name in obsolete:
            if f"{collection}.{name}" in there:
                try:
                    await database[collection].drop_index(name)
                except OperationFailure as error:
                    if error.code != 27:  # IndexNotFound: another node was faster.
                        raise


def _is_as_wanted(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    # The order of a key's fields matters, but a comparison of dicts ignores it.
    has_key = list(found["key"].items()) == list(wanted["key"].items())
    return has_key and meaning_of(found) == wanted


async def _create(
    collection: AsyncCollection[Document], name: str, wanted: Mapping[str, Any], layout: Layout
) -> None:
    try:
        await collection.create_indexes([_model(name, wanted)])
    except OperationFailure as error:
        if error.code == _DUPLICATE_KEY:
            reason = await describe_duplicates(collection, layout)
            raise IndexMismatch(
                f"the index {name!r} of {collection.full_name} cannot be created: {reason}"
            ) from error
        if error.code not in _CONFLICTS:
            raise
        found = await _conflicting(collection, name, wanted)
        raise IndexMismatch(
            f"the index {found.get('name', name)!r} of {collection.full_name} is "
            f"{meaning_of(found)}, but must be {dict(wanted)}; drop it with "
            f"db.{collection.name}.dropIndex({found.get('name', name)!r}) and start again"
        ) from error


async def describe_duplicates(collection: AsyncCollection[Document], layout: Layout) -> str:
    """Return one line with the messages that share an idempotency key, and what to do.

    Returns an empty string if there are none.
    """
    advice = 'remove the key from all but the first; see "Duplicate keys" in docs/database.md'
    key = [f"${field}" for field in layout.indexes[layout.key_index]["key"]]
    pipeline: list[Document] = [
        {"$match": {"key.hash": _EXISTS}},
        {"$group": {"_id": key, "ids": {"$push": "$_id"}}},
        {"$match": {"ids.1": _EXISTS}},
        {"$group": {"_id": None, "keys": {"$sum": 1}, "ids": {"$first": "$ids"}}},
    ]
    try:
        with pymongo.timeout(_LOOK_S):
            found = await aggregate(collection, pipeline)
    except PyMongoError:
        return f"several messages have the same idempotency key; {advice}"
    if not found:
        return ""
    keys, ids = found[0]["keys"], sorted(map(str, found[0]["ids"]))
    named = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
    return f"{keys} idempotency key(s) belong to several messages each ({named}); {advice}"


async def _conflicting(
    collection: AsyncCollection[Document], name: str, wanted: Mapping[str, Any]
) -> Mapping[str, Any]:
    for found, index in (await collection.index_information()).items():
        if found == name or dict(index["key"]) == wanted["key"]:
            return {**index, "name": found, "key": dict(index["key"])}
    return {}


def meaning_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an index that change its behavior."""
    return {part: index[part] for part in _MEANING if part in index}
