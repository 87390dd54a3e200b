"""How the emulated router carries out finds and aggregations.

A read of one database shard is passed on. For several, each shard returns what matches, and the
first one sorts, limits and groups all of that together: so real MongoDB code merges.
"""

import time
from collections.abc import Sequence

from bson.datetime_ms import DatetimeMS

from tests.mongos.backend import Backend
from tests.mongos.targeting import SHARDED, Reach, owned_by, reach_of_read
from tests.mongos.writing import Refused, with_time
from workers.store.driver import Document

#: The first of these stages needs what all database shards have found.
_MERGING = frozenset(("$sort", "$limit", "$group", "$count"))
#: What a part of a read has, besides what it reads.
_COMMON = ("$db", "lsid", "readConcern", "maxTimeMS", "hint")


class Reader:
    """Reads from the database shards that a read reaches, without orphans."""

    def __init__(self, shards: Sequence[Backend]) -> None:
        self._shards = shards

    def reach(self, name: str, command: Document) -> tuple[Reach, Document]:
        """Return what a find or an aggregation reaches, and its filter."""
        if name == "find":
            query = command.get("filter", {})
        else:
            first = (command["pipeline"] or [{}])[0]
            query = first.get("$match", {})
        return reach_of_read(command[name], query), query

    async def run(
        self, name: str, command: Document, reach: Reach
    ) -> tuple[Document, Backend | None]:
        """Return the reply, and the database shard that has the cursor if it is open."""
        if command["$db"] == "config":
            return self._metadata(command), None
        collection: str = command[name]
        if collection not in SHARDED:
            return await self._shards[0].run(command), self._shards[0]
        if name == "find":
            return await self._find(command, collection, reach)
        return await self._aggregate(command, collection, reach)

    async def _find(
        self, command: Document, collection: str, reach: Reach
    ) -> tuple[Document, Backend | None]:
        now = DatetimeMS(int(time.time() * 1000))
        query = with_time(command.get("filter", {}), now)
        if len(reach.shards) == 1:
            (number,) = reach.shards
            filtered = {**command, "filter": _and(query, owned_by(collection, number))}
            return await self._shards[number].run(filtered), self._shards[number]
        found: list[Document] = []
        for number in sorted(reach.shards):
            part = {"find": collection, "filter": _and(query, owned_by(collection, number))}
            part |= {field: command[field] for field in _COMMON if field in command}
            if "limit" in command:
                part |= {field: command[field] for field in ("sort", "limit") if field in command}
            first, documents = await self._shards[number].all_documents(part)
            if not first["ok"]:
                return first, None
            found += documents
        stages = [
            {f"${stage}": command[option]}
            for option, stage in (("sort", "sort"), ("limit", "limit"), ("projection", "project"))
            if command.get(option)
        ]
        return await self._merge(command, collection, found, stages), None

    async def _aggregate(
        self, command: Document, collection: str, reach: Reach
    ) -> tuple[Document, Backend | None]:
        pipeline = with_time(command["pipeline"], DatetimeMS(int(time.time() * 1000)))
        if len(reach.shards) == 1:
            (number,) = reach.shards
            filtered = {**command, "pipeline": _owned(pipeline, collection, number)}
            return await self._shards[number].run(filtered), self._shards[number]
        merging = [not _MERGING.isdisjoint(stage) for stage in pipeline]
        split = merging.index(True) if True in merging else len(pipeline)
        found: list[Document] = []
        for number in sorted(reach.shards):
            owned = _owned(pipeline[:split], collection, number)
            part: Document = {"aggregate": collection, "pipeline": owned, "cursor": {}}
            part |= {field: command[field] for field in _COMMON if field in command}
            first, documents = await self._shards[number].all_documents(part)
            if not first["ok"]:
                return first, None
            found += documents
        return await self._merge(command, collection, found, pipeline[split:]), None

    async def _merge(
        self, command: Document, collection: str, found: list[Document], stages: list[Document]
    ) -> Document:
        """Return a reply with everything, after the first database shard has merged it."""
        if found and stages:
            merging: Document = {
                "aggregate": 1,
                "pipeline": [{"$documents": {"$literal": found}}, *stages],
                "cursor": {},
                "$db": command["$db"],
            }
            first, found = await self._shards[0].all_documents(merging)
            if not first["ok"]:
                return first
        return _reply(f"{command['$db']}.{collection}", found)

    @staticmethod
    def _metadata(command: Document) -> Document:
        """Answer a look at the metadata of the cluster: how a collection is sharded."""
        if command.get("find") != "collections":
            raise Refused(59, "the emulated router has no other metadata")
        name = command.get("filter", {}).get("_id", "")
        key = SHARDED.get(name.partition(".")[2])
        entries = [{"_id": name, "key": key.pattern, "unique": False}] if key else []
        return _reply("config.collections", entries)


def _reply(namespace: str, documents: list[Document]) -> Document:
    return {"cursor": {"id": 0, "ns": namespace, "firstBatch": documents}, "ok": 1.0}


def _and(query: Document, owned: Document) -> Document:
    return {"$and": [query, owned]} if owned else query


def _owned(pipeline: list[Document], collection: str, number: int) -> list[Document]:
    """Return a pipeline that skips orphans.

    Its own filter is kept apart from that: the database might not use a partial index otherwise.
    """
    owned = owned_by(collection, number)
    if not owned:
        return pipeline
    assert "$match" in pipeline[0], "a pipeline begins with its filter"
    skipping: list[Document] = [{"$_internalInhibitOptimization": {}}, {"$match": owned}]
    return [pipeline[0], *skipping, *pipeline[1:]]
