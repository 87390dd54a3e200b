"""The decisions of a shard: batches, searches and shares."""

import asyncio
from itertools import count
from typing import Any

from workers.batch import SHARE_CHARS_MAX, Lookup, LookupLimits, lookups, plan, share_out, sort
from workers.commands import Command, Count, Held, Message, Post, Read, Unread
from workers.work_item import WorkItem

_numbers = count()


_loop = asyncio.new_event_loop()
_loop.close()


def item(command: Command[Any]) -> WorkItem:
    # The future is never awaited, so a closed loop is sufficient.
    future: asyncio.Future[Any] = asyncio.Future(loop=_loop)
    return WorkItem(command, 0.0, 1e12, future)


def post(username: str) -> WorkItem:
    return item(Post(str(next(_numbers)), username, "x", 1, 0, 0))


def read(username: str, limit: int | None = None, upto: str | None = None) -> WorkItem:
    return item(Read(username, limit, upto))


def messages(*ids: str) -> list[Unread]:
    return [Unread(Message("text of " + each, each), 0) for each in ids]


def test_a_batch_of_reads_sorts_its_items_by_kind() -> None:
    items = [read("b"), item(Count("c")), item(Held("a", "lease")), read("b")]
    batch = sort(items)
    assert batch.reads == [items[0], items[3]]
    assert batch.counts == [items[1]]
    assert batch.single_calls == [items[2]]


def test_a_read_after_a_post_waits_for_it() -> None:
    before, posted, behind, other = read("bob"), post("bob"), read("bob"), read("eve")
    counted = item(Count("bob"))
    batch = plan([before, posted, behind, other, counted])
    assert batch.posts == [posted]
    assert batch.posted == {"bob"}
    assert batch.free == [before, other]
    assert batch.behind == [behind, counted]


def test_a_cancelled_request_is_left_out() -> None:
    given_up, kept, behind = post("a"), post("b"), read("a")
    given_up.future.cancel()
    batch = plan([given_up, kept, behind])
    assert batch.posts == [kept]
    assert batch.free == [behind]
    behind.future.cancel()
    assert sort([behind]) == ([], [], [])


LIMITS = LookupLimits(slice=50, singles=5, slices=3)


def test_plain_reads_share_one_search() -> None:
    assert lookups([read("a"), read("b"), read("a")], LIMITS) == [Lookup(["a", "b"], 50)]


def test_limited_reads_get_searches_of_their_own() -> None:
    found = lookups([read("a", 3), read("b"), read("a", 4), read("c", 99)], LIMITS)
    assert found == [Lookup(["b"], 50), Lookup(["a"], 7), Lookup(["c"], 50)]


def test_the_number_of_single_searches_is_limited() -> None:
    found = lookups([read(str(number), 1) for number in range(9)], LIMITS)
    assert [search.usernames for search in found] == [["0"], ["1"], ["2"], ["3"], ["4"]]


def test_single_searches_hold_few_messages() -> None:
    """However many they are, their slices are in memory together."""
    found = lookups([read(str(number), 40) for number in range(9)], LIMITS)
    assert [search.usernames for search in found] == [["0"], ["1"], ["2"]]
    assert len(lookups([read("a"), *(read(name, 50) for name in "bcd")], LIMITS)) == 4


def test_the_earlier_read_gets_the_older_messages() -> None:
    first, second, third = read("a", 2), read("a", 2), read("a")
    shares, again = share_out([first, second, third], {"a": messages("1", "2", "3")}, {"a"})
    assert [[each.message.id for each in share.messages] for share in shares] == [
        ["1", "2"],
        ["3"],
        [],
    ]
    assert [share.more for share in shares] == [True, False, False]
    assert again == []


def test_large_messages_are_split_into_small_shares() -> None:
    half = "x" * (SHARE_CHARS_MAX // 2)
    texts = [half, half, half * 3, "x"]
    found = [Unread(Message(text, str(n)), 0) for n, text in enumerate(texts, 1)]
    shares, again = share_out([read("a") for _ in range(4)], {"a": found}, {"a"})
    ids = [[each.message.id for each in share.messages] for share in shares]
    assert ids == [["1", "2"], ["3"], ["4"], []]
    assert [share.more for share in shares] == [True, True, False, False]
    assert again == []


def test_a_read_is_empty_only_if_its_inbox_is_known_to_be_empty() -> None:
    first, second = read("a"), read("a")
    shares, again = share_out([first, second], {"a": messages("1", "2")}, set())
    assert [share.item for share in shares] == [first]
    assert shares[0].more
    assert again == [second]


def test_an_inbox_that_was_not_searched_is_retried() -> None:
    skipped = read("z")
    shares, again = share_out([skipped], {"a": messages("1")}, {"b"})
    assert shares == []
    assert again == [skipped]


def test_a_continued_read_takes_no_newer_messages() -> None:
    going_on = read("a", upto="2")
    shares, again = share_out([going_on], {"a": messages("1", "2", "3")}, set())
    assert [each.message.id for each in shares[0].messages] == ["1", "2"]
    assert not shares[0].more
    assert again == []
