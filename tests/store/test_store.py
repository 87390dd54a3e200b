"""The store beyond its interface: its documents in MongoDB, and the cost of its operations."""

import asyncio
import time
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tests.conftest import DRIVERS, OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.errors import Rejected
from workers.store.mongo import MongoStore


async def test_one_message_that_cannot_be_stored_fails_alone(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = [new_post(), new_post(text="\ud800"), new_post(text="x" * (17 << 20)), new_post()]
    errors = await store.insert(posts)
    assert [type(error) for error in errors] == [type(None), Rejected, Rejected, type(None)]
    assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}


async def test_one_message_that_the_database_refuses_fails_alone(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    mongo.database.command("collMod", mongo.name, validator={"text": {"$ne": "poison"}})
    posts = [new_post(), new_post(text="poison"), new_post()]
    errors = await store.insert(posts)
    assert [type(error) for error in errors] == [type(None), Rejected, type(None)]
    assert await store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}


async def test_a_claim_records_its_node_and_is_deleted_earlier(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    post = new_post(timeout_s=86400)
    await store.insert([post])
    before = mongo.find_one()
    assert before is not None
    assert before["unread"] is True
    assert (before["expires_at"] - before["created_at"]).total_seconds() == 86400
    assert (before["purge_at"] - before["expires_at"]).total_seconds() == 200
    now_ms = clock.now_ms()
    await store.claim(new_claim(["bob"], [post.id], now_ms))
    after = mongo.find_one()
    assert after is not None
    assert "unread" not in after
    assert after["claim"]["by"] == "test"
    # Read a day before its expiry, it is deleted without waiting for that day.
    assert (after["purge_at"] - after["claim"]["at"]).total_seconds() == 100


async def test_expired_messages_are_marked_once_over_all_nodes(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    expired = [new_post(timeout_s=5, age_s=10) for _ in range(6)]
    await one.insert([*expired, new_post(), new_post(timeout_s=5, age_s=5.1)])
    await one.claim(new_claim(["bob"], [expired[0].id], expired[0].expires_ms))
    marked = await asyncio.gather(one.expire(clock.now_ms()), other.expire(clock.now_ms()))
    assert sum(marked) == 5
    assert mongo.count_documents({"expired": {"$exists": True}}) == 5
    assert mongo.count_documents({"unread": True}) == 2
    assert await one.expire(clock.now_ms() + 2000) == 1


async def test_reads_and_claims_use_the_indexes(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, mongo: Messages
) -> None:
    history = [new_post() for _ in range(300)]
    await store.insert(history)
    await store.claim(new_claim(["bob"], [post.id for post in history], clock.now_ms()))
    await store.insert([new_post(), new_post("eve")])
    database = mongo.database
    database.command("profile", 2)
    found = await store.find_unread(["bob", "eve"], 100, clock.now_ms())
    ids = [each.message.id for messages in found.messages.values() for each in messages]
    await store.claim(new_claim(["bob", "eve"], ids, clock.now_ms()))
    await store.expire(clock.now_ms() + 200_000)
    database.command("profile", 0)
    profile = database["system.profile"].find({"ns": mongo.full_name}).to_list()
    work = {entry["op"]: entry for entry in profile if "planSummary" in entry}
    assert (
        work["query"]["planSummary"]
        == "IXSCAN { route: 1, username: 1, _id: 1, unread: 1, expires_at: 1 }"
    )
    assert work["query"]["docsExamined"] == 2
    updates = [entry for entry in profile if entry["op"] == "update"]
    assert [entry["planSummary"] for entry in updates] == [
        "IXSCAN { _id: 1 }",
        "IXSCAN { purge_at: 1 }",
        "IXSCAN { claim.at: 1, expires_at: 1 }",
    ]
    assert updates[0]["docsExamined"] == 2


async def test_a_count_reads_no_document_and_few_index_entries(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    mongo: Messages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.store.mongo.COUNT_MAX", 10)
    sizes = {"a": 3, "b": 10, "c": 40, "d": 0, "e": 11, "f": 2, "g": 25, "h": 1}
    await store.insert([new_post(name) for name, size in sizes.items() for _ in range(size)])
    await store.insert([new_post("f", timeout_s=1, age_s=60) for _ in range(5)])
    database = mongo.database
    database.command("profile", 2)
    counts = await store.count_unread(list(sizes), clock.now_ms())
    database.command("profile", 0)
    assert {name: min(counts.get(name, 0), 11) for name in sizes} == {
        name: min(size, 11) for name, size in sizes.items()
    }
    profile = database["system.profile"].find({"ns": mongo.full_name}).to_list()
    work = [entry for entry in profile if "keysExamined" in entry]
    assert {entry["docsExamined"] for entry in work} == {0}
    assert not any(entry.get("hasSortStage") for entry in work)
    # The limit, the expired messages, and one entry to skip for each inbox.
    assert max(entry["keysExamined"] for entry in work) <= 11 + 5 + len(sizes)
    assert len(work) <= 2 * len(sizes)


async def test_a_late_claim_requests_a_comparison_of_the_clocks(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    post = new_post()
    await store.insert([post])
    assert not clock.is_doubtful
    # The database's clock was set forward by a minute after the measurement.
    sent_ms = clock.local_ms()
    clock.observe(sent_ms, clock.now_ms() - 60_000, sent_ms)
    behind_s = clock.now_ms() / 1000 - time.time()
    claim = new_claim(["bob"], [post.id], clock.now_ms(), valid_s=5.0 + behind_s)
    assert (await store.claim(claim)).ids == set()
    assert clock.is_doubtful
    await store.measure_clock()
    assert not clock.is_doubtful
    assert (await store.claim(new_claim(["bob"], [post.id], clock.now_ms()))).ids == {post.id}


@pytest.mark.skipif("motor" in DRIVERS, reason="this test opens both drivers itself")
def test_both_drivers_are_opened_in_the_same_way(io_loop: IOLoop, mongo_uri: str) -> None:
    from workers.store.driver import close_client, open_client

    async def ping(driver: Any) -> float:
        client = open_client(driver, mongo_uri)
        answer = await client.admin.command("ping")
        await close_client(client)
        return float(answer["ok"])

    assert io_loop.run_sync(lambda: ping("pymongo")) == 1
    assert io_loop.run_sync(lambda: ping("motor")) == 1


async def test_the_disk_of_the_database_is_measured(store: MongoStore) -> None:
    found = await store.measure_storage()
    assert found is not None
    assert found.total > found.free > 0
    assert found.reusable >= 0
