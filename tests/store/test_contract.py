"""The guarantees of a store, tested on the real store and on the small one of the tests."""

import asyncio

from tests.store.conftest import MakePost
from tests.support.stores import new_claim
from workers.clock import DatabaseClock
from workers.store.base import Store


async def test_inserted_messages_are_found_oldest_first(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = [new_post(text=str(number)) for number in range(10)]
    assert await any_store.insert(posts[5:]) == [None] * 5
    assert await any_store.insert(posts[:5]) == [None] * 5
    found = await any_store.find_unread(["bob"], 100, clock.now_ms())
    assert [each.message.text for each in found.messages["bob"]] == [str(n) for n in range(10)]
    assert set(found.complete) == {"bob"}


async def test_a_repeated_insert_stores_nothing_twice(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = [new_post(), new_post()]
    await any_store.insert(posts[:1])
    assert await any_store.insert(posts) == [None, None]
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}


async def test_a_limited_search_reports_which_inboxes_are_complete(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    await any_store.insert([new_post(name) for name in ("a", "a", "b", "b", "b", "d")])
    found = await any_store.find_unread(["d", "b", "a", "c"], 4, clock.now_ms())
    assert {name: len(messages) for name, messages in found.messages.items()} == {"a": 2, "b": 2}
    assert set(found.complete) == {"a"}
    everything = await any_store.find_unread(["d", "b", "a", "c"], 100, clock.now_ms())
    assert set(everything.complete) == {"a", "b", "c", "d"}


async def test_an_unlimited_search_finds_everything(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    # MongoDB's first reply has 101 documents unless it is asked for more.
    await any_store.insert([new_post() for _ in range(450)])
    found = await any_store.find_unread(["bob"], 1000, clock.now_ms())
    assert len(found.messages["bob"]) == 450
    found = await any_store.find_unread(["bob"], 300, clock.now_ms())
    assert len(found.messages["bob"]) == 300
    assert not found.complete


async def test_a_search_larger_than_a_reply_is_incomplete(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    for _ in range(3):
        await any_store.insert([new_post(text="x" * 500_000) for _ in range(14)])
    claimed = 0
    for _ in range(10):
        found = await any_store.find_unread(["bob"], 1000, clock.now_ms())
        ids = [each.message.id for each in found.messages.get("bob", ())]
        if ids:
            claim = new_claim(["bob"], ids, clock.now_ms())
            claimed += len((await any_store.claim(claim)).ids)
        if found.complete:
            break
    assert claimed == 42


async def test_only_one_of_many_claims_gets_a_message(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = [new_post() for _ in range(50)]
    await any_store.insert(posts)
    ids = [post.id for post in posts]
    now_ms = clock.now_ms()
    claims = await asyncio.gather(
        *(any_store.claim(new_claim(["bob"], ids, now_ms)) for _ in range(8))
    )
    assert sorted(each for claim in claims for each in claim.ids) == ids
    assert (await any_store.find_unread(["bob"], 100, now_ms)).messages == {}


async def test_a_message_can_be_read_up_to_its_timeout(
    any_store: Store, new_post: MakePost
) -> None:
    post = new_post(timeout_s=1)
    await any_store.insert([post])
    at, past = post.expires_ms, post.expires_ms + 1
    assert (await any_store.find_unread(["bob"], 10, at)).messages.keys() == {"bob"}
    assert await any_store.count_unread(["bob"], at) == {"bob": 1}
    assert (await any_store.find_unread(["bob"], 10, past)).messages == {}
    assert await any_store.count_unread(["bob"], past) == {}


async def test_unclaimed_messages_are_unread_again(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    mine, theirs = [new_post() for _ in range(3)], [new_post() for _ in range(2)]
    await any_store.insert([*mine, *theirs])
    ids = [post.id for post in (*mine, *theirs)]
    await any_store.claim(new_claim(["bob"], ids[3:], clock.now_ms()))
    claim = new_claim(["bob"], ids, clock.now_ms())
    assert (await any_store.claim(claim)).ids == set(ids[:3])
    assert await any_store.unclaim(claim, ids) == 3
    assert await any_store.unclaim(claim, ids) == 0
    found = await any_store.find_unread(["bob"], 10, clock.now_ms())
    assert [each.message.id for each in found.messages["bob"]] == ids[:3]
