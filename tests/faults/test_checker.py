"""The checker is believed since it catches every bug that is seeded, and nothing else."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.history import (
    CollectionDrop,
    History,
    LeaseOperation,
    PostRecord,
    ReadRecord,
    ReceiptQuery,
)
from tests.faults.seeded_bugs import BUGS, Bug, detect

SCHEDULES = 3000


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug) -> None:
    assert detect(bug, SCHEDULES) is not None


def post(text: str, began: float, outcome: str = "ok", lifetime_s: float = 100) -> PostRecord:
    """A post of one client to one inbox, that took a second."""
    return PostRecord("ann", "bob", text, lifetime_s, began, began + 1, outcome, text)  # type: ignore[arg-type]


def got(began: float, *texts: str, outcome: str = "ok") -> ReadRecord:
    """A read of that inbox, that took a second."""
    return ReadRecord("bob", began, began + 1, outcome, tuple((text, text) for text in texts))  # type: ignore[arg-type]


def lent(began: float, *texts: str, lease: str = "l.0", ttl_s: float = 10) -> ReadRecord:
    """A read on loan."""
    return got(began, *texts)._replace(lease=lease, ttl_s=ttl_s)


def keyed(began: float, *texts: str, outcome: str = "ok", key: str = "k") -> ReadRecord:
    """A read with a key."""
    return got(began, *texts, outcome=outcome)._replace(key=key, is_all=False)


def waited(began: float, ended: float, *texts: str) -> ReadRecord:
    """A read that waited up to ten seconds."""
    return got(began, *texts)._replace(wait_s=10, ended=ended)


def settled(
    what: str, began: float, messages: int, outcome: str = "ok", **more: Any
) -> LeaseOperation:
    """What was done with that loan, in a second."""
    return LeaseOperation(what, "bob", "l", began, began + 1, outcome, messages, **more)  # type: ignore[arg-type]


def told(began: float, status: str | None, what: str = "track", text: str = "a") -> ReceiptQuery:
    """What the sender of a message was told, in a second."""
    return ReceiptQuery(what, text, "r", began, began + 1, "ok" if status else "unknown", status)  # type: ignore[arg-type]


def kinds(
    *requests: PostRecord | ReadRecord | LeaseOperation | ReceiptQuery, kills: Sequence[float] = ()
) -> set[str]:
    """What the checker says of a history."""
    history = History(
        [each for each in requests if isinstance(each, PostRecord)],
        [each for each in requests if isinstance(each, ReadRecord)],
        list(kills),
        [each for each in requests if isinstance(each, LeaseOperation)],
        [each for each in requests if isinstance(each, ReceiptQuery)],
    )
    return check(history, late_s=0.1, longest_s=5, release_s=5).kinds


def test_what_is_read_once_in_order_breaks_no_promise() -> None:
    assert kinds(post("a", 0), post("b", 2), got(4, "a", "b"), got(6)) == set()


def test_what_a_broken_read_may_have_taken_is_undelivered_and_not_lost() -> None:
    assert kinds(post("a", 0), got(2, outcome="cut"), got(4)) == set()
    assert kinds(post("a", 2), got(0, outcome="cut"), got(4)) == {"lost", "missed"}


def test_an_unknown_read_excuses_nothing_unless_its_server_was_killed_after_it() -> None:
    requests = (post("a", 0), got(2, outcome="unknown"), got(12))
    assert kinds(*requests) == {"lost", "missed"}
    assert kinds(*requests, kills=[1]) == {"lost", "missed"}
    assert kinds(*requests, kills=[4]) == set()


def test_what_an_unknown_read_took_has_to_be_back_in_time() -> None:
    requests = (post("a", 0), got(2, outcome="unknown"))
    assert kinds(*requests, got(7), got(9, "a")) == set()
    assert kinds(*requests, got(9), got(11, "a")) == {"missed"}


def test_a_message_that_expired_unread_is_not_lost_unless_a_read_had_to_hold_it() -> None:
    assert kinds(post("a", 0, lifetime_s=3), got(9)) == set()
    assert kinds(post("a", 0, lifetime_s=9), got(2), got(12)) == {"missed"}


def dropped(*requests: PostRecord | ReadRecord, began: float = 3, ended: float = 4) -> set[str]:
    """What the checker says where an operator dropped all messages at that time."""
    history = History(
        [each for each in requests if isinstance(each, PostRecord)],
        [each for each in requests if isinstance(each, ReadRecord)],
        [],
        drops=[CollectionDrop(began, ended)],
    )
    return check(history, late_s=0.1, longest_s=5, release_s=5).kinds


def test_an_operators_drop_excuses_what_was_stored_before_it_and_nothing_later() -> None:
    assert dropped(post("a", 0), got(6)) == set()
    assert dropped(post("a", 0), got(1.5), got(6)) == {"missed"}
    assert dropped(post("a", 3.5), got(6)) == set()
    assert dropped(post("a", 4.5), got(6)) == {"lost", "missed"}
    assert dropped(post("a", 0), got(6, "a"), got(8, "a")) == {"duplicated"}


def test_a_key_stores_one_message_on_each_side_of_a_drop() -> None:
    first, again = post("a", 0)._replace(key="k"), post("a", 5)._replace(key="k", id="b")
    twice = (got(1.5, "a"), got(7)._replace(messages=(("b", "a"),)))
    assert dropped(first, again, *twice) == set()
    third = again._replace(id="c")
    assert "duplicated" in dropped(first, again, third, *twice)
    assert "duplicated" in dropped(post("a", 4.2)._replace(key="k"), again, *twice[1:])


def test_of_an_unknown_post_everything_may_come_but_not_of_a_refused_one() -> None:
    assert kinds(post("a", 0, "unknown"), got(2, "a")) == set()
    assert kinds(post("a", 0, "unknown"), got(2)) == set()
    assert kinds(post("a", 0, "refused"), got(2, "a")) == {"phantom"}


def test_each_broken_promise_has_its_name() -> None:
    assert kinds(got(0, "a")) == {"unexpected"}
    assert kinds(post("a", 0), got(2, "a"), got(4, "a")) == {"duplicated"}
    assert kinds(post("a", 0), got(2), got(4, "a")) == {"missed"}
    assert kinds(post("a", 0), post("b", 2), got(4, "b", "a")) == {"disordered"}
    assert kinds(post("a", 0, lifetime_s=1), got(4, "a")) == {"late"}


def test_what_was_on_loan_is_given_again_once_that_is_over_and_not_before() -> None:
    loan = (post("a", 0), lent(2, "a"))
    assert kinds(*loan, got(14, "a")) == set()
    assert kinds(*loan, lent(14, "a", lease="m.0"), got(26, "a")) == set()
    assert kinds(*loan, got(6, "a")) == {"double lease"}
    assert kinds(*loan, settled("release", 4, 1), got(6, "a")) == set()
    assert kinds(*loan, settled("extend", 4, 1, ttl_s=30), got(14, "a")) == {"double lease"}
    assert kinds(*loan, got(20)) == {"lost"}


def test_what_was_acknowledged_in_time_is_never_given_again() -> None:
    loan = (post("a", 0), post("b", 2), lent(4, "a", "b"))
    assert kinds(*loan, settled("acknowledge", 6, 2), got(20)) == set()
    assert kinds(*loan, settled("acknowledge", 6, 2), got(20, "a")) == {"duplicated"}
    assert kinds(*loan, settled("acknowledge", 6, 0, "unknown"), got(20, "a", "b")) == set()
    assert kinds(*loan, settled("acknowledge", 6, 1), got(20, "b")) == {"forgotten"}
    assert kinds(*loan, settled("acknowledge", 17, 2), got(20)) == {"overtime"}


def test_a_success_that_hides_a_loss_is_caught() -> None:
    posts = (post("a", 0), post("b", 2), lent(4, "a", "b"))
    part = settled("acknowledge", 6, 1, ids=("a",), is_all=True)
    assert kinds(*posts, part, settled("acknowledge", 17, 1, is_all=True), got(20)) == {"hidden"}
    told = settled("acknowledge", 17, 1, is_all=False, acknowledged=frozenset("a"))
    assert kinds(*posts, part, told, got(20, "b")) == set()
    given_back = settled("release", 8, 1, ids=("b",))
    all_else = settled("acknowledge", 17, 1, is_all=True)
    assert kinds(*posts, part, given_back, all_else, got(20, "b")) == set()
    assert kinds(*posts, part, told, got(20, "a", "b")) == {"duplicated"}


def test_a_lease_is_over_with_its_message() -> None:
    loan = (post("a", 0, lifetime_s=5), lent(2, "a"))
    assert kinds(*loan, settled("acknowledge", 7, 0), got(20)) == set()
    assert kinds(*loan, settled("acknowledge", 7, 1), got(20)) == {"overtime"}


def test_a_stream_acknowledges_what_it_was_delivered_as_it_comes_again() -> None:
    first, second = lent(2, "a", lease="l.1"), lent(6, "b", lease="l.2")
    stream = (post("a", 0), first, post("b", 4), second)
    assert kinds(*stream, settled("resume", 8, 1, last="a"), got(20, "b")) == set()
    assert kinds(*stream, settled("resume", 8, 2, last="a"), got(20, "b")) == {"excess"}
    assert kinds(*stream, settled("resume", 8, 2, last="b"), got(20, "b")) == {"duplicated"}


def test_a_repeat_with_a_key_is_the_same_again_less_what_has_expired() -> None:
    posts = (post("a", 0, lifetime_s=5), post("b", 2), post("c", 7))
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b"), got(11, "c")) == set()
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9), got(11, "c")) == {"inconsistent"}
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b", "c"), got(11)) == {"inconsistent"}
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b", key="l"), got(11, "c")) == {"duplicated"}


def test_a_read_with_a_key_loses_nothing_once_a_repeat_was_answered() -> None:
    requests = (post("a", 0), keyed(2, outcome="cut"))
    assert kinds(*requests, got(14), kills=[2.5]) == set()
    assert kinds(*requests, keyed(4, "a"), got(14), kills=[2.5]) == set()
    assert kinds(*requests, keyed(4), got(14), kills=[2.5]) == {"lost", "missed"}


def test_posts_with_one_key_are_one_message() -> None:
    first = post("a", 0, "unknown")._replace(key="k", id="")
    again = post("a", 2)._replace(key="k")
    assert kinds(first, again, got(4, "a")) == set()
    assert kinds(first, again, again._replace(id="b"), got(4, "a")) == {"duplicated"}
    assert kinds(again, post("b", 4)._replace(key="k"), got(6, "a", "b")) == {"duplicated"}


def test_who_waits_gets_a_message_as_it_comes_and_waits_to_the_end_for_none() -> None:
    assert kinds(waited(0, 2.1, "a"), post("a", 1)) == set()
    assert kinds(waited(0, 4, "a"), post("a", 1)) == {"missed"}
    assert kinds(waited(0, 10), post("a", 1), got(12, "a")) == {"missed"}
    assert kinds(waited(0, 10)) == set()
    assert kinds(waited(0, 5)) == {"impatient"}
    assert kinds(waited(0, 16)) == {"endless"}


def test_a_keyed_long_poll_may_repeat_an_expired_batch_at_once() -> None:
    repeat = keyed(6)._replace(wait_s=10, ended=6.5)
    lost_answer = (keyed(1, outcome="unknown"), repeat)
    assert kinds(post("a", 0, lifetime_s=5), *lost_answer) == set()
    assert kinds(post("a", 0, lifetime_s=5), keyed(1, "a"), repeat) == set()
    assert "impatient" in kinds(post("a", 0, lifetime_s=5), repeat)
    assert "impatient" in kinds(post("a", 0), *lost_answer)
    assert "impatient" in kinds(post("a", 0), keyed(1, "a"), repeat)


def test_a_sender_is_told_what_is_so() -> None:
    sent = post("a", 0)._replace(receipt="r")
    assert kinds(sent, told(2, "pending"), got(4, "a"), told(6, "read")) == set()
    assert kinds(sent, got(2, "a"), told(4, "pending")) == {"untrue"}
    assert kinds(sent, lent(2, "a"), told(4, "leased"), got(14, "a")) == set()
    assert kinds(sent, lent(2, "a"), told(4, "pending"), got(14, "a")) == {"untrue"}
    assert kinds(sent, told(2, "read"), got(4, "a")) == {"untrue"}
    assert kinds(sent, told(2, "expired"), got(4, "a")) == {"untrue"}
    assert kinds(sent, told(2, "pending")._replace(receipt="s"), got(4, "a")) == {"untrue"}


def test_what_was_taken_back_is_in_no_read() -> None:
    sent = post("a", 0)._replace(receipt="r")
    revoked = told(2, "revoked", "revoke")
    assert kinds(sent, revoked, got(4)) == set()
    assert kinds(sent, revoked, got(4, "a")) == {"revoked"}
    assert kinds(sent, got(1, "a"), told(3, "revoked", "revoke")) == {"revoked"}
    assert kinds(sent, told(2, None, "revoke"), got(4)) == set()
    assert kinds(sent, lent(1, "a"), revoked, got(20)) == {"revoked"}


def test_the_sums_add_up() -> None:
    history = History([], [], [])
    history.sums = {"accepted": 4, "read": 1, "expired": 1, "revoked": 1, "pending": 1}
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == set()
    history.sums = {**history.sums, "pending": 0}
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == {"unaccounted"}
