"""A database as versions of the service left it that knew no schemas: documents and indexes."""

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import IndexModel
from pymongo.collection import Collection

_HAS = {"$exists": True}
#: The indexes of `messages`, with their options.
INDEXES: dict[str, tuple[list[tuple[str, int]], dict[str, Any]]] = {
    "inbox": (
        [("username", 1), ("_id", 1), ("unread", 1), ("expires_at", 1)],
        {"partialFilterExpression": {"unread": True}},
    ),
    "purge": ([("purge_at", 1)], {"expireAfterSeconds": 0}),
    "idempotency": (
        [("key.hash", 1)],
        {"unique": True, "partialFilterExpression": {"key.hash": _HAS}},
    ),
    "kept": (
        [("claim.at", 1), ("expires_at", 1)],
        {"partialFilterExpression": {"kept": True}},
    ),
    "leases": ([("lease.token", 1)], {"partialFilterExpression": {"lease.token": _HAS}}),
    "lease_ends": ([("lease.until", 1)], {"partialFilterExpression": {"lease.until": _HAS}}),
    "lost_leases": ([("lost_by", 1)], {"partialFilterExpression": {"lost_by": _HAS}}),
}


def create_indexes(messages: Collection[dict[str, Any]]) -> None:
    """Create the indexes, as the first node did."""
    messages.create_indexes(
        [IndexModel(keys, name=name, **options) for name, (keys, options) in INDEXES.items()]
    )


def ids(age_s: float = 0.0) -> Iterator[str]:
    """Yield ids as a process of an old node made them, from this long ago on."""
    first_ms = int((time.time() - age_s) * 1000)
    number = 0
    while True:
        yield f"{first_ms + number // 100:012x}{number % 100:04x}{secrets.token_hex(8)}"
        number += 1


def document(
    message_id: str, username: str, text: str, key: str = "", lifetime_s: int = 7200
) -> dict[str, Any]:
    """Return the document of an unread message, as an old node inserted it."""
    now = datetime.now(UTC)
    expires_at = now + timedelta(seconds=lifetime_s)
    fields: dict[str, Any] = {
        "_id": message_id,
        "username": username,
        "text": text,
        "created_at": now,
        "expires_at": expires_at,
        "purge_at": expires_at + timedelta(seconds=300),
        "unread": True,
    }
    if key:
        fields |= {"purge_at": None, "kept": True, "key": {"hash": key, "body": text}}
    return fields
