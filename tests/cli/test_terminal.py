"""Output on a terminal is for people, and messages cannot control the terminal."""

import re

import pytest

from chat_service.cli.terminal import escape_controls
from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal

#: Moves the cursor, sets the title, clears the screen and reverses text, with C0, C1 and others.
_NASTY = "a\x1b[5;5Hb\x1b]0;owned\x07c\r\x08\x9b2Jd\u202ee\x7f\tf\ng"


def shown(chat: Chat, *words: str, **environ: str) -> str:
    """Return what a command writes to a terminal."""
    with Terminal(chat, *words, **environ) as terminal:
        assert terminal.exit_code() == 0
        return terminal.seen.decode()


@pytest.mark.parametrize("form", ["--text", "--json"])
def test_a_message_cannot_move_the_cursor_or_set_the_title(
    chat: Chat, name: str, form: str
) -> None:
    chat("send", name, stdin=_NASTY.encode())
    seen = shown(chat, "read", name, form, NO_COLOR="1")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", seen), ascii(seen)
    # The terminal converts our newlines to \r\n.
    assert "\r" not in seen.replace("\r\n", "")
    assert "owned" in seen


def test_messages_have_a_dim_line_unless_colors_are_off(chat: Chat, name: str) -> None:
    (sent,) = chat("send", name, "hello").records
    with_colors = shown(chat, "read", name)
    assert re.fullmatch(rf"hello\r\n\x1b\[2m  {sent['id']}, [^\r\n]*\x1b\[0m\r\n", with_colors)
    chat("send", name, "hello")
    assert "\x1b" not in shown(chat, "read", name, NO_COLOR="1")
    chat("send", name, "hello")
    assert "\x1b" not in shown(chat, "read", name, TERM="dumb")


def test_errors_cannot_control_the_terminal(chat: Chat) -> None:
    with Terminal(chat, "status", "x", "\x1b]0;owned\x07", NO_COLOR="1") as terminal:
        assert terminal.exit_code() != 0
        assert b"\x1b" not in terminal.seen


def test_text_in_many_languages_is_unchanged() -> None:
    text = "Grüße, いろは, דג סקרן, 👩‍👩‍👧 🏳️‍🌈\n\t"
    assert escape_controls(text) == text
