"""The share of all writes that a process learns from the times in the replies to its updates."""

import pytest

from workers.write_share import WriteShare


def observe_seconds(share: WriteShare, seconds: range, writes: int, updates: int) -> None:
    """Let seconds pass, with so many writes of all processes and updates of this one in each."""
    for second in seconds:
        for part in range(1, 5):
            share.observe(second, writes * part // 4, updates // 4)


def test_a_process_alone_does_half_of_all_writes() -> None:
    share = WriteShare()
    observe_seconds(share, range(100, 110), writes=2000, updates=1000)
    assert share.take() == pytest.approx(0.5)


def test_the_writes_of_others_lower_the_share() -> None:
    share = WriteShare()
    observe_seconds(share, range(100, 110), writes=16_000, updates=1000)
    assert share.take() == pytest.approx(1 / 16)


def test_the_share_is_unknown_before_a_second_is_over() -> None:
    share = WriteShare()
    assert share.take() == 0
    share.observe(100, 10, 5)
    assert share.take() == 0


def test_the_share_is_unknown_without_updates() -> None:
    share = WriteShare()
    observe_seconds(share, range(100, 110), writes=2000, updates=1000)
    assert share.take() > 0
    assert share.take() == 0
    share.observe(110, 10, 5)
    assert share.take() > 0


def test_a_late_reply_does_not_count_for_a_later_second() -> None:
    share = WriteShare()
    share.observe(101, 40, 20)
    share.observe(100, 9000, 20)
    share.observe(102, 1, 1)
    assert share.take() == 1


def test_others_that_begin_to_write_are_noticed_in_seconds() -> None:
    share = WriteShare()
    observe_seconds(share, range(100, 110), writes=2000, updates=1000)
    observe_seconds(share, range(110, 115), writes=16_000, updates=1000)
    assert share.take() < 1 / 12
