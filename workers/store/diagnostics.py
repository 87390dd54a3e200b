"""Checks a database for `chat doctor`, and reports a finding for each part. Changes nothing.

It does not open a store, since that would create the indexes.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError
from pymongo.read_concern import ReadConcern

from workers.store.driver import (
    BadConnectionString,
    Client,
    Document,
    Driver,
    close_client,
    hello,
    open_client,
)
from workers.store.driver_errors import explain_refusal, short_reason
from workers.store.finding import Finding
from workers.store.guard import has_unrouted, read_validator
from workers.store.layout import LAYOUT_1, NEWEST, Layout
from workers.store.replica_set import check_members, list_silent
from workers.store.schema import (
    COLLECTION,
    FLEET,
    HISTORY,
    LEADER,
    OBSOLETE,
    VALIDATOR,
    describe_duplicates,
    existing_indexes,
    indexes_of,
    list_indexes,
    meaning_of,
)
from workers.store.schema_version import UnknownSchema, find_layout
from workers.store.sharding import is_mongos, why_not_routed

_OLDEST = (6, 0)
#: A larger difference between the clocks is reported as a warning, in seconds.
_OFFSET_S = 1.0


async def examine(
    uri: str, driver: Driver, database: str, within_s: float
) -> AsyncIterator[Finding]:
    """Yield a finding for each part of a database. Each check takes at most so many seconds.

    Stops at a finding that makes further checks impossible. Raises nothing.
    """
    try:
        client = open_client(driver, uri)
    except BadConnectionString as error:
        yield Finding("database", "fail", f"{error}; correct --mongo-uri (CHAT_MONGO_URI)")
        return
    try:
        async for finding in _findings(client, database, within_s):
            yield finding
    except OperationFailure as error:
        yield Finding("database", "fail", explain_refusal(error))
    except PyMongoError as error:
        advice = "is it running, is --mongo-uri correct, and does the replica set have a primary?"
        detail = f"{short_reason(error)}; {_silent_servers(client)}{advice}"
        yield Finding("database", "fail", detail)
    finally:
        await close_client(client)


async def _findings(client: Client, database: str, within_s: float) -> AsyncIterator[Finding]:
    with pymongo.timeout(within_s):
        server = await hello(client)
        version: str = (await client.admin.command("buildInfo"))["version"]
    yield _deployment(server, version)
    if "setName" not in server and not is_mongos(server):
        return
    yield await _compatibility(client, version, within_s)
    for finding in await check_members(client, server, within_s):
        yield finding
    majority = await _majority(client, database, within_s)
    yield majority
    if majority.state == "fail":
        return
    with pymongo.timeout(within_s):
        schema, layout = await _schema(client[database], server)
        yield schema
        if layout is None:
            return
        if not is_mongos(server) and (unrouted := await _routes(client[database], layout)):
            yield unrouted
        yield await _indexes(client[database], layout)
        yield await _leader(client[database])
        yield await _history(client[database])
        yield await _clock(client)


async def _majority(client: Client, database: str, within_s: float) -> Finding:
    began = time.perf_counter()
    try:
        with pymongo.timeout(within_s):
            # No message has this id, so nothing changes. The service may not be allowed to delete.
            messages = client[database][COLLECTION]
            nobody = {**NEWEST.inbox(""), "_id": ""}
            await messages.update_one(nobody, {"$set": {"unread": True}})
            # A write that changes nothing waits for nothing. For this read, the primary writes to
            # its oplog, and waits until a majority has that.
            now = messages.with_options(read_concern=ReadConcern("linearizable"))
            await now.find_one(nobody, projection={"_id": 1})
    except PyMongoError as error:
        # Without a primary, or without the right, there is nothing to say about a majority.
        if isinstance(error, ServerSelectionTimeoutError) or not error.timeout:
            raise
        detail = f"does not confirm a write within {within_s:g} s"
        if silent := await list_silent(client, within_s):
            detail += f"; the primary does not reach {silent}"
        advice = "start these members, or look for what slows them down"
        return Finding("majority", "fail", f"{detail}; {advice}")
    ms = (time.perf_counter() - began) * 1000
    return Finding("majority", "ok", f"confirms a write in {ms:.1f} ms")


def _silent_servers(client: Client) -> str:
    """Return, for a message, which of several servers do not answer."""
    servers = client.topology_description.server_descriptions().values()
    silent = [f"{each.address[0]}:{each.address[1]}" for each in servers if each.error]
    if len(servers) < 2 or not silent:
        return ""
    return f"{len(silent)} of {len(servers)} members do not answer ({', '.join(silent)}); "


def _deployment(server: Document, version: str) -> Finding:
    name = server.get("setName")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return Finding("database", "fail", f"MongoDB {version}: 6.0 or newer is needed")
    if is_mongos(server):
        return Finding("database", "ok", f"MongoDB {version}, through mongos")
    if name is None:
        return Finding(
            "database",
            "fail",
            "a single mongod without a replica set: start it with --replSet and run "
            "rs.initiate() once",
        )
    members = len(server.get("hosts", ()))
    detail = f"MongoDB {version}, primary of replica set {name}, {members} member(s)"
    return Finding("database", "ok", detail)


async def _compatibility(client: Client, version: str, within_s: float) -> Finding:
    try:
        with pymongo.timeout(within_s):
            answer = await client.admin.command(
                {"getParameter": 1, "featureCompatibilityVersion": 1}
            )
    except OperationFailure:
        return Finding("compatibility", "ok", "this user is not allowed to see it")
    level: str = answer["featureCompatibilityVersion"]["version"]
    if version.startswith(level + "."):
        return Finding("compatibility", "ok", f"{level}, as the server")
    return Finding(
        "compatibility",
        "warn",
        f"{level}, but the server is {version}: to make an upgrade permanent, run "
        "db.adminCommand({setFeatureCompatibilityVersion: ...})",
    )


async def _schema(
    database: AsyncDatabase[Document], server: Document
) -> tuple[Finding, Layout | None]:
    """Return a finding about the schema version, and the layout that belongs to it if it is known.

    `server` is the reply to `hello`.
    """
    try:
        found = await find_layout(database)
    except UnknownSchema as unknown:
        return Finding("schema", "fail", str(unknown)), None
    layout = found or NEWEST
    if is_mongos(server) and (reason := await why_not_routed(database, layout)):
        return Finding("schema", "fail", reason), layout
    if found is None:
        return Finding("schema", "ok", f"none yet: the first start writes {layout.version}"), layout
    if layout is not NEWEST:
        detail = (
            f"version {layout.version}; `chat migrate` changes it to {NEWEST.version} while the "
            "service runs, once all nodes have this version of the service"
        )
        return Finding("schema", "ok", detail), layout
    return Finding("schema", "ok", f"version {layout.version}, the newest"), layout


async def _routes(database: AsyncDatabase[Document], layout: Layout) -> Finding | None:
    """Return a finding about messages without a route, if there are or could be any, or None."""
    there = await existing_indexes(database, COLLECTION)
    if layout.inbox_index in there and await has_unrouted(database, layout):
        return Finding(
            "routes",
            "fail",
            "there are unread messages without a route, which no node finds: a backup of schema 1 "
            "was restored, or a node of an earlier version has run; `chat migrate --apply` gives "
            "them their route",
        )
    if layout.has_route and there and await read_validator(database) not in (VALIDATOR, None):
        return Finding(
            "routes",
            "warn",
            "the database accepts messages without a route, which no node would find; "
            "`chat migrate --apply` makes it refuse those of earlier versions",
        )
    return None


async def _indexes(database: AsyncDatabase[Document], layout: Layout) -> Finding:
    indexes = indexes_of(layout)
    listing = await list_indexes(database, layout)
    if listing.different:
        collection, _, name = listing.different[0].partition(".")
        found: Any = (await database[collection].index_information()).get(name, {})
        return Finding(
            "indexes",
            "fail",
            f"{name} is {meaning_of(found)}, but must be {dict(indexes[collection][name])}; drop "
            f'it with db.{collection}.dropIndex("{name}"), and the service creates it again',
        )
    wanted_count = sum(map(len, indexes.values()))
    if len(listing.missing) == wanted_count:
        return Finding(
            "indexes", "ok", f"none in {database.name} yet: the first start creates them"
        )
    if listing.missing:
        missing = ", ".join(listing.missing)
        if f"{COLLECTION}.{layout.key_index}" in listing.missing:
            duplicates = await describe_duplicates(database[COLLECTION], layout)
            if duplicates:
                return Finding("indexes", "fail", f"missing: {missing}; {duplicates}")
        detail = f"missing: {missing}; a running service creates them within seconds"
        return Finding("indexes", "warn", detail)
    # Those of schema 2 do no harm in schema 1, and a migration is about to use them.
    refusing = [each for each in LAYOUT_1.indexes if f"{COLLECTION}.{each}" in listing.there]
    if layout is NEWEST and refusing:
        return Finding(
            "indexes",
            "warn",
            f"all {wanted_count} exist, but also {', '.join(refusing)} of schema 1, so posts "
            "get 503 if another inbox has used their key: stop all nodes of older versions, then "
            "run `chat migrate --apply`",
        )
    obsolete = [
        f"{collection}.{name}"
        for collection, names in OBSOLETE.items()
        for name in names
        if f"{collection}.{name}" in listing.there
    ]
    if obsolete:
        detail = f"all {wanted_count} exist, and some of an earlier version: {', '.join(obsolete)}"
        return Finding(
            "indexes", "ok", f"{detail}; the service drops them some time after its start"
        )
    return Finding("indexes", "ok", f"all {wanted_count} exist and are correct")


async def _leader(database: AsyncDatabase[Document]) -> Finding:
    try:
        leader = await database[FLEET].find_one(
            {"_id": LEADER}, {"node": 1, "leads": {"$gt": ["$until", "$$NOW"]}}
        )
    except OperationFailure:
        detail = "this user may not see the collection fleet, so each node does the leader's work"
        return Finding("leader", "warn", detail)
    if leader is None or not leader["leads"]:
        return Finding("leader", "ok", "none: no node uses this database now")
    return Finding("leader", "ok", f"{leader['node']} leads the nodes on this database")


async def _history(database: AsyncDatabase[Document]) -> Finding:
    try:
        nodes = await database[HISTORY].distinct("node")
    except OperationFailure:
        detail = (
            "this user may not see the collection history, so dashboards forget the last day at a "
            "restart"
        )
        return Finding("history", "warn", detail)
    return Finding("history", "ok", f"the last day of {len(nodes)} node(s) is stored")


async def _clock(client: Client) -> Finding:
    sent = time.time()
    server = await hello(client)
    middle = (sent + time.time()) / 2
    offset = int(server["localTime"]) / 1000 - middle
    if abs(offset) > _OFFSET_S:
        return Finding(
            "clock", "warn", f"the database's clock differs by {offset:+.1f} s: check NTP"
        )
    return Finding("clock", "ok", f"the database's clock differs by {offset * 1000:+.0f} ms")
