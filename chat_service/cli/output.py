"""The output of a command: text for people on a terminal, otherwise one JSON object per line."""

import fcntl
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any, TextIO

from chat_inbox import Delivered, Message
from chat_service.cli.exit_codes import CommandError, ExitCode, write_stderr, write_stdout
from chat_service.cli.terminal import escape_controls, escape_controls_in_json

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
#: An id begins with this many hexadecimal digits that hold its time of acceptance, in ms.
_TIME_DIGITS = 12
#: Units of time, with their sizes in seconds.
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Output:
    """The output of one command. Methods write at once, and raise `OutputError` if that fails."""

    def __init__(self, is_json: bool | None) -> None:
        """Choose the format. With None, use text if stdout is a terminal, and JSON otherwise.

        Raise `CommandError` if stdout is closed.
        """
        if fcntl.fcntl(sys.stdout.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            # Fail now: after a read, the messages could not be shown.
            raise CommandError(
                ExitCode.REFUSED,
                "standard output is closed: nothing was done; to discard the output, "
                "redirect it to /dev/null",
            )
        is_terminal = sys.stdout.isatty()
        self.is_json = not is_terminal if is_json is None else is_json
        self._has_colors = has_colors(sys.stdout)
        # On a terminal, ASCII keeps JSON from controlling it.
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self._is_ascii = is_terminal or encoding != "utf8"
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def message(self, message: Message, remark: str = "") -> None:
        """Write a message. `remark` is for people only; it stands behind the id and the age."""
        if self.is_json:
            self._json(fields_of(message))
            return
        deliveries = message.deliveries if isinstance(message, Delivered) else 0
        again = f", delivery {deliveries}" if deliveries > 1 and not remark else ""
        below = f"  {message.id}{_age(message.id)}{again}{remark}"
        self._line(f"{escape_controls(message.text)}\n{self.dim(escape_controls(below))}")

    def sync(self) -> None:
        """Raise `OutputError` if the output is not stored.

        Some file systems report a full disk only when a file is closed.
        """
        write_stdout(lambda: os.close(os.dup(sys.stdout.fileno())))

    def record(self, text: str, /, **fields: Any) -> None:
        """Write a result other than a message: `text` for people, `fields` as JSON."""
        if self.is_json:
            self._json(fields)
        else:
            self._line(text)

    def title(self, text: str) -> None:
        """Write a heading, for people only."""
        if not self.is_json:
            self._line(escape_controls(text))

    def note(self, text: str) -> None:
        """Write a remark to stderr, for people only."""
        if not self.is_json:
            write_stderr(_dim(escape_controls(text), has_colors(sys.stderr)))

    def color(self, text: str, code: str) -> str:
        """Return the text in a color, given as an SGR code of the terminal."""
        return f"\x1b[{code}m{text}{_PLAIN}" if self._has_colors else text

    def dim(self, text: str) -> str:
        """Return the text dimmed."""
        return _dim(text, self._has_colors)

    def _json(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=self._is_ascii, separators=(",", ":"))
        self._line(escape_controls_in_json(line))

    def _line(self, line: str) -> None:
        write_stdout(lambda: sys.stdout.write(line + "\n"))


def fields_of(message: Message) -> dict[str, Any]:
    """Return a message as the service writes it in JSON."""
    fields = asdict(message)
    if fields.get("dead", True) is None:
        del fields["dead"]
    return fields


def has_colors(stream: TextIO) -> bool:
    """Return whether to use colors: on a terminal that supports them, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def format_age(seconds: float) -> str:
    """Return a short text for an age, such as "5 min ago"."""
    return f"{_rounded(seconds)} ago" if seconds >= 1 else "just now"


def format_in(seconds: float) -> str:
    """Return a short text for a time to come, such as "in 5 min"."""
    return f"in {_rounded(seconds)}" if seconds >= 1 else "now"


def _rounded(seconds: float) -> str:
    size, unit = next(each for each in _UNITS if seconds >= each[0])
    return f"{seconds / size:.0f} {unit}"


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit that is exact, such as "10 min" or "0.5 s"."""
    for size, unit in _UNITS[:-1]:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _age(message_id: str) -> str:
    try:
        accepted_s = int(message_id[:_TIME_DIGITS], 16) / 1000
    except ValueError:
        return ""
    return f", {format_age(time.time() - accepted_s)}"


def _dim(text: str, has_colors: bool) -> str:
    return f"{_DIM}{text}{_PLAIN}" if has_colors else text
