"""How a command ends: its exit codes, and the one line on stderr that says what went wrong.

Every command raises `Failed` for what its user has to know; `chat_service.cli.main` prints it.
"""

import os
import sys
from enum import IntEnum

from chat_service.cli.harmless import harmless


class End(IntEnum):
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
    #: What a shell says of programs that SIGHUP or SIGINT ended.
    HUNG_UP = 129
    INTERRUPTED = 130
    #: What a shell says of a program that SIGTERM ended.
    TERMINATED = 143
    #: Whoever read the output has gone; what a shell says of a program that SIGPIPE ended.
    UNHEARD = 141


class Failed(Exception):
    """Raised by a command that cannot go on: the exit code, and what to print, a line for each."""

    def __init__(self, code: End, *lines: str) -> None:
        super().__init__(*lines)
        self.code = code
        self.lines = lines


def say(line: str) -> None:
    """One line for the user, beside the output."""
    print(f"chat: {harmless(line)}", file=sys.stderr)  # noqa: T201


def write_no_more() -> None:
    """Have what is still buffered go nowhere, once whoever read the output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
