"""Checks a database for `chat doctor`, and reports a finding for each part. Changes nothing.

It does not open a store, since that would create the indexes.
"""

import time
from collections.abc import AsyncIterator
from typing import Any, Literal, NamedTuple, TypeAlias

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from workers.store.connection import explain_refusal, short_reason
from workers.store.driver import (
    BadConnectionString,
    Client,
    Document,
    Driver,
    close_client,
    hello,
    open_client,
)
from workers.store.schema import (
    COLLECTION,
    FLEET,
    INDEXES,
    KEY_INDEX,
    LEADER,
    OBSOLETE,
    describe_duplicates,
    list_indexes,
    meaning_of,
)

State: TypeAlias = Literal["ok", "warn", "fail"]

_OLDEST = (6, 0)
#: A larger difference between the clocks is reported as a warning, in seconds.
_OFFSET_S = 1.0


class Finding(NamedTuple):
    """The state of one part, and what to do if something is wrong."""

    what: str
    state: State
    detail: str


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
        yield Finding("database", "fail", f"{short_reason(error)}; {advice}")
    finally:
        await close_client(client)


async def _findings(client: Client, database: str, within_s: float) -> AsyncIterator[Finding]:
    with pymongo.timeout(within_s):
        server = await hello(client)
        version: str = (await client.admin.command("buildInfo"))["version"]
    yield _deployment(server, version)
    if "setName" not in server and server.get("msg") != "isdbgrid":
        return
    yield await _compatibility(client, version, within_s)
    with pymongo.timeout(within_s):
        began = time.perf_counter()
        # No message has this id, so nothing changes, but a majority confirms the write. The service
        # may not be allowed to delete messages.
        await client[database][COLLECTION].update_one({"_id": ""}, {"$set": {"unread": True}})
        ms = (time.perf_counter() - began) * 1000
    yield Finding("majority", "ok", f"confirms a write in {ms:.1f} ms")
    with pymongo.timeout(within_s):
        yield await _indexes(client[database])
        yield await _leader(client[database])
        yield await _clock(client)


def _deployment(server: Document, version: str) -> Finding:
    name = server.get("setName")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return Finding("database", "fail", f"MongoDB {version}: 6.0 or newer is needed")
    if server.get("msg") == "isdbgrid":
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


async def _indexes(database: AsyncDatabase[Document]) -> Finding:
    listing = await list_indexes(database)
    if listing.different:
        collection, _, name = listing.different[0].partition(".")
        found: Any = (await database[collection].index_information()).get(name, {})
        return Finding(
            "indexes",
            "fail",
            f"{name} is {meaning_of(found)}, but must be {dict(INDEXES[collection][name])}; drop "
            f'it with db.{collection}.dropIndex("{name}"), and the service creates it again',
        )
    wanted_count = sum(map(len, INDEXES.values()))
    if len(listing.missing) == wanted_count:
        return Finding(
            "indexes", "ok", f"none in {database.name} yet: the first start creates them"
        )
    if listing.missing:
        missing = ", ".join(listing.missing)
        if f"{COLLECTION}.{KEY_INDEX}" in listing.missing:
            duplicates = await describe_duplicates(database[COLLECTION])
            if duplicates:
                return Finding("indexes", "fail", f"missing: {missing}; {duplicates}")
        detail = f"missing: {missing}; a running service creates them within seconds"
        return Finding("indexes", "warn", detail)
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
