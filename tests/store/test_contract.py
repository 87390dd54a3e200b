"""The guarantees of a store, tested on the real store and on the small one of the tests."""

import asyncio

import pytest
from msgspec.structs import replace

from tests.store.conftest import MakePost
from tests.support.stores import new_batch, new_claim
from workers.clock import DatabaseClock
from workers.commands import DiscardedClaims, Key, Post, Track
from workers.errors import InboxFull, KeyReused
from workers.store.base import Store
from workers.store.connection import VOIDED_MAX
from workers.store.layout import NEWEST
from workers.store.mongo import MongoStore

pytestmark = pytest.mark.usefixtures("each_schema")


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
    sizes = {"a": 3, "b": 3, "d": 3}
    await any_store.insert([new_post(name) for name, size in sizes.items() for _ in range(size)])
    found = await any_store.find_unread(["d", "b", "a", "c"], 5, clock.now_ms())
    # The store chooses the order of the inboxes: one is found whole, and one in part.
    assert sorted(map(len, found.messages.values())) == [2, 3]
    (whole,) = [name for name, messages in found.messages.items() if len(messages) == 3]
    assert set(found.complete) - {"c"} == {whole}
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


async def test_a_closed_message_is_left_to_other_claims(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    post = new_post()
    await any_store.insert([post])
    claims = [new_claim(["bob"], [post.id], clock.now_ms()) for _ in range(VOIDED_MAX)]
    for claim in claims:
        await any_store.void(claim, claim.ids)
        await any_store.void(claim, claim.ids)
    for claim in claims:
        assert (await any_store.claim(claim)).ids == set()
    other = new_claim(["bob"], [post.id], clock.now_ms())
    assert (await any_store.claim(other)).ids == {post.id}
    # What a claim has taken stays claimed until it is undone.
    await any_store.void(other, other.ids)
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {}
    assert await any_store.unclaim(other, other.ids) == 1
    assert (await any_store.claim(other)).ids == set()


async def test_a_discarded_batch_loses_the_claims_of_all_processes(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts, now_ms = [new_post() for _ in range(3)], clock.now_ms()
    ids = [post.id for post in posts]
    await any_store.insert(posts)
    old = new_batch("key", "bob", ids, now_ms + 60_000)
    # The same key chose again, in the same millisecond.
    new = new_batch("key", "bob", ids, now_ms + 60_000)
    claims = [new_claim(["bob"], ids, now_ms, key="key", batch=old.token) for _ in range(2)]
    await any_store.claim(replace(claims[0], ids=(ids[0],)))
    await any_store.claim(new_claim(["bob"], ids[1:2], now_ms, key="key", batch=new.token))
    assert [each.id for each in await any_store.keyed_messages(old, now_ms)] == ids[:1]
    assert [each.id for each in await any_store.keyed_messages(new, now_ms)] == ids[1:2]
    discarded = DiscardedClaims(old, now_ms)
    await any_store.void(discarded, ids)
    assert await any_store.unclaim(discarded, ids) == 1
    for claim in claims:
        assert (await any_store.claim(claim)).ids == set()
    await any_store.claim(new_claim(["bob"], ids, now_ms, key="key", batch=new.token))
    assert [each.id for each in await any_store.keyed_messages(new, now_ms)] == ids


async def test_an_inbox_is_measured_up_to_a_number_of_messages(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    posts = [new_post(text="für"), new_post(text="12345"), new_post("eve", "another inbox")]
    await any_store.insert([*posts, new_post(text="expired", timeout_s=1, age_s=2)])
    now_ms = clock.now_ms()
    assert await any_store.measure_inbox("bob", 10, True, now_ms) == (2, 9)
    assert await any_store.measure_inbox("bob", 1, True, now_ms) == (1, 4)
    assert (await any_store.measure_inbox("bob", 10, False, now_ms)).messages == 2
    assert await any_store.measure_inbox("nobody", 10, True, now_ms) == (0, 0)
    await any_store.claim(new_claim(["bob"], [posts[0].id], now_ms))
    assert await any_store.measure_inbox("bob", 10, True, now_ms) == (1, 5)


async def test_a_post_for_a_full_inbox_only_finds_repeats(
    any_store: Store, new_post: MakePost, clock: DatabaseClock
) -> None:
    first = new_post(key=Key("key", "body"), receipt="first")
    await any_store.insert([first])

    def again(key: str, body: str) -> Post:
        return replace(new_post(key=Key(key, body), receipt="2"), is_for_full_inbox=True)

    posts = [again("key", "body"), again("key", "another"), again("a new key", "body"), new_post()]
    outcomes = await any_store.insert(posts)
    assert outcomes[0] == first.id
    assert isinstance(outcomes[1], KeyReused)
    assert isinstance(outcomes[2], InboxFull)
    assert outcomes[3] is None
    assert await any_store.count_unread(["bob"], clock.now_ms()) == {"bob": 2}
    assert await any_store.track(Track(first.id, "2"), clock.now_ms()) is not None


async def test_keys_of_several_inboxes_are_told_apart(any_store: Store, new_post: MakePost) -> None:
    """Within one batch, too, and if the keys and inboxes of several posts could be mixed up."""
    first = [new_post(name, key=Key(key, key)) for name, key in (("bob", "1"), ("eve", "2"))]
    assert await any_store.insert(first) == [None, None]
    crossed = [new_post(name, key=Key(key, key)) for name, key in (("bob", "2"), ("eve", "1"))]
    repeats = [new_post(name, key=Key(key, key)) for name, key in (("bob", "1"), ("eve", "2"))]
    outcomes = await any_store.insert([*crossed, *repeats])
    layout = any_store._layout if isinstance(any_store, MongoStore) else NEWEST
    if layout.has_route:
        assert outcomes == [None, None, first[0].id, first[1].id]
    else:
        assert outcomes == [first[1].id, first[0].id, first[0].id, first[1].id]


@pytest.mark.parametrize("gets_receipt", [True, False])
async def test_a_repeat_gets_a_receipt_only_if_its_key_allows_it(
    any_store: Store, new_post: MakePost, clock: DatabaseClock, gets_receipt: bool
) -> None:
    first = new_post(key=Key("key", "body", gets_receipt), receipt="first")
    repeat = new_post(key=Key("key", "body", gets_receipt), receipt="second")
    assert await any_store.insert([first]) == [None]
    assert await any_store.insert([repeat]) == [first.id]
    status = await any_store.track(Track(first.id, "second"), clock.now_ms())
    assert (status is not None) == gets_receipt
    assert await any_store.track(Track(first.id, "first"), clock.now_ms()) is not None
