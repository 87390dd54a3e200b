"""The checker is believed since it catches every bug that is seeded, and nothing else."""

from collections.abc import Sequence

import pytest

from tests.faults.bugs import BUGS, Bug, detect
from tests.faults.checker import check
from tests.faults.history import Got, History, Posted

SCHEDULES = 3000


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Bug) -> None:
    assert detect(bug, SCHEDULES) is not None


def post(text: str, began: float, outcome: str = "ok", lifetime_s: float = 100) -> Posted:
    """A post of one client to one inbox, that took a second."""
    return Posted("ann", "bob", text, lifetime_s, began, began + 1, outcome, text)  # type: ignore[arg-type]


def got(began: float, *texts: str, outcome: str = "ok") -> Got:
    """A read of that inbox, that took a second."""
    return Got("bob", began, began + 1, outcome, tuple((text, text) for text in texts))  # type: ignore[arg-type]


def kinds(*requests: Posted | Got, kills: Sequence[float] = ()) -> set[str]:
    """What the checker says of a history."""
    posts = [each for each in requests if isinstance(each, Posted)]
    reads = [each for each in requests if isinstance(each, Got)]
    return check(History(posts, reads, list(kills)), late_s=0.1, longest_s=5, release_s=5).kinds


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
