"""The log lines that a person sees at a terminal."""

from typing import Any

import pytest

from config.terminal_lines import TerminalLines

_REQUEST: dict[str, Any] = {
    "time": "12:00:01",
    "level": "info",
    "logger": "chat.request",
    "event": "request",
    "id": "abc-1",
    "method": "GET",
    "route": "/chat/:username",
    "ms": 0.8,
    "inbox": "b2bf",
    "client": "77aa",
}


def _line(*, colors: bool = False, **fields: Any) -> str:
    return TerminalLines(colors=colors)(None, "", dict(fields))


def test_an_answered_request_is_a_short_line() -> None:
    line = _line(**_REQUEST, status=200)
    assert line == "12:00:01  200 GET /chat/:username  0.8 ms"


@pytest.mark.parametrize(("status", "color"), [(404, "\033[33m"), (503, "\033[31m")])
def test_a_failed_request_is_named_by_its_id(status: int, color: str) -> None:
    assert _line(**_REQUEST, status=status).endswith("0.8 ms  id=abc-1 inbox=b2bf")
    assert color in _line(colors=True, **_REQUEST, status=status)
    assert color not in _line(colors=True, **_REQUEST, status=200)


def test_an_event_has_its_level_and_fields() -> None:
    line = _line(time="12:00:01", level="warning", logger="x", event="slow", reason="a b", n=2)
    assert line == "12:00:01  warning: slow reason='a b' n=2"


def test_no_field_sends_commands_to_the_terminal() -> None:
    line = _line(time="t", level="error", logger="x", event="a\033[2J", name="b\nc", path="\x07")
    assert line.isprintable()


def test_a_traceback_follows_its_line() -> None:
    line = _line(time="t", level="error", logger="x", event="failed", exception="Traceback\n  x")
    assert line == "t  error: failed\nTraceback\n  x"
