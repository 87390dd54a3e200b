"""Exit codes, and the errors and standard streams of a command.

A command raises `CommandError` to end with a message; `chat_service.cli.main` prints it.
"""

import errno
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import TextIO

from chat_service.cli.terminal import escape_controls


class ExitCode(IntEnum):
    """Exit codes, as listed in `chat --help` and docs/command-line.md."""

    DONE = 0
    #: Nothing found, not ready, or too late.
    NOTHING = 1
    #: Bad arguments or settings, or the service refused the request.
    REFUSED = 2
    PORT = 3
    DATABASE = 4
    DATA_DIR = 5
    #: The service cannot be reached, is unavailable or full, or limits this client. Nothing was
    #: done.
    UNREACHABLE = 6
    UNKNOWN = 7
    #: The output cannot be written: the disk is full or the stream is closed.
    OUTPUT = 8
    #: There is no token, the service does not accept it, or it lacks a right.
    NO_ACCESS = 9
    #: What shells report for a program that ended by SIGHUP, SIGINT or SIGTERM.
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143
    #: The reader of the output has exited. Shells report this for a program that ended by SIGPIPE.
    BROKEN_PIPE = 141


class CommandError(Exception):
    """Raised by a command that cannot continue. Holds the exit code and the lines to print."""

    def __init__(self, code: ExitCode, *lines: str) -> None:
        super().__init__(*lines)
        self.code = code
        self.lines = lines


class OutputError(CommandError):
    """Raised if stdout cannot be written. `reason` is empty if the reader has exited."""

    def __init__(self, error: OSError) -> None:
        self.reason = ""
        if error.errno != errno.EPIPE:
            self.reason = f"the output could not be written: {error.strerror or error}"
        code = ExitCode.OUTPUT if self.reason else ExitCode.BROKEN_PIPE
        super().__init__(code, *filter(None, (self.reason,)))

    def with_advice(self, advice: str) -> CommandError:
        """Return the error with advice on how to recover what was not shown."""
        return CommandError(self.code, f"{self.reason}; {advice}" if self.reason else advice)


def print_error(line: str) -> None:
    """Print a message to stderr, prefixed with the program's name."""
    write_stderr(f"chat: {escape_controls(line)}")


def write_stderr(line: str) -> None:
    """Write a line to stderr. If that fails, discard it and everything after it."""
    try:
        print(line, file=sys.stderr)  # noqa: T201
    except OSError:
        _redirect_to_null(sys.stderr)


def write_stdout(write: Callable[[], object]) -> None:
    """Call `write`, then flush stdout. Raise `OutputError` if either fails."""
    try:
        write()
        sys.stdout.flush()
    except OSError as error:
        discard_stdout()
        raise OutputError(error) from None


def discard_stdout() -> None:
    """Discard the buffered output. Otherwise Python would try to write it at exit."""
    _redirect_to_null(sys.stdout)


def _redirect_to_null(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def open_closed_streams() -> None:
    """Occupy the descriptors of closed standard streams, so that no socket gets one of them.

    Afterwards, reading from such a stdin and writing to such a stdout fail. Text written to such a
    stderr is dropped.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The system assigns the lowest free descriptor, which is this one.
            os.open(os.devnull, flags)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
