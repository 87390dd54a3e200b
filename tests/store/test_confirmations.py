"""Searches and their confirmations on three real members, one of which may be deposed."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import OpenStore
from tests.faults.mongod_cluster import ReplicaSet
from tests.store.conftest import MakePost
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.store.mongo import MongoStore

#: Members copy from the primary only: not from a deposed one that still believes to be it.
_SETTINGS = {"chainingAllowed": False}
#: Lets a test hold a member in the moment in which it learns that it was deposed.
_FAIL_POINTS = ("--setParameter", "enableTestCommands=1")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    """Three members. They outlive the loop that started them."""
    folder = tmp_path_factory.mktemp("members")
    cluster = ReplicaSet(folder, settings=_SETTINGS, arguments=_FAIL_POINTS)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(cluster.__aenter__())
    yield cluster
    loop.run_until_complete(cluster.__aexit__())
    loop.close()


async def found_by(store: MongoStore, clock: DatabaseClock) -> tuple[list[str], str | None]:
    """Return the texts that a search of one inbox finds, and its term."""
    found = await store.find_unread(["bob"], 10, clock.now_ms())
    return [unread.message.text for unread in found.messages.get("bob", ())], found.term


async def test_a_search_is_confirmed_in_its_term(
    members: ReplicaSet, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store = await open_store(members.uri)
    await store.insert([new_post()])
    texts, term = await found_by(store, clock)
    assert texts == ["hello"]
    assert term is not None
    assert await store.confirm() == await store.confirm() == term


async def test_a_search_of_one_member_needs_no_confirmation(
    open_store: OpenStore, clock: DatabaseClock
) -> None:
    store = await open_store()
    assert await found_by(store, clock) == ([], None)
    assert await store.confirm() is None


async def test_members_that_were_just_added_are_known(
    members: ReplicaSet, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    """The hosts are counted from time to time only, and one of the new ones may be primary."""
    store = await open_store(members.uri)
    store._had_peers = False
    _, term = await found_by(store, clock)
    assert term is not None
    assert await store.confirm() == term


async def test_a_primary_elected_again_confirms_no_old_search(
    members: ReplicaSet, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    store = await open_store(members.uri)
    first = await members.primary()
    _, before = await found_by(store, clock)
    await members.elect((await members.secondaries())[0])
    await members.elect(first)
    assert await store.confirm() != before

    async def is_confirmed() -> bool:
        # While the driver knows no primary, there is no term.
        _, after = await found_by(store, clock)
        return after is not None and await store.confirm() == after != before

    await eventually(is_confirmed)
