"""Checks of the checker: it finds every kind of violation, and no false ones.

The `test_seeded_*` files beside this one seed bugs into the engine.
"""

from collections.abc import Sequence
from typing import Any

from tests.faults.checker import check
from tests.faults.history import (
    CollectionDrop,
    History,
    LeaseOperation,
    PostRecord,
    ReadRecord,
    ReceiptQuery,
)
from workers.dead_letters import DeadLetters


def post(text: str, began: float, outcome: str = "ok", lifetime_s: float = 100) -> PostRecord:
    """A post by one client to one inbox that took a second."""
    return PostRecord("ann", "bob", text, lifetime_s, began, began + 1, outcome, text)  # type: ignore[arg-type]


def scheduled(text: str, began: float, delay_s: float, lifetime_s: float = 100) -> PostRecord:
    """A post of a scheduled message."""
    return post(text, began, lifetime_s=lifetime_s)._replace(delay_s=delay_s)


def read(began: float, *texts: str, outcome: str = "ok") -> ReadRecord:
    """A read of that inbox that took a second."""
    return ReadRecord("bob", began, began + 1, outcome, tuple((text, text) for text in texts))  # type: ignore[arg-type]


def leased(began: float, *texts: str, lease: str = "l.0", ttl_s: float = 10) -> ReadRecord:
    """A lease of messages."""
    return read(began, *texts)._replace(lease=lease, ttl_s=ttl_s)


def dead(began: float, *texts: str, id: str = "copy") -> ReadRecord:
    """A read of the dead-letter inbox."""
    got = read(began)._replace(user="dead/bob")
    return got._replace(messages=tuple((f"{id} {text}", text) for text in texts))


def keyed(began: float, *texts: str, outcome: str = "ok", key: str = "k") -> ReadRecord:
    """A read with a key."""
    return read(began, *texts, outcome=outcome)._replace(key=key, is_all=False)


def waited(began: float, ended: float, *texts: str) -> ReadRecord:
    """A long poll of up to ten seconds."""
    return read(began, *texts)._replace(wait_s=10, ended=ended)


def operated(
    action: str, began: float, messages: int, outcome: str = "ok", **more: Any
) -> LeaseOperation:
    """An operation on that lease that took a second."""
    return LeaseOperation(action, "bob", "l", began, began + 1, outcome, messages, **more)  # type: ignore[arg-type]


def answered(
    began: float, status: str | None, action: str = "track", text: str = "a"
) -> ReceiptQuery:
    """The answer to the sender of a message, after a second."""
    return ReceiptQuery(action, text, "r", began, began + 1, "ok" if status else "unknown", status)  # type: ignore[arg-type]


def kinds(
    *requests: PostRecord | ReadRecord | LeaseOperation | ReceiptQuery,
    kills: Sequence[float] = (),
    max_deliveries: int = 0,
) -> set[str]:
    """Return the kinds of violation that the checker finds."""
    history = History(
        [each for each in requests if isinstance(each, PostRecord)],
        [each for each in requests if isinstance(each, ReadRecord)],
        list(kills),
        [each for each in requests if isinstance(each, LeaseOperation)],
        [each for each in requests if isinstance(each, ReceiptQuery)],
        dead_letters=DeadLetters(max_deliveries),
    )
    return check(history, late_s=0.1, longest_s=5, release_s=5).kinds


def test_reads_once_and_in_order_violate_nothing() -> None:
    assert kinds(post("a", 0), post("b", 2), read(4, "a", "b"), read(6)) == set()


def test_messages_of_a_cut_read_are_undelivered_not_lost() -> None:
    assert kinds(post("a", 0), read(2, outcome="cut"), read(4)) == set()
    assert kinds(post("a", 2), read(0, outcome="cut"), read(4)) == {"lost", "missed"}


def test_an_unknown_read_excuses_losses_only_after_a_kill() -> None:
    requests = (post("a", 0), read(2, outcome="unknown"), read(12))
    assert kinds(*requests) == {"lost", "missed"}
    assert kinds(*requests, kills=[1]) == {"lost", "missed"}
    assert kinds(*requests, kills=[4]) == set()


