"""Names of dead-letter inboxes, and when a message is exhausted."""

import pytest

from workers.dead_letters import DeadLetters


@pytest.mark.parametrize(
    ("deliveries", "is_dead_letter", "is_exhausted"),
    [(2, False, False), (3, False, True), (4, False, True), (3, True, False)],
)
def test_a_message_is_exhausted_by_its_last_delivery(
    deliveries: int, is_dead_letter: bool, is_exhausted: bool
) -> None:
    rules = DeadLetters(max_deliveries=3)
    assert rules.is_exhausted(deliveries, is_dead_letter=is_dead_letter) == is_exhausted
    assert not DeadLetters().is_exhausted(deliveries, is_dead_letter=is_dead_letter)


def test_a_dead_letter_inbox_is_named_after_the_inbox() -> None:
    assert DeadLetters().inbox_of("bob") == "dead/bob"
    assert DeadLetters(inbox="{username}.dead").inbox_of("{username}") == "{username}.dead"


def test_long_names_stay_within_the_limit_and_apart() -> None:
    rules = DeadLetters(username_chars_max=128)
    assert rules.inbox_of("b" * 123) == "dead/" + "b" * 123
    names = {rules.inbox_of("b" * length + end) for length in (123, 127) for end in "xy"}
    assert {len(name) for name in names} == {128}
    assert len(names) == 4
    assert all(name.startswith("dead/bbb") for name in names)
