"""Whether the service may use a database through mongos: only with schema 2, sharded by route.

With any other shard key, a claim could reach a message on two database shards at once while the
balancer moves it, and mongos would have to ask all database shards for an inbox or for an id. A
collection that is not sharded at all lies on one database shard, and is fine.
"""

from collections.abc import Mapping
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from workers.store.driver import Document
from workers.store.driver_errors import NOT_ALLOWED
from workers.store.layout import Layout
from workers.store.schema import COLLECTION, existing_indexes

#: The shard key of `messages`.
SHARD_KEY: Mapping[str, int] = {"route": 1, "username": 1}
_NAMESPACE_NOT_FOUND = 26


def is_mongos(server: Document) -> bool:
    """Return whether a reply to `hello` is that of a mongos."""
    return server.get("msg") == "isdbgrid"


async def why_not_routed(database: AsyncDatabase[Document], layout: Layout) -> str | None:
    """Return why the service must not use a database through mongos, and what to do.

    Returns None if it may. Raises `pymongo.errors.PyMongoError` if the database does not answer.
    """
    if not layout.has_route:
        return (
            f"the database has schema version {layout.version}, whose messages mongos cannot find "
            "by their inbox: run `chat migrate` first (docs/upgrades.md)"
        )
    key = await _shard_key(database)
    if key is None or list(key.items()) == list(SHARD_KEY.items()):
        return None
    found = f"by {_shell(key)}" if key else f"without an index on {_shell(SHARD_KEY)}"
    return (
        f"the collection {database.name}.{COLLECTION} is sharded {found}, but its shard key must "
        f"be {_shell(SHARD_KEY)}: otherwise two readers can get the same message; see "
        "docs/sharding.md"
    )


async def _shard_key(database: AsyncDatabase[Document]) -> Mapping[str, Any] | None:
    """Return the shard key of the messages, or None if they are not sharded.

    A user who may not read it in the database `config` learns from the statistics whether the
    messages are sharded. A shard key needs an index, so there is one if it is the right one.
    Otherwise the result is empty.
    """
    name = f"{database.name}.{COLLECTION}"
    try:
        found = await database.client["config"]["collections"].find_one({"_id": name})
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
    else:
        is_sharded = (
            found is not None and not found.get("dropped") and not found.get("unsplittable")
        )
        return dict(found["key"]) if found is not None and is_sharded else None
    try:
        statistics = await database.command({"collStats": COLLECTION})
    except OperationFailure as error:
        if error.code != _NAMESPACE_NOT_FOUND:
            raise
        return None
    if not statistics.get("sharded"):
        return None
    for index in (await existing_indexes(database, COLLECTION)).values():
        is_full = "partialFilterExpression" not in index and not index.get("sparse")
        if is_full and list(index["key"].items())[: len(SHARD_KEY)] == list(SHARD_KEY.items()):
            return SHARD_KEY
    return {}


def _shell(key: Mapping[str, Any]) -> str:
    """Return a key as mongosh takes it."""
    return "{" + ", ".join(f"{field}: {direction!r}" for field, direction in key.items()) + "}"
