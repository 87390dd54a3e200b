"""How a command ends: its exit codes, and the one line on stderr that says what went wrong.

Every command raises `Failed` for what its user has to know; `chat_service.cli.main` prints it.
"""

import errno
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import TextIO

from chat_service.cli.terminal import escape_controls


class ExitCode(IntEnum):
    """Exit codes, as `chat --help` and docs/command-line.md list them."""

    DONE = 0
    #: Nothing there, not ready, or too late.
    NOTHING = 1
    #: Bad arguments, bad settings, or refused by the service.
    REFUSED = 2
    PORT = 3
    DATABASE = 4
    DATA_DIR = 5
    UNREACHABLE = 6
    UNKNOWN = 7
    #: The output could not be written: a full disk, a closed stream.
    UNWRITTEN = 8
    #: What a shell says of programs that SIGHUP or SIGINT ended.
    HUNG_UP = 129
    INTERRUPTED = 130
    #: What a shell says of a program that SIGTERM ended.
    TERMINATED = 143
    #: Whoever read the output has gone; what a shell says of a program that SIGPIPE ended.
    UNHEARD = 141


class Failed(Exception):
    """Raised by a command that cannot go on: the exit code, and what to print, a line for each."""

    def __init__(self, code: ExitCode, *lines: str) -> None:
        super().__init__(*lines)
        self.code = code
        self.lines = lines


class Unwritten(Failed):
    """Raised when the output cannot be written. `reason` is empty if its reader has gone."""

    def __init__(self, error: OSError) -> None:
        self.reason = ""
        if error.errno != errno.EPIPE:
            self.reason = f"the output could not be written: {error.strerror or error}"
        code = ExitCode.UNWRITTEN if self.reason else ExitCode.UNHEARD
        super().__init__(code, *filter(None, (self.reason,)))

    def told(self, advice: str) -> Failed:
        """Return the failure that also says what becomes of what was not shown."""
        return Failed(self.code, f"{self.reason}; {advice}" if self.reason else advice)


def say(line: str) -> None:
    """One line for the user, beside the output."""
    beside(f"chat: {escape_controls(line)}")


def beside(line: str) -> None:
    """Write a line to stderr. If that is full or gone, nobody is left to be told."""
    try:
        print(line, file=sys.stderr)  # noqa: T201
    except OSError:
        _discard(sys.stderr)


def written(write: Callable[[], object]) -> None:
    """Write to stdout, to its end. Raises `Unwritten` if that fails."""
    try:
        write()
        sys.stdout.flush()
    except OSError as error:
        write_no_more()
        raise Unwritten(error) from None


def write_no_more() -> None:
    """Discard what is still buffered; otherwise Python tries to write it at its end."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_closed_streams() -> None:
    """Take the numbers of standard streams that are closed, so that no socket is given them.

    Reading from such a stdin and writing to such a stdout fail; what goes to stderr is dropped.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest free number, which is this one.
            os.open(os.devnull, flags)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
