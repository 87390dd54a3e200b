"""The emulated router keeps MongoDB's rules for sharded collections."""

import asyncio
import time

import pytest
from bson.datetime_ms import DatetimeMS
from pymongo import AsyncMongoClient, InsertOne, MongoClient, UpdateMany, UpdateOne
from pymongo.errors import ConfigurationError, OperationFailure

from tests.mongos.conftest import OpenRouter
from tests.mongos.router import Router
from workers.store.driver import Document

Mongods = list[MongoClient[Document]]

#: A route that each of the two owns.
ROUTES = (0x0001, 0x1001)


def document(number: int, route: int = ROUTES[0], username: str = "bob") -> Document:
    return {"_id": f"m{number}", "route": route, "username": username, "n": number}


def both() -> list[Document]:
    return [document(0, ROUTES[0]), document(1, ROUTES[1], "eve")]


async def test_a_driver_takes_it_for_a_mongos(router: Router) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        hello = await client.admin.command("hello")
        assert hello["msg"] == "isdbgrid"
        assert "setName" not in hello
        assert client.topology_description.topology_type_name == "Sharded"


async def test_inserts_are_split_by_the_shard_key(
    router: Router, mongods: Mongods, database: str
) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        await client[database].messages.insert_many(both(), ordered=False)
        with pytest.raises(OperationFailure, match="no route in the document"):
            await client[database].messages.insert_one({"_id": "m2", "username": "bob"})
    stored = [[each["_id"] for each in each[database].messages.find()] for each in mongods]
    assert stored == [["m0"], ["m1"]]


async def test_statements_of_one_command_are_split(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        await messages.bulk_write([InsertOne(each) for each in both()], ordered=False)
        result = await messages.bulk_write(
            [
                UpdateMany({"route": ROUTES[0], "username": "bob"}, {"$set": {"x": 1}}),
                UpdateOne({"route": ROUTES[1], "username": "eve"}, {"$set": {"x": 2}}),
                UpdateOne(
                    {"route": ROUTES[1], "username": "amy"}, {"$set": {"_id": "m2"}}, upsert=True
                ),
            ],
            ordered=False,
        )
        assert (result.modified_count, result.upserted_ids) == (2, {2: "m2"})
        sent = router.statements[-3:]
        assert [each.reach.shards for each in sent] == [{0}, {1}, {1}]


@pytest.mark.parametrize(
    "query",
    [
        {"_id": "m0"},
        {"route": ROUTES[0]},
        {"username": "bob"},
        {"route": {"$in": [ROUTES[0]]}, "username": "bob"},
        {"route": ROUTES[0], "username": {"$in": ["bob"]}},
        {"$or": [{"route": ROUTES[0], "username": "bob"}]},
    ],
)
async def test_writes_without_the_shard_key_are_refused(
    router: Router, database: str, query: Document
) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        await messages.insert_many(both())
        for write in (messages.update_one, messages.update_many):
            with pytest.raises(OperationFailure, match="not targeted"):
                await write(query, {"$set": {"x": 1}})
        with pytest.raises(OperationFailure, match="not targeted"):
            await messages.delete_many(query)
        assert await messages.count_documents({"x": 1}) == 0
    assert all(len(each.reach.shards) == 2 for each in router.statements[-4:-1])


async def test_reads_merge_what_several_shards_have(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        await messages.insert_many([document(each, ROUTES[each % 2]) for each in range(300)])
        assert await messages.count_documents({}) == 300
        found = await messages.find({}, sort=[("n", -1)], limit=-3).to_list()
        assert [each["n"] for each in found] == [299, 298, 297]
        # One database shard, by a cursor.
        query = {"route": {"$in": [ROUTES[1]]}}
        assert len(await messages.find(query, batch_size=2).to_list()) == 150
        assert [len(each.reach.shards) for each in router.statements[-3:]] == [2, 2, 1]


async def test_orphans_are_seen_by_broadcast_writes_only(
    router: Router, mongods: Mongods, database: str
) -> None:
    mongods[0][database].messages.insert_one(document(0, ROUTES[1]))
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        assert await messages.count_documents({}) == 0
        assert await messages.find({"_id": "m0"}).to_list() == []
        targeted = {"route": ROUTES[1], "username": "bob"}
        assert (await messages.update_many(targeted, {"$set": {"x": 1}})).modified_count == 0
        router.refuses_broadcasts = False
        assert (await messages.update_many({"_id": "m0"}, {"$set": {"x": 1}})).modified_count == 1


async def test_a_cursor_belongs_to_its_router(open_router: OpenRouter, database: str) -> None:
    one, other = await open_router(), await open_router()
    async with AsyncMongoClient[Document](one.uri) as client:
        await client[database].messages.insert_many([document(each) for each in range(3)])
        command = {"find": "messages", "filter": {"route": ROUTES[0]}, "batchSize": 1}
        number = (await client[database].command(command))["cursor"]["id"]
        more = {"getMore": number, "collection": "messages", "batchSize": 1}
        async with AsyncMongoClient[Document](other.uri) as elsewhere:
            with pytest.raises(OperationFailure, match="not found"):
                await elsewhere[database].command(more)
        assert len((await client[database].command(more))["cursor"]["nextBatch"]) == 1


async def test_unique_indexes_begin_with_the_shard_key(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        with pytest.raises(OperationFailure, match="cannot create unique index"):
            await messages.create_index("key.hash", unique=True)
        keys = [("route", 1), ("username", 1), ("key.hash", 1)]
        await messages.create_index(keys, unique=True)


async def test_a_change_stream_merges_all_shards(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        await messages.insert_one(document(0))
        async with await messages.watch(max_await_time_ms=50) as stream:
            await messages.insert_many([document(each, ROUTES[each % 2]) for each in (1, 2, 3)])
            seen = [(await stream.next())["documentKey"]["_id"] for _ in range(3)]
            assert sorted(seen) == ["m1", "m2", "m3"]
            token = stream.resume_token
        await messages.insert_one(document(5, ROUTES[1]))
        async with await messages.watch(resume_after=token, max_await_time_ms=50) as stream:
            assert (await stream.next())["documentKey"]["_id"] == "m5"


async def test_a_late_copy_has_the_time_of_its_receipt(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri) as client:
        messages = client[database].messages
        await messages.insert_one(document(0))
        router.keeps = lambda command: "update" in command
        until = DatetimeMS(int(time.time() * 1000) + 1000)
        in_time = {"$expr": {"$lt": ["$$NOW", until]}}
        mine = {"route": ROUTES[0], "username": "bob", **in_time}
        await messages.update_many(mine, {"$inc": {"n": 1}})
        assert (await messages.update_many(mine, {"$inc": {"n": 1}})).modified_count == 1
        await asyncio.sleep(1.1)
        assert (await messages.update_many(mine, {"$inc": {"n": 1}})).modified_count == 0
        assert [each["nModified"] for each in await router.send_late()] == [1, 1, 0]


async def test_sessions_and_retryable_writes_work(router: Router, database: str) -> None:
    async with AsyncMongoClient[Document](router.uri, retryWrites=True) as client:
        try:
            async with client.start_session() as session:
                await client[database].messages.insert_many(both(), session=session)
        except ConfigurationError:
            pytest.fail("the router has no sessions")
        assert await client[database].messages.count_documents({}) == 2
