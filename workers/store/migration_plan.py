"""What a migration would do, and what stands in its way: the dry run of `chat migrate`."""

from collections.abc import Collection
from typing import NamedTuple

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from workers.store.backfill import SHARE
from workers.store.driver import Client, Document, aggregate, hello
from workers.store.driver_errors import NOT_ALLOWED
from workers.store.guard import read_validator
from workers.store.layout import LAYOUTS
from workers.store.node_versions import find_nodes
from workers.store.schema import COLLECTION, FLEET, VALIDATOR, describe_duplicates, existing_indexes
from workers.store.schema_version import SCHEMA, find_layout

#: Longest time to count all messages, in seconds.
_COUNT_S = 120.0
#: Seconds for each message, measured with a million of them, MongoDB 6.0 and two busy cores: to
#: give it a route, with the wait for a majority; to look whether it has one; and to put it into an
#: index.
_FILL_S, _LOOK_S, _INDEX_S = 100e-6, 13e-6, 3e-6
#: What a migration waits for in any case, in seconds.
_LEAST_S = 15.0


class Plan(NamedTuple):
    """What a migration from `version` to `to` would do.

    `without_route` and `old_ids` count messages; None if that takes too long. `build` and `drop`
    name indexes. `is_guard_right` says whether the validator is as it must be, if the user may see
    it. `seconds` and `index_bytes` are estimates. `obstacles` are what would stop the migration,
    and `warnings` what it can do without.
    """

    version: int
    to: int
    messages: int
    without_route: int | None
    old_ids: int | None
    build: list[str]
    drop: list[str]
    is_guard_right: bool
    step: str
    seconds: float
    index_bytes: int | None
    obstacles: list[str]
    warnings: list[str]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        has_routes = self.to == 1 or self.without_route == 0
        is_left = self.build or self.drop or self.step or not (has_routes and self.is_guard_right)
        return self.version == self.to and not is_left


async def make_plan(client: Client, name: str, to: int, *, are_nodes_new: bool) -> Plan:
    """Look at a database. Changes nothing.

    Raises `UnknownSchema`, or `pymongo.errors.PyMongoError`.
    """
    database = client[name]
    messages = database[COLLECTION]
    await hello(client)
    layout = await find_layout(database) or LAYOUTS[to]
    names = await existing_indexes(database, COLLECTION)
    total = await messages.estimated_document_count()
    without_route, old_ids = await _count(database)
    record = await database[FLEET].find_one({"_id": SCHEMA}) or {}
    obstacles, warnings = await _obstacles(client, database, to, are_nodes_new=are_nodes_new)
    build = [each for each in LAYOUTS[to].indexes if each not in names]
    seconds = _LEAST_S + len(build) * total * _INDEX_S
    if to > 1:
        lacking = total if without_route is None else without_route
        seconds += (lacking * _FILL_S + 2 * total * _LOOK_S) / SHARE
    return Plan(
        version=layout.version,
        to=to,
        messages=total,
        without_route=without_route,
        old_ids=old_ids,
        build=build,
        drop=[each for each in LAYOUTS[3 - to].indexes if each in names],
        is_guard_right=await read_validator(database) in (None, VALIDATOR if to > 1 else {}),
        step=record.get("migration", {}).get("step", ""),
        seconds=seconds,
        index_bytes=await _index_bytes(database, LAYOUTS[3 - to].indexes.keys()),
        obstacles=obstacles,
        warnings=warnings,
    )


async def _count(database: AsyncDatabase[Document]) -> tuple[int | None, int | None]:
    """Return how many messages have no route, and how many an id of the old form."""
    lacks = {"$eq": [{"$type": "$route"}, "missing"]}
    # The first digit of the sequence number is 8 or more in an id with a route.
    is_old = {"$lt": [{"$substrBytes": ["$_id", 12, 1]}, "8"]}
    group = {
        "_id": None,
        "lacking": {"$sum": {"$cond": [lacks, 1, 0]}},
        "old": {"$sum": {"$cond": [is_old, 1, 0]}},
    }
    try:
        with pymongo.timeout(_COUNT_S):
            found = await aggregate(database[COLLECTION], [{"$group": group}])
    except PyMongoError as error:
        if not error.timeout:
            raise
        return None, None
    return (found[0]["lacking"], found[0]["old"]) if found else (0, 0)


async def _index_bytes(database: AsyncDatabase[Document], like: Collection[str]) -> int | None:
    """Return the size of these indexes, which is about that of the new ones; None if unknown."""
    try:
        stats = await database.command({"collStats": COLLECTION})
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return None
    sizes: dict[str, int] = stats.get("indexSizes", {})
    return sum(size for name, size in sizes.items() if name in like)


async def _obstacles(
    client: Client, database: AsyncDatabase[Document], to: int, *, are_nodes_new: bool
) -> tuple[list[str], list[str]]:
    """Return what would stop a migration, and what it can do without."""
    obstacles: list[str] = []
    warnings: list[str] = []
    may_set_validator = await _may(client, database, "collMod")
    if to == 1:
        if duplicates := await describe_duplicates(database[COLLECTION], LAYOUTS[1]):
            obstacles.append(
                f"in schema 1, a key belongs to all inboxes, but {duplicates}. Or wait until the "
                "database has deleted these messages, receipt_keep_s after their end"
            )
        if await read_validator(database) not in ({}, None) and not may_set_validator:
            obstacles.append("this user may not remove the validator (the action collMod)")
        return obstacles, warnings
    nodes = await find_nodes(client, to)
    if nodes.old:
        obstacles.append(f"these nodes run an older version: {', '.join(nodes.old)}")
    elif nodes.old is None and not are_nodes_new:
        obstacles.append(
            "this user may not see which nodes are connected (the action inprog): make sure that "
            "none runs an older version, and add --no-old-nodes"
        )
    if await read_validator(database) != VALIDATOR and not may_set_validator:
        warnings.append(
            "this user may not set a validator (the action collMod), so nothing keeps an older "
            "version from storing messages that no new node finds"
        )
    return obstacles, warnings


async def _may(client: Client, database: AsyncDatabase[Document], action: str) -> bool:
    """Return whether the user may do something with the messages, as far as it is known."""
    answer = await client.admin.command({"connectionStatus": 1, "showPrivileges": True})
    info = answer["authInfo"]
    if not info["authenticatedUsers"]:
        return True
    return any(
        action in each["actions"]
        and each["resource"].get("db") in ("", database.name)
        and each["resource"].get("collection") in ("", COLLECTION)
        for each in info["authenticatedUserPrivileges"]
    )