def test_messages_of_an_unknown_read_must_return_in_time() -> None:
    requests = (post("a", 0), read(2, outcome="unknown"))
    assert kinds(*requests, read(7), read(9, "a")) == set()
    assert kinds(*requests, read(9), read(11, "a")) == {"missed"}


def test_an_expired_message_is_not_lost_but_may_be_missed() -> None:
    assert kinds(post("a", 0, lifetime_s=3), read(9)) == set()
    assert kinds(post("a", 0, lifetime_s=9), read(2), read(12)) == {"missed"}


def dropped(*requests: PostRecord | ReadRecord, began: float = 3, ended: float = 4) -> set[str]:
    """Return what the checker finds if an operator dropped all messages at that time."""
    history = History(
        [each for each in requests if isinstance(each, PostRecord)],
        [each for each in requests if isinstance(each, ReadRecord)],
        [],
        drops=[CollectionDrop(began, ended)],
    )
    return check(history, late_s=0.1, longest_s=5, release_s=5).kinds


def test_a_drop_excuses_only_earlier_messages() -> None:
    assert dropped(post("a", 0), read(6)) == set()
    assert dropped(post("a", 0), read(1.5), read(6)) == {"missed"}
    assert dropped(post("a", 3.5), read(6)) == set()
    assert dropped(post("a", 4.5), read(6)) == {"lost", "missed"}
    assert dropped(post("a", 0), read(6, "a"), read(8, "a")) == {"duplicated"}


def test_a_key_stores_one_message_on_each_side_of_a_drop() -> None:
    first, again = post("a", 0)._replace(key="k"), post("a", 5)._replace(key="k", id="b")
    twice = (read(1.5, "a"), read(7)._replace(messages=(("b", "a"),)))
    assert dropped(first, again, *twice) == set()
    third = again._replace(id="c")
    assert "duplicated" in dropped(first, again, third, *twice)
    assert "duplicated" in dropped(post("a", 4.2)._replace(key="k"), again, *twice[1:])


def test_an_unknown_post_may_appear_a_refused_one_may_not() -> None:
    assert kinds(post("a", 0, "unknown"), read(2, "a")) == set()
    assert kinds(post("a", 0, "unknown"), read(2)) == set()
    assert kinds(post("a", 0, "refused"), read(2, "a")) == {"phantom"}


def test_each_violation_has_its_kind() -> None:
    assert kinds(read(0, "a")) == {"unexpected"}
    assert kinds(post("a", 0), read(2, "a"), read(4, "a")) == {"duplicated"}
    assert kinds(post("a", 0), read(2), read(4, "a")) == {"missed"}
    assert kinds(post("a", 0), post("b", 2), read(4, "b", "a")) == {"disordered"}
    assert kinds(post("a", 0, lifetime_s=1), read(4, "a")) == {"late"}


def test_a_leased_message_is_redelivered_only_after_its_lease() -> None:
    lease = (post("a", 0), leased(2, "a"))
    assert kinds(*lease, read(14, "a")) == set()
    assert kinds(*lease, leased(14, "a", lease="m.0"), read(26, "a")) == set()
    assert kinds(*lease, read(6, "a")) == {"double lease"}
    assert kinds(*lease, operated("release", 4, 1), read(6, "a")) == set()
    assert kinds(*lease, operated("extend", 4, 1, ttl_s=30), read(14, "a")) == {"double lease"}
    assert kinds(*lease, read(20)) == {"lost"}


def test_an_acknowledged_message_is_never_redelivered() -> None:
    lease = (post("a", 0), post("b", 2), leased(4, "a", "b"))
    assert kinds(*lease, operated("acknowledge", 6, 2), read(20)) == set()
    assert kinds(*lease, operated("acknowledge", 6, 2), read(20, "a")) == {"duplicated"}
    assert kinds(*lease, operated("acknowledge", 6, 0, "unknown"), read(20, "a", "b")) == set()
    assert kinds(*lease, operated("acknowledge", 6, 1), read(20, "b")) == {"forgotten"}
    assert kinds(*lease, operated("acknowledge", 17, 2), read(20)) == {"overtime"}


