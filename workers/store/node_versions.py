"""Finds the nodes that run code which does not know a schema version.

Each node names its newest schema in the metadata of its connections (see `workers.store.driver`).
Those of versions without schemas are called `chat/PID`, later ones `chat/SCHEMA/PID`.
"""

import re
from typing import NamedTuple

from pymongo.errors import OperationFailure

from workers.store.driver import Client
from workers.store.driver_errors import NOT_ALLOWED

_NAME = re.compile(r"chat/(?:(\d+)/)?\d+")


class Nodes(NamedTuple):
    """The connected nodes that do not know a schema version, and how many others there are.

    Each is named by its host and its process. `old` is None if the user may not see connections.
    """

    old: list[str] | None
    others: int


async def find_nodes(client: Client, version: int) -> Nodes:
    """Look for nodes that do not know this schema version, among those connected to the primary.

    This process and other commands, such as `chat doctor`, count as nodes.
    """
    if (await client.admin.command("hello")).get("msg") == "isdbgrid":
        # A mongos sees only its own clients.
        return Nodes(None, 0)
    address = {"$split": [{"$ifNull": ["$client", ""]}, ":"]}
    named = {"app": "$appName", "host": {"$arrayElemAt": [address, 0]}}
    try:
        answer = await client.admin.command(
            {
                "aggregate": 1,
                "pipeline": [
                    {"$currentOp": {"allUsers": True, "idleConnections": True}},
                    {"$match": {"appName": {"$regex": "^chat/"}}},
                    {"$group": {"_id": named}},
                ],
                "cursor": {"batchSize": 100_000},
            }
        )
    except OperationFailure as error:
        if error.code not in NOT_ALLOWED:
            raise
        return Nodes(None, 0)
    old, others = [], 0
    for each in answer["cursor"]["firstBatch"]:
        match = _NAME.fullmatch(each["_id"]["app"])
        if match is None:
            continue
        if int(match[1] or 1) < version:
            host = each["_id"]["host"]
            # MongoDB knows no address of what is connected by a unix socket.
            host = "this machine" if not host or " " in host else host
            old.append(f"{host} (process {each['_id']['app'].rpartition('/')[2]})")
        else:
            others += 1
    return Nodes(sorted(old), others)
