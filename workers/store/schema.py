"""How messages lie in MongoDB: the documents and the indexes, made and checked at start.

    {_id, username, text, created_at, expires_at, purge_at, unread: true}

A claim removes `unread` and adds `claim: {token, at, by}`; expiry unread removes `unread` and
adds `expired: true`. Only messages that carry `unread` are in the inbox index, so a read costs
what is unread, whatever the history. The TTL index frees what is past `purge_at`; no promise
rests on it.
"""

from collections.abc import Mapping
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure

from workers.store.driver import Document

COLLECTION = "messages"
INBOX_INDEX = "unread_by_inbox"
PURGE_INDEX = "purge"

INDEXES: Mapping[str, Mapping[str, Any]] = {
    INBOX_INDEX: {
        "key": {"username": 1, "_id": 1},
        "partialFilterExpression": {"unread": True},
    },
    PURGE_INDEX: {"key": {"purge_at": 1}, "expireAfterSeconds": 0},
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


async def ensure_indexes(messages: AsyncCollection[Document]) -> None:
    """Make the indexes that are missing. Raises `IndexMismatch` for one that differs."""
    for name, wanted in INDEXES.items():
        try:
            await messages.create_index(
                list(wanted["key"].items()),
                name=name,
                **{option: value for option, value in wanted.items() if option != "key"},
            )
        except OperationFailure as error:
            # 85 IndexOptionsConflict, 86 IndexKeySpecsConflict, 67 CannotCreateIndex.
            if error.code not in (85, 86, 67):
                raise
            found = await _conflicting(messages, name, wanted)
            raise IndexMismatch(
                f"the index {found.get('name', name)!r} of {messages.full_name} is "
                f"{_meaning(found)}, but must be {dict(wanted)}; drop it with "
                f"db.{messages.name}.dropIndex({found.get('name', name)!r}) and start again"
            ) from error


async def _conflicting(
    messages: AsyncCollection[Document], name: str, wanted: Mapping[str, Any]
) -> Mapping[str, Any]:
    for found, index in (await messages.index_information()).items():
        if found == name or dict(index["key"]) == wanted["key"]:
            return {**index, "name": found, "key": dict(index["key"])}
    return {}


def _meaning(index: Mapping[str, Any]) -> dict[str, Any]:
    return {part: index[part] for part in _MEANING if part in index}
