"""The history of a node in MongoDB: a ring of documents, which the leader deletes later."""

from bson.datetime_ms import DatetimeMS

from tests.conftest import OpenStore
from tests.store.conftest import Messages
from workers.clock import DatabaseClock
from workers.store.mongo import MongoStore
from workers.store.node_history import HISTORY_PLACES

HOUR_MS = 3600_000


async def test_a_stored_history_is_found_by_another_process(open_store: OpenStore) -> None:
    one, other = await open_store(node="web1/1"), await open_store(node="web1/2")
    assert await one.load_history("web1:80") == []
    for hour in (5, 6, 7):
        await one.save_history("web1:80", hour, b"hour %d" % hour, hour * HOUR_MS)
    await one.save_history("web1:80", 7, b"all of hour 7", 8 * HOUR_MS - 1)
    await one.save_history("web2:80", 7, b"of another node", 7 * HOUR_MS)
    assert {*await other.load_history("web1:80")} == {b"hour 5", b"hour 6", b"all of hour 7"}


async def test_a_node_has_a_bounded_number_of_documents(store: MongoStore, mongo: Messages) -> None:
    for hour in range(3 * HISTORY_PLACES):
        await store.save_history("web1:80", hour, b"%d" % hour, hour * HOUR_MS)
    assert mongo.database["history"].count_documents({}) == HISTORY_PLACES
    hours = sorted(int(content) for content in await store.load_history("web1:80"))
    assert hours == [*range(2 * HISTORY_PLACES, 3 * HISTORY_PLACES)]


async def test_histories_of_nodes_that_are_gone_are_deleted(
    store: MongoStore, clock: DatabaseClock
) -> None:
    now = clock.now_ms()
    await store.save_history("gone:80", 1, b"old", now - 26 * HOUR_MS)
    await store.save_history("here:80", 2, b"new", now - 23 * HOUR_MS)
    await store.forget_nodes(now)
    assert await store.load_history("gone:80") == []
    assert await store.load_history("here:80") == [b"new"]


async def test_a_history_says_when_it_was_recorded(store: MongoStore, mongo: Messages) -> None:
    await store.save_history("web1:80", 26, b"x", 26 * HOUR_MS)
    found = mongo.database["history"].find_one({}, {"at": 1, "node": 1})
    assert found is not None
    assert (found["_id"], found["node"]) == ("web1:80|1", "web1:80")
    assert mongo.database["history"].find_one({"at": DatetimeMS(26 * HOUR_MS)})
