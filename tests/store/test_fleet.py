"""The leader lease: one node has it, another takes it over, and each message is counted once."""

import asyncio
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from pymongo.errors import OperationFailure
from structlog.testing import capture_logs

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import Release
from workers.store.base import LEADER_LEASE_S, SOLE_LEASE_S, Ended, PendingCount
from workers.store.mongo import MongoStore


def end_lease(mongo: Messages) -> None:
    """End the leader lease by the database's clock, as when the leader stopped renewing it."""
    fleet = mongo.database["fleet"]
    result = fleet.update_one({"_id": "leader"}, [{"$set": {"until": {"$subtract": ["$$NOW", 1]}}}])
    assert result.modified_count == 1


async def test_of_all_nodes_that_ask_at_once_one_leads(open_store: OpenStore) -> None:
    stores = [await open_store(node=f"node {number}") for number in range(6)]
    found = await asyncio.gather(*(store.lead(None) for store in stores))
    assert sum(leader.is_own for leader in found) == 1
    assert len({leader.node for leader in found}) == 1


async def test_a_leader_renews_and_others_learn_of_it(
    open_store: OpenStore, clock: DatabaseClock
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    first = await one.lead(None)
    assert (first.node, first.is_own) == ("one", True)
    assert abs(first.until_ms - clock.now_ms() - LEADER_LEASE_S * 1000) < 3000
    await asyncio.sleep(0.01)
    again = await one.lead(None)
    assert again.is_own
    assert again.until_ms > first.until_ms
    assert await other.lead(None) == again._replace(is_own=False)


async def test_a_look_at_anothers_lease_writes_nothing(
    open_store: OpenStore, mongo: Messages
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    await one.lead(None)
    # The collection's part of the oplog, since other tests write to the same mongod.
    oplog, of_fleet = mongo.database.client["local"]["oplog.rs"], f"{mongo.database.name}.fleet"
    before = oplog.count_documents({"ns": of_fleet})
    for _ in range(5):
        assert not (await other.lead(PendingCount(7, 1, 2))).is_own
    assert oplog.count_documents({"ns": of_fleet}) == before
    await one.lead(None)
    assert oplog.count_documents({"ns": of_fleet}) == before + 1


async def test_a_lease_that_is_over_goes_to_another_node(
    open_store: OpenStore, mongo: Messages
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    await one.lead(None)
    assert not (await other.lead(None)).is_own
    end_lease(mongo)
    assert (await other.lead(None)).is_own
    late = await one.lead(None)
    assert (late.node, late.is_own) == ("other", False)


async def test_a_database_clock_set_back_prolongs_no_lease(
    open_store: OpenStore, mongo: Messages
) -> None:
    """The leader died with it. Otherwise nobody would lead until the clock is there again."""
    one, other = await open_store(node="one"), await open_store(node="other")
    await one.lead(None)
    mongo.database["fleet"].update_one(
        {"_id": "leader"}, [{"$set": {"until": {"$add": ["$until", 3_600_000]}}}]
    )
    assert (await other.lead(None)).is_own
    assert not (await one.lead(None)).is_own


async def test_a_node_that_resigns_is_replaced_at_once(open_store: OpenStore) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    await one.lead(None)
    await other.resign()
    assert (await one.lead(None)).is_own, "only the leader can resign"
    await one.resign()
    assert (await other.lead(None)).is_own


async def test_a_process_does_not_inherit_the_lease_of_its_name(
    open_store: OpenStore, mongo: Messages
) -> None:
    """Such as after a restart in a container, with the same host and process id."""
    one, other = await open_store(node="one"), await open_store(node="one")
    await one.lead(None)
    assert not (await other.lead(None)).is_own
    end_lease(mongo)
    assert (await other.lead(None)).is_own


async def test_the_leaders_count_reaches_every_node(open_store: OpenStore, mongo: Messages) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    assert (await one.lead(None)).pending == PendingCount(None, 0, 0)
    count = PendingCount(41, 1000, 2000)
    assert (await one.lead(count)).pending == count
    assert (await other.lead(PendingCount(7, 1, 2))).pending == count
    assert (await one.lead(None)).pending == count, "it stays until there is another one"
    end_lease(mongo)
    assert (await other.lead(None)).pending == count, "also while a new leader counts"
    failed = PendingCount(None, 3000, 3000)
    assert (await other.lead(failed)).pending == failed


async def test_a_node_named_like_a_field_is_a_name(open_store: OpenStore) -> None:
    assert (await (await open_store(node="$since")).lead(None)).node == "$since"


@pytest.mark.parametrize("code", [13, 8000], ids=["MongoDB", "Atlas"])
async def test_without_the_right_each_node_leads(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Refuses:
        async def command(self, *_: Any, **__: Any) -> None:
            raise OperationFailure("not authorized", code)

    class Client:
        def __getitem__(self, name: str) -> Refuses:
            return Refuses()

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(store, "_client", Client())
        found = [await store.lead(PendingCount(1, 2, 3)) for _ in range(3)]
    assert all(leader.is_own for leader in found)
    assert [
        line["event"].partition(",")[0] for line in lines if line["log_level"] == "warning"
    ] == ["the nodes cannot agree on a leader"]


async def test_old_documents_of_nodes_are_deleted(
    store: MongoStore, clock: DatabaseClock, mongo: Messages
) -> None:
    await store.lead(None)
    fleet, now = mongo.database["fleet"], clock.now_ms()
    fleet.insert_many(
        [
            {"_id": "new", "at": DatetimeMS(now - 60_000)},
            {"_id": "old", "at": DatetimeMS(now - 7200_000)},
        ]
    )
    await store.forget_nodes(now)
    assert {document["_id"] for document in fleet.find()} == {"leader", "new", "schema"}


async def test_the_leader_ends_leases_that_another_node_gave(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    post, now_ms = new_post(timeout_s=600), clock.now_ms()
    await other.insert([post])
    assert (await one.end_leases(now_ms)).first_ms is None
    await other.claim(new_claim(["bob"], [post.id], now_ms, lease_ms=5000))
    assert await one.end_leases(now_ms + 5000) == Ended((), 0, 0, now_ms + 5000)
    ended = await one.end_leases(now_ms + 5001)
    assert (set(ended.usernames), ended.returned) == ({"bob"}, 1)


@pytest.mark.parametrize("way", ["a release", "an unclaim"])
async def test_what_a_follower_returns_late_expires_once(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock, way: str
) -> None:
    """The leader has searched the time of its expiry already, and does not search it again."""
    leader, follower = await open_store(node="leader"), await open_store(node="follower")
    post, now_ms = new_post(timeout_s=5), clock.now_ms()
    await follower.insert([post])
    claim = new_claim(["bob"], [post.id], now_ms, lease_ms=4000 if way == "a release" else None)
    await follower.claim(claim)
    later_ms = post.expires_ms + 10_000
    assert await leader.expire(later_ms) == 0
    assert await follower.expire(later_ms, leads=False) == 0
    if way == "a release":
        # Sent in time, and carried out late.
        assert (
            await follower.release(Release("bob", claim.token.partition(".")[0]), now_ms)
        ).changed
    else:
        assert await follower.unclaim(claim, [post.id]) == 1
    assert await leader.expire(later_ms + 1) == 0, "this is why the follower has to search"
    marked = [await follower.expire(later_ms + number, leads=False) for number in range(3)]
    assert marked == [1, 0, 0]
    assert await leader.expire(later_ms + 2000) == 0


async def test_a_follower_searches_twice_for_what_it_returned(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    """The clock of the leader may be ahead, and its search of a later time just over."""
    leader, follower = await open_store(node="leader"), await open_store(node="follower")
    post, now_ms = new_post(timeout_s=5), clock.now_ms()
    await follower.insert([post])
    claim = new_claim(["bob"], [post.id], now_ms)
    await follower.claim(claim)
    # The search reaches up to a second before the time that it is given.
    assert await leader.expire(post.expires_ms + 1001) == 0
    await follower.unclaim(claim, [post.id])
    assert await follower.expire(post.expires_ms + 999, leads=False) == 0
    assert await leader.expire(post.expires_ms + 2999) == 0
    assert await follower.expire(post.expires_ms + 2999, leads=False) == 1


async def test_a_follower_without_returns_sends_nothing(
    store: MongoStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_messages", None)
    assert await store.expire(clock.now_ms(), leads=False) == 0


async def test_a_new_leader_searches_from_the_start(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    """A node that was killed has not marked what it returned."""
    store, killed = await open_store(node="one"), await open_store(node="killed")
    post, now_ms = new_post(timeout_s=5), clock.now_ms()
    await killed.insert([post])
    claim = new_claim(["bob"], [post.id], now_ms)
    await killed.claim(claim)
    later_ms = post.expires_ms + 10_000
    assert await store.expire(later_ms) == 0
    await killed.unclaim(claim, [post.id])
    assert await store.expire(later_ms + 2000, leads=False) == 0
    assert await store.expire(later_ms + 4000) == 1


async def test_two_leaders_count_each_message_once(
    open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    one, other = await open_store(node="one"), await open_store(node="other")
    now_ms = clock.now_ms()
    unread = [new_post(timeout_s=5) for _ in range(40)]
    leased = [new_post(timeout_s=5) for _ in range(40)]
    await one.insert([*unread, *leased])
    await one.claim(new_claim(["bob"], [post.id for post in leased], now_ms, lease_ms=60_000))
    later_ms = now_ms + 20_000
    ended = await asyncio.gather(one.end_leases(later_ms), other.end_leases(later_ms))
    marked = await asyncio.gather(one.expire(later_ms), other.expire(later_ms))
    assert sum(each.expired for each in ended) == 40
    assert sum(marked) == 40
    assert await one.count_pending() == 0


async def test_all_nodes_hash_names_with_one_key(open_store: OpenStore) -> None:
    keys = [await (await open_store(node=name)).log_key() for name in ("a", "b", "a")]
    assert len(set(keys)) == 1
    assert len(keys[0] or "") == 32


async def test_a_sole_process_takes_the_lease_of_a_killed_one(
    open_store: OpenStore, clock: DatabaseClock
) -> None:
    killed = await open_store(node="killed")
    assert (await killed.lead(None)).is_own
    sole = await open_store(node="sole", is_sole=True)
    taken = await sole.lead(PendingCount(7, 1, 2))
    assert (taken.node, taken.is_own, taken.is_sole) == ("sole", True, True)
    assert abs(taken.until_ms - clock.now_ms() - SOLE_LEASE_S * 1000) < 3000
    assert (await sole.lead(None)).pending == PendingCount(7, 1, 2)
