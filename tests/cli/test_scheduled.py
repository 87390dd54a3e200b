"""Messages that can be read later: `chat send --in` and `--at`, and what `chat status` says."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.cli.conftest import Chat


def due_at(chat: Chat, message_id: str, receipt: str) -> float:
    """Return the due time of a scheduled message, as a Unix time."""
    (found,) = chat("status", message_id, receipt).records
    assert found["status"] == "scheduled"
    return datetime.fromisoformat(found["at"]).timestamp()


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("1.5m", 90), ("2h", 7200), (".5d", 43200)]
)
def test_a_message_can_be_sent_for_later(chat: Chat, name: str, given: str, seconds: int) -> None:
    before = time.time()
    (sent,) = chat("send", name, "later", "--in", given, "--receipt").records
    after = time.time()
    assert chat("count", name).records == [{"unread": 0}]
    due = due_at(chat, sent["id"], sent["receipt"])
    assert before - 1 <= due - seconds <= after + 1
    shown = chat("status", sent["id"], sent["receipt"], "--text").out
    assert shown.startswith("scheduled  in ")
    assert chat("revoke", sent["id"], sent["receipt"]).code == 0


def test_a_due_message_is_read(chat: Chat, name: str) -> None:
    chat("send", name, "soon", "--in", "0.2s")
    assert [each["text"] for each in chat("read", name, "--wait", "20s").records] == ["soon"]


def test_a_message_can_be_sent_for_a_local_time(chat: Chat, name: str) -> None:
    # West of UTC by five hours, without summer time.
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=30)
    local = (due - timedelta(hours=5)).replace(tzinfo=None).isoformat()
    for given in (local, due.isoformat(), due.isoformat().replace("+00:00", "Z")):
        sent = chat("send", name, "later", "--at", given, "--receipt", TZ="EST5")
        (found,) = sent.records
        assert abs(due_at(chat, found["id"], found["receipt"]) - due.timestamp()) < 1
    (one, two) = chat("send", name, "--lines", "--receipt", "--at", given, stdin=b"a\nb\n").records
    assert abs(due_at(chat, two["id"], two["receipt"]) - due.timestamp()) < 1
    assert one["line"] == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--at 2020-12-01T09:00", "'2020-12-01T09:00' is in the past"),
        ("--at 2099-03-29T02:30", "does not exist here, because clocks go forward then"),
        ("--in 5w", "is not a duration such as"),
        ("--in -5", "is not a duration such as"),
        ("--in 5 --at 2099-12-01T09:00", "Give either --in or --at"),
        ("--key k --at 2099-12-01T09:00", "--key needs --in instead of --at"),
        ("--in 4000d", "the delay (--in, --at) must be a number of seconds from 0 to"),
        ("--at 2199-12-01T09:00", "the delay (--in, --at) must be a number of seconds from 0 to"),
    ],
)
def test_a_wrong_time_is_refused(chat: Chat, name: str, words: str, reason: str) -> None:
    refused = chat(*("send", name, "x", *words.split()), TZ="CET-1CEST,M3.5.0,M10.5.0/3")
    assert (refused.code, refused.out) == (2, "")
    assert reason in refused.err


def test_a_key_stands_for_the_delay_too(chat: Chat, name: str) -> None:
    for _ in range(2):
        assert chat("send", name, "x", "--in", "1h", "--key", "k").code == 0
    other = chat("send", name, "x", "--in", "2h", "--key", "k")
    assert (other.code, "this --key was used before, with another text" in other.err) == (2, True)
