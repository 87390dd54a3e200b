"""How messages lie in MongoDB: the documents and the indexes, made and checked at start.

In `messages`:

    {_id, username, text, created_at, expires_at, purge_at, unread: true}

A claim removes `unread` and adds `claim: {token, at, by}`; expiry unread removes `unread` and
adds `expired`, the sweep that marked it. A lease removes `unread` and adds
`lease: {token, at, by, until}`; when it ends, `until` goes and the message is claimed, unread or
expired. `lost_by` has the tokens of earlier leases that ran out. Only messages that carry `unread`
are in the inbox index, so a read costs what is unread, whatever the history. The TTL index frees
what is past `purge_at`; no promise rests on it.

A message with a receipt or an idempotency key has `receipts: [hash]`, `key: {hash, body}` and
`kept: true`, and its `purge_at` is null. Some time after its end it loses `text` and `kept` and
gets the `purge_at` until which its sender can ask for it. `revoked` says when it was taken back.

In `reads`, what reads with an idempotency key were given:

    {_id: hash, username, ids, until, more, given: true}
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pymongo
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from workers.store.driver import Document, aggregate

COLLECTION = "messages"
READS = "reads"
INBOX_INDEX = "inbox"
PURGE_INDEX = "purge"
KEY_INDEX = "idempotency"
KEPT_INDEX = "kept"
LEASE_INDEX = "leases"
LEASE_END_INDEX = "lease_ends"
LOST_INDEX = "lost_leases"

_EXISTS = {"$exists": True}

#: By collection and name.
INDEXES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    COLLECTION: {
        # Holds all that a count asks for, so that a count looks at no document. Not even `unread`
        # can be left out: a filter does not tell the planner that its condition holds.
        INBOX_INDEX: {
            "key": {"username": 1, "_id": 1, "unread": 1, "expires_at": 1},
            "partialFilterExpression": {"unread": True},
        },
        PURGE_INDEX: {"key": {"purge_at": 1}, "expireAfterSeconds": 0},
        KEY_INDEX: {
            "key": {"key.hash": 1},
            "unique": True,
            "partialFilterExpression": {"key.hash": _EXISTS},
        },
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

#: Indexes that earlier versions used and this one does not, by collection.
OBSOLETE: Mapping[str, Sequence[str]] = {COLLECTION: ("unread_by_inbox",)}

#: The parts of an index's description that change what it does.
_MEANING = (
    "key",
    "partialFilterExpression",
    "expireAfterSeconds",
    "unique",
    "sparse",
    "collation",
    "hidden",
)


#: Longest time to look for messages that stand in the way of the unique index, in seconds, and how
#: many of them an error names.
_LOOK_S, _NAMED = 10.0, 5

_DUPLICATE_KEY = 11000
#: 85 IndexOptionsConflict, 86 IndexKeySpecsConflict, 67 CannotCreateIndex.
_CONFLICTS = frozenset({85, 86, 67})


class IndexMismatch(Exception):
    """Raised when an index of ours exists and is not what it must be, or cannot be made."""


async def ensure_indexes(database: AsyncDatabase[Document]) -> None:
    """Make the indexes that are missing, and wait for those that somebody else is making.

    Raises `IndexMismatch` for an index that differs, or that the documents do not allow.
    """
    for collection, indexes in INDEXES.items():
        for name, wanted in indexes.items():
            await _ensure(database[collection], name, wanted)


async def drop_obsolete(database: AsyncDatabase[Document], names: Iterable[str]) -> None:
    """Drop the indexes of earlier versions; `names` are those that are there."""
    there = set(names)
    for collection, obsolete in OBSOLETE.items():
        for name in obsolete:
            if f"{collection}.{name}" in there:
                try:
                    await database[collection].drop_index(name)
                except OperationFailure as error:
                    if error.code != 27:  # IndexNotFound: another node was faster.
                        raise


class Listing(NamedTuple):
    """The indexes of a database: the names of all, and of ours those that are missing or differ.

    A name is that of the collection, a dot, and that of the index.
    """

    there: set[str]
    missing: list[str]
    different: list[str]


async def list_indexes(database: AsyncDatabase[Document]) -> Listing:
    """Compare the indexes with what they must be. Changes nothing."""
    listing = Listing(set(), [], [])
    for collection, indexes in INDEXES.items():
        found: Mapping[str, Any] = await database[collection].index_information()
        listing.there.update(f"{collection}.{name}" for name in found)
        for name, wanted in indexes.items():
            if name not in found:
                listing.missing.append(f"{collection}.{name}")
            elif not _is_as_wanted(found[name], wanted):
                listing.different.append(f"{collection}.{name}")
    return listing


def _is_as_wanted(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    # The order of a key's fields matters, which a comparison of dicts leaves out.
    has_key = list(found["key"]) == list(wanted["key"].items())
    return has_key and meaning_of({**found, "key": wanted["key"]}) == wanted


async def _ensure(
    collection: AsyncCollection[Document], name: str, wanted: Mapping[str, Any]
) -> None:
    try:
        await collection.create_index(
            list(wanted["key"].items()),
            name=name,
            **{option: value for option, value in wanted.items() if option != "key"},
        )
    except OperationFailure as error:
        if error.code == _DUPLICATE_KEY:
            reason = await describe_duplicates(collection)
            raise IndexMismatch(
                f"the index {name!r} of {collection.full_name} cannot be made: {reason}"
            ) from error
        if error.code not in _CONFLICTS:
            raise
        found = await _conflicting(collection, name, wanted)
        raise IndexMismatch(
            f"the index {found.get('name', name)!r} of {collection.full_name} is "
            f"{meaning_of(found)}, but must be {dict(wanted)}; drop it with "
            f"db.{collection.name}.dropIndex({found.get('name', name)!r}) and start again"
        ) from error


async def describe_duplicates(collection: AsyncCollection[Document]) -> str:
    """Say in one line which messages have one idempotency key, and what to do about that.

    Empty where no two have.
    """
    advice = "remove the key from all but the first, as docs/operations.md says: Duplicate keys"
    pipeline: list[Document] = [
        {"$match": {"key.hash": _EXISTS}},
        {"$group": {"_id": "$key.hash", "ids": {"$push": "$_id"}}},
        {"$match": {"ids.1": _EXISTS}},
        {"$group": {"_id": None, "keys": {"$sum": 1}, "ids": {"$first": "$ids"}}},
    ]
    try:
        with pymongo.timeout(_LOOK_S):
            found = await aggregate(collection, pipeline)
    except PyMongoError:
        return f"several messages have one idempotency key; {advice}"
    if not found:
        return ""
    keys, ids = found[0]["keys"], sorted(map(str, found[0]["ids"]))
    named = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
    return f"{keys} idempotency key(s) have several messages each ({named}); {advice}"


async def _conflicting(
    collection: AsyncCollection[Document], name: str, wanted: Mapping[str, Any]
) -> Mapping[str, Any]:
    for found, index in (await collection.index_information()).items():
        if found == name or dict(index["key"]) == wanted["key"]:
            return {**index, "name": found, "key": dict(index["key"])}
    return {}


def meaning_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an index's description that change what it does."""
    return {part: index[part] for part in _MEANING if part in index}
