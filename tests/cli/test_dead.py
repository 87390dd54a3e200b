"""`chat dead`: lists the messages that were leased too often, and returns them."""

import asyncio
import os
from collections.abc import Iterator
from unittest.mock import AsyncMock, Mock

import pytest

from chat_inbox import Delivered, Origin
from chat_service.cli.commands.dead import _for_each
from tests.cli.conftest import Chat
from tests.support.server import Server


@pytest.fixture(scope="module")
def server(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service on which each message is leased once."""
    with Server(
        *(tmp_path_factory.mktemp("server"), "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=f"test_cli_dead_{os.getpid()}",
        CHAT_DEFAULT_TIMEOUT_S="3600",
        CHAT_MAX_DELIVERIES="1",
    ) as running:
        yield running


def make_dead(chat: Chat, name: str, *texts: str) -> list[str]:
    """Make dead letters, and return the ids that the messages had."""
    lines = "".join(f"{text}\n" for text in texts).encode()
    ids = [each["id"] for each in chat("send", name, "--lines", stdin=lines).records]
    (lease,) = chat("lease", name).records
    assert chat("release", name, lease["lease"]).code == 0
    # Waits until they have moved, since they move together.
    (moved,) = chat("lease", f"dead/{name}", "--wait", "20s").records
    while len(moved["messages"]) < len(texts):
        chat("release", f"dead/{name}", moved["lease"])
        (moved,) = chat("lease", f"dead/{name}", "--wait", "20s").records
    chat("release", f"dead/{name}", moved["lease"])
    return ids


def test_dead_letters_are_listed_and_stay(chat: Chat, name: str) -> None:
    none = chat("dead", name)
    assert (none.code, none.out) == (1, "")
    assert "without the setting max_deliveries" in chat("dead", name, "--text").err
    origins = make_dead(chat, name, "one", "two\x1b[31m")
    for _ in range(2):
        listed = chat("dead", name)
        assert listed.code == 0
        assert [each["text"] for each in listed.records] == ["one", "two\x1b[31m"]
        assert [each["dead"] for each in listed.records] == [
            {"username": name, "id": origin, "deliveries": 1} for origin in origins
        ]
    shown = chat("dead", name, "--text").out
    assert "two\\x1b[31m\n" in shown
    assert f"; leased once as {origins[1]}\n" in shown
    assert len(chat("dead", name, "--limit", "1").records) == 1
    assert chat("count", f"dead/{name}").records == [{"unread": 2}]


def test_dead_letters_are_returned_once(chat: Chat, name: str) -> None:
    make_dead(chat, name, "one", "two")
    # An ordinary message in that inbox is not one of them.
    chat("send", f"dead/{name}", "a note")
    assert len(chat("dead", name, "--return", "--limit", "1").records) == 1
    returned = chat("dead", name, "--return", "--timeout", "1d")
    assert (returned.code, len(returned.records)) == (0, 1)
    assert chat("dead", name, "--return").code == 1
    read = chat("read", name).records
    assert [each["text"] for each in read] == ["one", "two"]
    assert returned.records[0]["id"] == read[1]["id"]


def test_returned_messages_live_for_a_day(chat: Chat, name: str) -> None:
    make_dead(chat, name, "one")
    (letter,) = chat("dead", name).records
    (returned,) = chat("dead", name, "--return").records
    # The same key with another lifetime would be refused.
    key = f"return-{letter['id']}"
    again = chat("send", name, "one", "--key", key, "--timeout", "1d")
    assert [each["id"] for each in again.records] == [returned["id"]]


def test_an_interrupted_return_is_repeated_safely(chat: Chat, name: str) -> None:
    make_dead(chat, name, "one")
    (letter,) = chat("dead", name).records
    # As a run that was killed after its post, with another lifetime.
    key = f"return-{letter['id']}"
    assert chat("send", name, "one", "--key", key, "--timeout", "2h").code == 0
    assert chat("dead", name, "--return").records == [{"returned": letter["id"], "id": None}]
    assert chat.texts(name) == ["one"]
    assert chat("dead", name).code == 1


def test_a_lifetime_needs_a_return(chat: Chat, name: str) -> None:
    refused = chat("dead", name, "--timeout", "1h")
    assert (refused.code, refused.out) == (2, "")
    assert "add --return" in refused.err


def test_a_letter_that_is_found_again_is_handled_once() -> None:
    # As when the first lease ends during a slow output.
    letter = Delivered("one", "1" * 32, 3, Origin("bob", "2" * 32, 2))
    lease = Mock(messages=[letter], release=AsyncMock())
    session, handle = Mock(), AsyncMock()
    session.chat.lease = AsyncMock(return_value=lease)
    assert asyncio.run(_for_each(session, "bob", "dead/bob", None, handle)) == 1
    handle.assert_awaited_once()
