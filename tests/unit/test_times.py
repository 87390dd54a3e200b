"""Times on the command line: local time, offsets, and the days on which clocks change."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click
import pytest

from chat_service.cli.param_types import LocalTime


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a time zone with summer time. Clocks change at 01:00 UTC in March and October."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def converted(text: str) -> str:
    """Return the time that an option means, in UTC."""
    return LocalTime().convert(text, None, None).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2099-12-01T09:00", "2099-12-01 08:00:00.000000"),
        ("2099-07-01T09:00", "2099-07-01 07:00:00.000000"),
        ("2099-12-01 09:00:30.25", "2099-12-01 08:00:30.250000"),
        ("2099-12-01T09:00Z", "2099-12-01 09:00:00.000000"),
        ("2099-12-01T09:00+05:30", "2099-12-01 03:30:00.000000"),
        # Clocks go forward on 29 March at 02:00, and back on 25 October at 03:00.
        ("2099-03-29T01:59:59", "2099-03-29 00:59:59.000000"),
        ("2099-03-29T03:00", "2099-03-29 01:00:00.000000"),
        ("2099-10-25T01:59:59", "2099-10-24 23:59:59.000000"),
        ("2099-10-25T03:00", "2099-10-25 02:00:00.000000"),
        ("2099-10-25T02:30+02:00", "2099-10-25 00:30:00.000000"),
        ("2099-10-25T02:30+01:00", "2099-10-25 01:30:00.000000"),
    ],
)
def test_a_time_is_local_unless_it_has_an_offset(given: str, meant: str) -> None:
    assert converted(given) == meant


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("2099-03-29T02:30", "does not exist here, because clocks go forward then"),
        ("2099-10-25T02:30", "write 2099-10-25T02:30:00+02:00 or 2099-10-25T02:30:00+01:00"),
        ("2020-12-01T09:00", "is in the past"),
        ("2099-12-01", "has no time of day; add one, such as 2099-12-01T09:00"),
        ("tomorrow", "is not a time such as"),
        ("10m", "is not a time such as"),
        ("2099-13-01T09:00", "is not a time such as"),
        ("0001-01-01T00:00", "is not a time such as"),
        ("", "is not a time such as"),
    ],
)
def test_an_unclear_or_past_time_is_refused(given: str, reason: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        LocalTime().convert(given, None, None)
    assert reason in str(refused.value)


def test_the_past_ends_now_whatever_the_offset() -> None:
    now = datetime.now(UTC)
    for hours in (-11, 0, 14):
        there = (now + timedelta(hours=hours)).replace(tzinfo=None)
        offset = f"{'-' if hours < 0 else '+'}{abs(hours):02}:00"
        with pytest.raises(click.BadParameter, match="in the past"):
            converted(f"{(there - timedelta(seconds=1)).isoformat()}{offset}")
        converted(f"{(there + timedelta(hours=1)).isoformat()}{offset}")
