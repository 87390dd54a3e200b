"""What a command writes to stdout: for people on a terminal, else a JSON object on each line."""

import fcntl
import json
import os
import sys
import time
from typing import Any, TextIO

from chat_service.cli.exit_codes import ExitCode, Failed, beside, written
from chat_service.cli.terminal import escape_controls, harmless_json
from chat_service.client.message import Message

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
#: Digits of an id that are the milliseconds of its acceptance.
_TIME_DIGITS = 12


class Output:
    """One command's output. Each call writes at once, and raises `Unwritten` if that fails."""

    def __init__(self, is_json: bool | None) -> None:
        """None: as stdout is, a terminal or not. Raises `Failed` if stdout is closed."""
        if fcntl.fcntl(sys.stdout.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            # Now, since a command that reads messages has nowhere to put them.
            raise Failed(
                ExitCode.REFUSED,
                "standard output is closed: nothing was done; to discard the output, "
                "redirect it to /dev/null",
            )
        is_terminal = sys.stdout.isatty()
        self.is_json = not is_terminal if is_json is None else is_json
        self._has_colours = has_colours(sys.stdout)
        # On a terminal, escapes keep also JSON from being obeyed.
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self._is_ascii = is_terminal or encoding != "utf8"
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def message(self, message: Message) -> None:
        """A message."""
        if self.is_json:
            self._json(message._asdict())
        else:
            self._line(
                f"{escape_controls(message.text)}\n{self.dim(f'  {message.id}{_age(message.id)}')}"
            )

    def settle(self) -> None:
        """Have what was written stored. Some file systems report a full disk only at a close."""
        written(lambda: os.close(os.dup(sys.stdout.fileno())))

    def record(self, words: str, /, **fields: Any) -> None:
        """Anything else: in words for people, as fields for programs."""
        if self.is_json:
            self._json(fields)
        else:
            self._line(words)

    def title(self, words: str) -> None:
        """What is said above some records, to people."""
        if not self.is_json:
            self._line(escape_controls(words))

    def note(self, words: str) -> None:
        """What only people want to know, beside the output."""
        if not self.is_json:
            beside(_dim(escape_controls(words), has_colours(sys.stderr)))

    def colour(self, words: str, code: str) -> str:
        """Words in a colour, by its number among the terminal's."""
        return f"\x1b[{code}m{words}{_PLAIN}" if self._has_colours else words

    def dim(self, words: str) -> str:
        """Words that matter less."""
        return _dim(words, self._has_colours)

    def _json(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=self._is_ascii, separators=(",", ":"))
        self._line(harmless_json(line))

    def _line(self, line: str) -> None:
        written(lambda: sys.stdout.write(line + "\n"))


def has_colours(stream: TextIO) -> bool:
    """Whether to write colours there: to a terminal that has some, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def ago(seconds: float) -> str:
    """How long ago, in a word."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def span(seconds: float) -> str:
    """A time, in a word or two: as exact as it is short."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _age(message_id: str) -> str:
    try:
        accepted_s = int(message_id[:_TIME_DIGITS], 16) / 1000
    except ValueError:
        return ""
    return f", {ago(time.time() - accepted_s)}"


def _dim(words: str, has_colours: bool) -> str:
    return f"{_DIM}{words}{_PLAIN}" if has_colours else words