def test_a_success_that_hides_a_loss_is_found() -> None:
    posts = (post("a", 0), post("b", 2), leased(4, "a", "b"))
    part = operated("acknowledge", 6, 1, ids=("a",), is_all=True)
    assert kinds(*posts, part, operated("acknowledge", 17, 1, is_all=True), read(20)) == {"hidden"}
    partial = operated("acknowledge", 17, 1, is_all=False, acknowledged=frozenset("a"))
    assert kinds(*posts, part, partial, read(20, "b")) == set()
    given_back = operated("release", 8, 1, ids=("b",))
    all_else = operated("acknowledge", 17, 1, is_all=True)
    assert kinds(*posts, part, given_back, all_else, read(20, "b")) == set()
    assert kinds(*posts, part, partial, read(20, "a", "b")) == {"duplicated"}


def test_a_lease_ends_with_its_message() -> None:
    lease = (post("a", 0, lifetime_s=5), leased(2, "a"))
    assert kinds(*lease, operated("acknowledge", 7, 0), read(20)) == set()
    assert kinds(*lease, operated("acknowledge", 7, 1), read(20)) == {"overtime"}


def test_a_resumed_stream_acknowledges_its_deliveries() -> None:
    first, second = leased(2, "a", lease="l.1"), leased(6, "b", lease="l.2")
    stream = (post("a", 0), first, post("b", 4), second)
    assert kinds(*stream, operated("resume", 8, 1, last="a"), read(20, "b")) == set()
    assert kinds(*stream, operated("resume", 8, 2, last="a"), read(20, "b")) == {"excess"}
    assert kinds(*stream, operated("resume", 8, 2, last="b"), read(20, "b")) == {"duplicated"}


def test_a_keyed_repeat_has_the_same_unexpired_messages() -> None:
    posts = (post("a", 0, lifetime_s=5), post("b", 2), post("c", 7))
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b"), read(11, "c")) == set()
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9), read(11, "c")) == {"inconsistent"}
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b", "c"), read(11)) == {"inconsistent"}
    assert kinds(*posts, keyed(4, "a", "b"), keyed(9, "b", key="l"), read(11, "c")) == {
        "duplicated"
    }


def test_a_keyed_read_loses_nothing_once_it_is_answered() -> None:
    requests = (post("a", 0), keyed(2, outcome="cut"))
    assert kinds(*requests, read(14), kills=[2.5]) == set()
    assert kinds(*requests, keyed(4, "a"), read(14), kills=[2.5]) == set()
    assert kinds(*requests, keyed(4), read(14), kills=[2.5]) == {"lost", "missed"}


def test_posts_with_one_key_store_one_message() -> None:
    first = post("a", 0, "unknown")._replace(key="k", id="")
    again = post("a", 2)._replace(key="k")
    assert kinds(first, again, read(4, "a")) == set()
    assert kinds(first, again, again._replace(id="b"), read(4, "a")) == {"duplicated"}
    assert kinds(again, post("b", 4)._replace(key="k"), read(6, "a", "b")) == {"duplicated"}


def test_a_long_poll_ends_with_a_message_or_its_time() -> None:
    assert kinds(waited(0, 2.1, "a"), post("a", 1)) == set()
    assert kinds(waited(0, 4, "a"), post("a", 1)) == {"missed"}
    assert kinds(waited(0, 10), post("a", 1), read(12, "a")) == {"missed"}
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


def test_a_receipt_reports_the_true_status() -> None:
    sent = post("a", 0)._replace(receipt="r")
    assert kinds(sent, answered(2, "pending"), read(4, "a"), answered(6, "read")) == set()
    assert kinds(sent, read(2, "a"), answered(4, "pending")) == {"untrue"}
    assert kinds(sent, leased(2, "a"), answered(4, "leased"), read(14, "a")) == set()
    assert kinds(sent, leased(2, "a"), answered(4, "pending"), read(14, "a")) == {"untrue"}
    assert kinds(sent, answered(2, "read"), read(4, "a")) == {"untrue"}
    assert kinds(sent, answered(2, "expired"), read(4, "a")) == {"untrue"}
    assert kinds(sent, answered(2, "pending")._replace(receipt="s"), read(4, "a")) == {"untrue"}


