"""Which database shards a statement reaches, and why.

The rules are those of MongoDB's documentation for ranged and hashed shard keys, made stricter where
the real router sometimes does better: a statement is targeted only if nothing about the present
chunks is needed to see that.

- A read is targeted if it has equality, or `$in`, on the first field of the shard key. It reaches
  the owners of these values. (The chunks of `messages` are split between routes, never inside one.)
- A write statement is targeted if it has equality on the whole shard key. `$in` is not enough. Any
  other one goes to all database shards, without their filter of ownership, so it also changes
  orphans: copies that a database shard has of documents that another one owns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

from workers.store.driver import Document
from workers.store.schema import COLLECTION, READS

#: The number of database shards.
SHARDS = 2
_ALL = frozenset(range(SHARDS))
#: The bit of a route that decides which of the two owns it. So each owns 8 ranges of 4096 routes.
_OWNER_BIT = 12


class Reach(NamedTuple):
    """The database shards that a statement reaches. `why` explains it."""

    shards: frozenset[int]
    is_targeted: bool
    why: str


@dataclass(frozen=True)
class ShardKey:
    """How a collection is sharded. `owner` maps a value of the first field to a database shard."""

    fields: Sequence[str]
    owner: Callable[[Any], int]
    #: As in the metadata of the cluster.
    pattern: Document


def _owner_of_route(route: Any) -> int:
    return (int(route) >> _OWNER_BIT) & 1


def _owner_by_hash(value: Any) -> int:
    return crc32(str(value).encode()) & 1


#: The sharded collections. All others are on the first database shard.
SHARDED: Mapping[str, ShardKey] = {
    COLLECTION: ShardKey(("route", "username"), _owner_of_route, {"route": 1, "username": 1}),
    READS: ShardKey(("_id",), _owner_by_hash, {"_id": "hashed"}),
}


def owned_by(collection: str, shard: int) -> Document:
    """Return the filter of ownership of a database shard."""
    if collection != COLLECTION:
        return {}
    bits = "$bitsAllSet" if shard else "$bitsAllClear"
    return {"route": {bits: 1 << _OWNER_BIT}}


def reach_of_read(collection: str, query: Document) -> Reach:
    """Return what a find, an aggregation or a count with this filter reaches."""
    if (key := SHARDED.get(collection)) is None:
        return _unsharded()
    first = key.fields[0]
    values = _values(query, first)
    if values is None:
        return Reach(_ALL, False, f"no equality on {first}")
    return Reach(frozenset(map(key.owner, values)), True, f"{len(values)} values of {first}")


def reach_of_write(collection: str, query: Document) -> Reach:
    """Return what one statement of an update or a delete reaches."""
    if (key := SHARDED.get(collection)) is None:
        return _unsharded()
    for field in key.fields:
        if not _is_equality(_condition(query, field)):
            return Reach(_ALL, False, f"no equality on {field}")
    values = _values(query, key.fields[0])
    assert values is not None
    return Reach(frozenset(map(key.owner, values)), True, "equality on " + ", ".join(key.fields))


def reach_of_insert(collection: str, document: Document) -> Reach:
    """Return where a document is stored. The real router would take a missing field as null."""
    if (key := SHARDED.get(collection)) is None:
        return _unsharded()
    for field in key.fields:
        if field not in document:
            return Reach(_ALL, False, f"no {field} in the document")
    return Reach(frozenset((key.owner(document[key.fields[0]]),)), True, "the document's shard key")


def _unsharded() -> Reach:
    return Reach(frozenset((0,)), True, "not sharded")


_ABSENT = object()


def _condition(query: Document, field: str) -> Any:
    """Return the condition on a field, at the top or in a top-level `$and`."""
    if field in query:
        return query[field]
    for part in query.get("$and", ()):
        if (found := _condition(part, field)) is not _ABSENT:
            return found
    return _ABSENT


def _is_equality(condition: Any) -> bool:
    if condition is _ABSENT:
        return False
    return not isinstance(condition, dict) or "$eq" in condition


def _values(query: Document, field: str) -> list[Any] | None:
    """Return the values that a field may have, or None if the filter does not list them."""
    condition = _condition(query, field)
    if condition is _ABSENT:
        return None
    if not isinstance(condition, dict):
        return [condition]
    if "$eq" in condition:
        return [condition["$eq"]]
    return list(condition["$in"]) if "$in" in condition else None
