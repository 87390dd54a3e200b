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

from collections.abc import Mapping
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from workers.store.driver import Document

COLLECTION = "messages"
READS = "reads"
INBOX_INDEX = "unread_by_inbox"
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
        INBOX_INDEX: {
            "key": {"username": 1, "_id": 1},
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


class IndexMismatch(Exception):
    """Raised at start when an index of ours exists and is not what it must be."""


async def ensure_indexes(database: AsyncDatabase[Document]) -> None:
    """Make the indexes that are missing. Raises `IndexMismatch` for one that differs."""
    for collection, indexes in INDEXES.items():
        for name, wanted in indexes.items():
            await _ensure(database[collection], name, wanted)


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
        # 85 IndexOptionsConflict, 86 IndexKeySpecsConflict, 67 CannotCreateIndex.
        if error.code not in (85, 86, 67):
            raise
        found = await _conflicting(collection, name, wanted)
        raise IndexMismatch(
            f"the index {found.get('name', name)!r} of {collection.full_name} is "
            f"{meaning_of(found)}, but must be {dict(wanted)}; drop it with "
            f"db.{collection.name}.dropIndex({found.get('name', name)!r}) and start again"
        ) from error


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