def test_a_revoked_message_is_in_no_read() -> None:
    sent = post("a", 0)._replace(receipt="r")
    revoked = answered(2, "revoked", "revoke")
    assert kinds(sent, revoked, read(4)) == set()
    assert kinds(sent, revoked, read(4, "a")) == {"revoked"}
    assert kinds(sent, read(1, "a"), answered(3, "revoked", "revoke")) == {"revoked"}
    assert kinds(sent, answered(2, None, "revoke"), read(4)) == set()
    assert kinds(sent, leased(1, "a"), revoked, read(20)) == {"revoked"}


def test_counters_that_do_not_add_up_are_a_violation() -> None:
    history = History([], [], [])
    history.sums = {"accepted": 4, "read": 1, "expired": 1, "revoked": 1, "pending": 1}
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == set()
    history.sums = {**history.sums, "pending": 0}
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == {"unaccounted"}


def test_a_key_is_refused_only_to_the_identity_that_used_it() -> None:
    first = post("a", 0)._replace(key="ann k")
    refused = post("b", 2, "refused")._replace(is_reused=True)
    assert kinds(first, refused._replace(key="ann k"), read(4, "a")) == set()
    assert kinds(first, refused._replace(key="eve k"), read(4, "a")) == {"foreign key"}


def test_a_full_inbox_gets_no_more_posts_than_allowed() -> None:
    history = History([], [], [], overruns={"bob": 4}, overrun_max=4)
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == set()
    history.overruns = {"bob": 5}
    assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == {"overfull"}


def test_a_client_starves_if_too_many_posts_overtake_it() -> None:
    flood = [post(text, 0)._replace(client="heavy", queue="0") for text in "abc"]
    slow = post("d", 0.5)._replace(ended=2, client="light", queue="0")
    got = read(4, "a", "b", "c", "d")
    refused = read(9, outcome="refused")._replace(client="light")
    for posts, reads, overtaken_max, found in (
        ([slow], [got], 3, set()),
        ([slow], [got], 2, {"starved"}),
        ([slow], [got], None, set()),
        ([slow._replace(queue="1")], [got], 2, set()),
        ([slow], [got, refused], 3, {"starved"}),
    ):
        history = History([*flood, *posts], reads, [], overtaken_max=overtaken_max)
        assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == found


def test_a_read_behind_a_post_of_its_client_finds_it() -> None:
    first = post("a", 0)._replace(client="light", queue="0")
    behind = read(0.5)._replace(client="light", queue="0")
    found = behind._replace(messages=(("a", "a"),))
    other = behind._replace(client="other")
    assert kinds(first, found) == set()
    assert kinds(first, other, read(2, "a")) == set()
    assert kinds(first, behind._replace(queue="1"), read(2, "a")) == set()
    assert kinds(first, behind, read(2, "a")) == {"ahead"}
    assert kinds(first, behind, read(0.7, "a")) == set()


def test_a_scheduled_message_is_in_no_read_before_its_time() -> None:
    late = scheduled("a", 0, delay_s=10)
    assert kinds(late, read(2), read(11, "a")) == set()
    assert kinds(late, read(2, "a")) == {"early"}
    assert kinds(late, leased(2, "a")) >= {"early"}
    assert kinds(late, read(11, "a"), read(14, "a")) == {"duplicated"}


def test_a_scheduled_message_is_readable_soon_after_its_time() -> None:
    late = scheduled("a", 0, delay_s=10)
    assert kinds(late, read(11.5), read(14, "a")) == set()
    assert kinds(late, read(13), read(15, "a")) == {"missed"}
    assert kinds(late, read(14)) == {"lost", "missed"}
    # Its time has not come when the run ends.
    assert kinds(late, read(9)) == set()


def test_faults_delay_scheduled_messages_for_a_while() -> None:
    for faults, found in (([(5.0, 9.0)], set()), ([(0.0, 0.5)], {"missed"})):
        history = History([scheduled("a", 0, 15)], [read(18), read(30, "a")], [], faults=faults)
        assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == found


