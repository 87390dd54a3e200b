"""On a terminal: for people, and nothing that a stranger wrote is obeyed."""

import re

import pytest

from chat_service.cli.terminal import escape_controls
from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal

#: Moves the cursor, sets the title, clears the screen, turns the writing round, by C0, C1 and more.
_NASTY = "a\x1b[5;5Hb\x1b]0;owned\x07c\r\x08\x9b2Jd\u202ee\x7f\tf\ng"


def shown(chat: Chat, *words: str, **environ: str) -> str:
    """What a command writes to a terminal."""
    with Terminal(chat, *words, **environ) as terminal:
        assert terminal.ended() == 0
        return terminal.seen.decode()


@pytest.mark.parametrize("form", ["--text", "--json"])
def test_a_message_cannot_move_the_cursor_or_set_the_title(
    chat: Chat, name: str, form: str
) -> None:
    chat("send", name, stdin=_NASTY.encode())
    seen = shown(chat, "read", name, form, NO_COLOR="1")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", seen), ascii(seen)
    # The terminal itself makes \r\n of our newlines.
    assert "\r" not in seen.replace("\r\n", "")
    assert "owned" in seen


def test_people_see_the_text_and_a_dim_line_unless_they_want_no_colours(
    chat: Chat, name: str
) -> None:
    (sent,) = chat("send", name, "hello").records
    with_colours = shown(chat, "read", name)
    assert re.fullmatch(rf"hello\r\n\x1b\[2m  {sent['id']}, [^\r\n]*\x1b\[0m\r\n", with_colours)
    chat("send", name, "hello")
    assert "\x1b" not in shown(chat, "read", name, NO_COLOR="1")
    chat("send", name, "hello")
    assert "\x1b" not in shown(chat, "read", name, TERM="dumb")


def test_what_the_service_says_is_harmless_too(chat: Chat) -> None:
    with Terminal(chat, "status", "x", "\x1b]0;owned\x07", NO_COLOR="1") as terminal:
        assert terminal.ended() != 0
        assert b"\x1b" not in terminal.seen


def test_text_of_many_languages_stays_as_it_is() -> None:
    text = "Grüße, いろは, דג סקרן, 👩‍👩‍👧 🏳️‍🌈\n\t"
    assert escape_controls(text) == text
