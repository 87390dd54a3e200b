"""Log lines for a person at a terminal: the local time, what happened, and few fields.

`config.log` uses it if stderr is a terminal. Files and pipes get all fields.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

_DIM, _RED, _YELLOW, _END = "\033[2m", "\033[31m", "\033[33m", "\033[0m"
_COLORS = {"warning": _YELLOW, "error": _RED, "critical": _RED}
_REQUEST_LOGGER = "chat.request"


class TerminalLines:
    """Renders a structlog event. A processor: call it with the fields of one event."""

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors

    def __call__(self, _logger: object, _name: str, fields: MutableMapping[str, Any]) -> str:
        """Return the line, and the traceback below it if there is one."""
        time, level = str(fields.pop("time", "")), str(fields.pop("level", "info"))
        logger, event = fields.pop("logger", ""), str(fields.pop("event", ""))
        traceback = fields.pop("exception", "")
        color = _COLORS.get(level, "")
        if logger == _REQUEST_LOGGER and event == "request":
            text, color = _request(fields)
        else:
            said = "" if level == "info" else f"{level}: "
            text = " ".join((f"{said}{_printable(event)}", *_pairs(fields)))
        line = f"{self._paint(time, _DIM)}  {self._paint(text, color)}"
        return f"{line}\n{traceback}" if traceback else line

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{_END}" if self._colors and color else text


def _request(fields: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text about a request, and its color. Only one that failed is named by its id."""
    status = int(fields.get("status", 0))
    text = f"{status} {fields.get('method', '')} {fields.get('route', '')}  {fields.get('ms')} ms"
    if status < 400:
        return _printable(text), ""
    more = _pairs({name: fields[name] for name in ("id", "inbox") if name in fields})
    return " ".join((_printable(text), "", *more)), _RED if status >= 500 else _YELLOW


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    """Return the fields as words. Values with spaces are quoted."""
    return [
        f"{name}={text if text and ' ' not in text else repr(text)}"
        for name, value in fields.items()
        if (text := _printable(str(value))) or value is not None
    ]


def _printable(text: str) -> str:
    """Escape control characters, which would be commands to the terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]