def test_a_scheduled_message_lives_from_its_time_on() -> None:
    late = scheduled("a", 0, delay_s=10, lifetime_s=5)
    assert kinds(late, read(13.5, "a")) == set()
    assert kinds(late, read(13)) == {"lost", "missed"}
    assert kinds(late, read(17)) == set()
    assert kinds(late, read(17, "a")) == {"late"}


def test_a_receipt_calls_a_message_scheduled_until_its_time() -> None:
    late = scheduled("a", 0, delay_s=10)._replace(receipt="r")
    assert kinds(late, answered(2, "scheduled"), answered(12, "pending"), read(13, "a")) == set()
    assert kinds(late, answered(2, "pending"), read(13, "a")) == {"untrue"}
    assert kinds(late, answered(12, "scheduled"), read(13, "a")) == {"untrue"}
    assert kinds(late, answered(2, "revoked", "revoke"), read(13)) == set()
    assert kinds(late, answered(2, "revoked", "revoke"), read(13, "a")) == {"revoked"}
    assert "untrue" in kinds(post("a", 0)._replace(receipt="r"), answered(2, "scheduled"))


#: A message that is leased for ten seconds, and released with a delay of ten.
PUT_OFF = (post("a", 0), leased(2, "a"), operated("release", 4, 1, delay_s=10))


def test_a_message_is_in_no_read_before_its_delay_ends() -> None:
    assert kinds(*PUT_OFF, read(6), read(14, "a")) == set()
    assert kinds(*PUT_OFF, read(6, "a")) == {"early"}
    assert kinds(*PUT_OFF, leased(12.5, "a", lease="m.0", ttl_s=1), read(16, "a")) == {"early"}
    # A repeat does not change the delay.
    again = operated("release", 8, 1, delay_s=10)
    assert kinds(*PUT_OFF, again, read(14, "a")) == set()
    shorter = operated("release", 8, 1, delay_s=1)
    assert kinds(*PUT_OFF[:2], operated("release", 4, 0, "unknown"), shorter, read(6, "a")) == set()
    # Perhaps it was not released: then its lease ends.
    unknown = operated("release", 4, 0, "unknown", delay_s=10)
    assert kinds(*PUT_OFF[:2], unknown, read(12, "a")) == set()
    assert kinds(*PUT_OFF[:2], unknown, read(6, "a")) == {"early"}


def test_a_message_is_readable_soon_after_its_delay() -> None:
    assert kinds(*PUT_OFF, read(15), read(19, "a")) == set()
    assert kinds(*PUT_OFF, read(17), read(19, "a")) == {"missed"}
    assert kinds(*PUT_OFF, waited(15, 20, "a")) == {"missed"}
    assert kinds(*PUT_OFF, waited(15, 17, "a")) == set()
    assert kinds(*PUT_OFF, read(17)) == {"lost", "missed"}
    assert kinds(post("a", 0, lifetime_s=15), *PUT_OFF[1:], read(17)) == set()
    # Its time has not come when the run ends.
    assert kinds(*PUT_OFF, read(9)) == set()


def test_a_lease_that_was_released_with_a_delay_is_over() -> None:
    acknowledged = operated("acknowledge", 6, 1, is_all=True)
    assert "overtime" in kinds(*PUT_OFF, acknowledged, read(17))
    assert "overtime" in kinds(*PUT_OFF, operated("extend", 6, 1, ttl_s=10), read(17, "a"))
    # It may have been acknowledged before.
    assert kinds(*PUT_OFF[:2], acknowledged._replace(began=3, ended=4), read(17)) == set()


def test_a_delay_keeps_no_message_from_its_end() -> None:
    assert kinds(*PUT_OFF, read(8), dead(10, "a"), max_deliveries=1) == set()
    sent = (PUT_OFF[0]._replace(receipt="r"), *PUT_OFF[1:])
    assert kinds(*sent, answered(6, "revoked", "revoke"), read(17)) == set()
    assert kinds(*sent, answered(6, "revoked", "revoke"), read(17, "a")) == {"revoked"}
    assert kinds(*sent, answered(6, "scheduled"), answered(16, "pending"), read(17, "a")) == set()
    assert kinds(*sent, answered(16, "scheduled"), read(18, "a")) >= {"untrue"}
    assert kinds(*sent[:2], answered(6, "scheduled"), read(18, "a")) == {"untrue"}


