"""What is different behind a mongos: targeted statements, orphans, cursors, and clocks."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
from msgspec.structs import replace
from pymongo import MongoClient

from tests.conftest import OpenStore
from tests.mongos.conftest import OpenRouter
from tests.mongos.router import Router
from tests.store.conftest import MakePost
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.commands import Claim, Key, Post, Revoke
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.store import change_stream, targeted
from workers.store.base import ArrivalStream
from workers.store.diagnostics import examine
from workers.store.driver import Document, Driver
from workers.store.layout import Layout
from workers.store.mongo import MongoStore
from workers.store.node_history import HISTORY_PLACES
from workers.store.targeted import Updates

Mongods = list[MongoClient[Document]]

#: Inboxes of both database shards. The first two belong to one.
NAMES = ("amy", "carol", "bob")
#: The broadcasts of the jobs that work for all inboxes: a command and the index that it reads.
SWEEPS = {
    ("find", "purge"),
    ("find", "kept"),
    ("find", "lease_ends"),
    ("aggregate", "lease_ends"),
    ("aggregate", "inbox_by_route"),
}


async def posted(store: MongoStore, new_post: MakePost, each: int = 1, **fields: Any) -> list[Post]:
    """Store messages in inboxes of both database shards."""
    posts = [new_post(name, **fields) for name in NAMES for _ in range(each)]
    assert await store.insert(posts) == [None] * len(posts)
    return posts


def claim_of(posts: list[Post], clock: DatabaseClock, **options: Any) -> Claim:
    """Return one claim for these messages."""
    return new_claim(NAMES, [post.id for post in posts], clock.now_ms(), **options)


async def test_one_command_claims_messages_of_several_inboxes(
    router: Router, store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = await posted(store, new_post, each=2)
    router.statements.clear()
    router.commands.clear()
    assert (await store.claim(claim_of(posts, clock))).ids == {post.id for post in posts}
    claims = [each for each in router.statements if each.is_write]
    assert router.commands["update"] == 1
    assert [each.filter["username"] for each in claims] == list(NAMES)
    assert [len(each.reach.shards) for each in claims] == [1, 1, 1]
    assert [len(each.filter["_id"]["$in"]) for each in claims] == [2, 2, 2]
    # A search by token tells what is claimed, not the number in the reply.
    assert router.commands["find"] == 1


async def test_a_claim_and_its_rollback_leave_orphans_alone(
    router: Router,
    store: MongoStore,
    mongods: Mongods,
    database: str,
    new_post: MakePost,
    clock: DatabaseClock,
) -> None:
    router.leaves_orphans = True
    posts = await posted(store, new_post)
    claim = claim_of(posts, clock)
    await store.claim(claim)
    unread = [each[database].messages.count_documents({"unread": True}) for each in mongods]
    # What is left is the orphans: one of `bob` on the first, and two on the second.
    assert unread == [1, 2]
    assert await store.unclaim(claim, claim.ids) == len(posts)


async def test_sweeps_count_each_message_once_despite_orphans(
    router: Router,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targeted, "_FOUND_MAX", 2)
    router.leaves_orphans = True
    stores = [await open_store(node=node) for node in ("one", "other")]
    kept = await posted(stores[0], new_post, receipt="r", timeout_s=600)
    leased = await posted(stores[0], new_post, timeout_s=600)
    await posted(stores[0], new_post, each=5, timeout_s=1, age_s=60)
    await stores[0].claim(claim_of(kept, clock))
    await stores[0].claim(claim_of(leased, clock, lease_ms=1))
    assert await stores[0].count_pending() == len(leased) + 5 * len(NAMES)
    now_ms = clock.now_ms() + 5000
    ended = await asyncio.gather(*(each.end_leases(now_ms) for each in stores))
    assert sum(each.returned for each in ended) == len(leased)
    expired = await asyncio.gather(*(each.expire(now_ms) for each in stores))
    assert sum(expired) == 5 * len(NAMES)
    assert await stores[0].count_pending() == len(leased)
    await stores[0].retire(now_ms + 3600_000)
    assert await stores[0].count_pending() == len(leased)


async def test_delays_end_once_despite_orphans(
    router: Router, open_store: OpenStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    router.leaves_orphans = True
    stores = [await open_store(node=node) for node in ("one", "other")]
    now_ms = clock.now_ms()
    due, later = [
        [replace(new_post(name, timeout_s=600), due_ms=due_ms) for name in NAMES for _ in range(3)]
        for due_ms in (now_ms - 5, now_ms + 60_000)
    ]
    await stores[0].insert([*due, *later])
    ended = await asyncio.gather(*(each.end_leases(now_ms) for each in stores))
    assert sum(len(each.due_ms) for each in ended) == len(due)
    assert sum(each.returned + each.expired for each in ended) == 0
    found = await stores[0].find_unread(NAMES, 100, now_ms)
    assert {each.message.id for its in found.messages.values() for each in its} == {
        post.id for post in due
    }
    assert await stores[0].count_pending() == len(due) + len(later)


async def test_only_sweeps_read_from_all_database_shards(
    router: Router, store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    # Without the look at a new database.
    router.statements.clear()
    posts = await posted(store, new_post, receipt="r")
    await store.claim(claim_of(posts, clock, lease_ms=1))
    await store.expire(clock.now_ms())
    await store.end_leases(clock.now_ms() + 1000)
    await store.retire(clock.now_ms())
    await store.count_pending()
    await store.count_resolved()
    await store.ping()
    broadcasts = {(each.command, each.hint) for each in router.untargeted()}
    assert broadcasts == SWEEPS


async def test_doctor_accepts_the_cluster_with_targeted_statements(
    router: Router, store: MongoStore, driver: Driver, database: str
) -> None:
    router.statements.clear()
    found = [each async for each in examine(router.uri, driver, database, 10.0)]
    assert {each.state for each in found} == {"ok"}
    assert [str(each) for each in router.untargeted()] == []


async def test_equal_keys_of_two_inboxes_store_two_messages(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock
) -> None:
    key = Key("hash of a key", "hash of a body", gets_receipt=True)
    posts = await posted(store, new_post, key=key, receipt="first")
    repeats = [new_post(name, key=key, receipt="second") for name in NAMES]
    assert await store.insert(repeats) == [post.id for post in posts]
    assert await store.count_unread(NAMES, clock.now_ms()) == dict.fromkeys(NAMES, 1)
    for post in posts:
        status, revoked = await store.revoke(Revoke(post.id, "second"), clock.now_ms())
        assert (status and status.status, revoked) == ("revoked", 1)


async def read_until(stream: ArrivalStream, username: str) -> None:
    """Read a stream until it reports an arrival in this inbox."""
    async with asyncio.timeout(30):
        while True:
            arrivals = await stream.next()
            assert arrivals is not None, "the stream is closed"
            if username in arrivals.usernames:
                return


async def test_a_change_stream_stays_with_its_mongos(
    open_router: OpenRouter, router: Router, open_store: OpenStore, new_post: MakePost
) -> None:
    other = await open_router()
    store = await open_store(f"mongodb://{router.address},{other.address}/")
    for _ in range(3):
        stream = await store.arrivals(NAMES)
        for name in NAMES * 2:
            await store.insert([new_post(name)])
            await read_until(stream, name)
        # The next one begins where this one is.
        await store.insert([new_post("carol")])
        following = await store.arrivals(NAMES, stream)
        await read_until(following, "carol")
        await stream.close()
        await following.close()
    assert router.statements
    assert other.statements


async def test_the_clocks_of_several_mongos_are_not_asked(
    open_router: OpenRouter, router: Router, open_store: OpenStore, clock: DatabaseClock
) -> None:
    other = await open_router()
    router.clock_ahead_ms, other.clock_ahead_ms = 3600_000, -3600_000
    store = await open_store(f"mongodb://{router.address},{other.address}/")
    for _ in range(5):
        await store.measure_clock()
        assert abs(clock.offset_ms) < 600_000


@pytest.mark.parametrize("ahead_ms", [3600_000, -3600_000])
async def test_the_clock_of_a_mongos_decides_about_no_claim(
    router: Router, store: MongoStore, new_post: MakePost, clock: DatabaseClock, ahead_ms: int
) -> None:
    posts = await posted(store, new_post)
    router.clock_ahead_ms = ahead_ms
    assert (await store.claim(claim_of(posts, clock))).ids == {post.id for post in posts}


@pytest.mark.parametrize("is_voided", [True, False], ids=["voided", "not voided"])
async def test_a_late_claim_takes_nothing_once_it_is_voided(
    router: Router, store: MongoStore, new_post: MakePost, clock: DatabaseClock, is_voided: bool
) -> None:
    posts = await posted(store, new_post)
    claim = claim_of(posts, clock)
    router.keeps = lambda command: "update" in command
    assert (await store.claim(claim)).ids == set(claim.ids)
    router.keeps = lambda command: False
    if is_voided:
        await store.void(claim, claim.ids)
    assert await store.unclaim(claim, claim.ids) == len(posts)
    # The copies have the time at which the router received them, so no clock stops them.
    late = sum(reply["nModified"] for reply in await router.send_late())
    found = await store.find_unread(NAMES, 10, clock.now_ms())
    assert (late, len(found.messages)) == ((0, 3) if is_voided else (3, 0))


async def test_a_seeded_claim_without_a_route_is_found(
    router: Router,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def of_inboxes(
        self: Updates, selection: Document, change: Any, hint: str, deadline: float | None = None
    ) -> int:
        wrong = {name: value for name, value in selection.items() if name != "route"}
        return await self._update([wrong], change, hint, deadline)

    monkeypatch.setattr(Updates, "of_inboxes", of_inboxes)
    store = await open_store(timeout_s=0.3)
    posts = await posted(store, new_post)
    with pytest.raises(OutcomeUnknown):
        await store.claim(claim_of(posts, clock))
    assert {len(each.reach.shards) for each in router.untargeted() if each.is_write} == {2}


async def test_a_seeded_revocation_by_id_alone_is_found(
    router: Router,
    open_store: OpenStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await open_store(timeout_s=0.3)
    (post, *_) = await posted(store, new_post, receipt="r")
    monkeypatch.setattr(Layout, "inbox", lambda self, username: {})
    with pytest.raises(OutcomeUnknown):
        await store.revoke(Revoke(post.id, "r"), clock.now_ms())
    broadcast = next(each for each in router.untargeted() if each.is_write)
    assert broadcast.reach.why == "no equality on route"


async def test_a_seeded_stream_without_its_mongos_is_found(
    open_router: OpenRouter,
    router: Router,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(change_stream, "pinned", nullcontext)
    other = await open_router()
    store = await open_store(f"mongodb://{router.address},{other.address}/")
    stream = await store.arrivals(NAMES)

    async def read_often() -> None:
        for _ in range(60):
            await stream.next()

    with pytest.raises(StoreUnavailable, match="not found"):
        await read_often()


async def test_a_history_is_stored_behind_a_mongos(store: MongoStore, clock: DatabaseClock) -> None:
    for hour in range(HISTORY_PLACES + 1):
        await store.save_history("web1:80", hour, b"%d" % hour, clock.now_ms())
    hours = sorted(int(content) for content in await store.load_history("web1:80"))
    assert hours == [*range(1, HISTORY_PLACES + 1)]
    await store.forget_nodes(clock.now_ms() + 26 * 3600_000)
    assert await store.load_history("web1:80") == []
    assert (store.is_routed, store.members) == (True, None)
    assert store.version is not None