#: A message that is leased twice, for two seconds each time.
TWICE = (post("a", 0), leased(2, "a", ttl_s=2), leased(6, "a", lease="m.0", ttl_s=2))


def test_an_exhausted_message_is_in_its_dead_letter_inbox() -> None:
    assert kinds(*TWICE, read(12), dead(14, "a"), max_deliveries=2) == set()
    assert kinds(*TWICE, read(12), dead(14), max_deliveries=2) == {"lost"}
    assert kinds(*TWICE, read(12, "a"), dead(14), max_deliveries=2) == {"overdelivered"}
    assert kinds(*TWICE, read(12, "a"), dead(14), max_deliveries=3) == set()
    assert kinds(*TWICE, read(12), dead(14, "a"), max_deliveries=3) == {"premature"}


def test_a_message_dies_once_and_stays_dead() -> None:
    assert "duplicated" in kinds(*TWICE, dead(12, "a"), read(14, "a"), max_deliveries=2)
    assert kinds(*TWICE, dead(12, "a"), dead(14, "a"), max_deliveries=2) == {"duplicated"}
    twice = kinds(*TWICE, dead(12, "a"), dead(14, "a", id="other"), max_deliveries=2)
    assert twice == {"duplicated"}
    kept = operated("acknowledge", 3, 1)
    assert "duplicated" in kinds(*TWICE[:2], kept, dead(12, "a"), max_deliveries=1)
    assert "double lease" in kinds(*TWICE[:1], leased(2, "a"), dead(5, "a"), max_deliveries=1)


def test_a_dead_letter_lives_for_an_hour_at_least() -> None:
    mortal = (post("a", 0, lifetime_s=9), leased(2, "a", ttl_s=2))
    held = dead(12, "a")._replace(lease="d.0", ttl_s=2)
    assert kinds(*mortal, held, dead(3000, "a"), read(3002), max_deliveries=1) == set()
    assert kinds(*mortal, held, dead(3000), read(3002), max_deliveries=1) == {"lost"}


def test_a_receipt_calls_a_message_dead_only_if_it_is() -> None:
    sent = (post("a", 0)._replace(receipt="r"), *TWICE[1:])
    told = answered(10, "dead")
    assert kinds(*sent, told, dead(12, "a"), max_deliveries=2) == set()
    assert "lost" in kinds(*sent, told, dead(12), max_deliveries=2)
    assert "untrue" in kinds(*sent, answered(4, "dead"), dead(12, "a"), max_deliveries=2)
    after = (dead(12, "a"), answered(14, "pending"))
    assert kinds(*sent, *after, max_deliveries=2) == {"untrue"}


def test_a_lease_reports_the_number_of_deliveries() -> None:
    first, second = (each._replace(deliveries=(1,)) for each in TWICE[1:])
    end = read(12, "a")
    assert kinds(TWICE[0], first, second, end) == {"miscounted"}
    assert kinds(TWICE[0], first, second._replace(deliveries=(2,)), end) == set()
    # A lease that its client did not get counts once it has run out.
    silent = first._replace(outcome="unknown", messages=(), deliveries=())
    assert kinds(TWICE[0], silent, second._replace(deliveries=(2,)), end) == set()
    silent = silent._replace(ttl_s=30)
    assert "miscounted" in kinds(TWICE[0], silent, second._replace(deliveries=(2,)), end)


def test_each_death_is_counted_once() -> None:
    history = History(
        [TWICE[0]], [*TWICE[1:], read(12), dead(14, "a")], [], dead_letters=DeadLetters(2)
    )
    for deaths, found in ((1, set()), (2, {"unaccounted"}), (0, {"unaccounted"})):
        history.sums = {"accepted": deaths + 1, "dead": deaths, "read": 1}
        for fate in ("expired", "revoked", "pending"):
            history.sums = {**history.sums, fate: 0}
        assert check(history, late_s=0.1, longest_s=5, release_s=5).kinds == found
