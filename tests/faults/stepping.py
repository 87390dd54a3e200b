"""How a process is started whose clock is wrong, or steps while it runs.

The service gets another `time.time`; its mongod runs under Debian's `faketime`, which changes the
clocks of a program in C. Used by `tests.faults.clocks` and `tests.faults.testbed`.
"""

import sys
from pathlib import Path

from workers.mongod.embedded import find_mongod

#: Whether Debian's package `faketime` is there.
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

_SERVE = (
    # What follows is the command: python -P -m chat_service ...
    "del sys.argv[1:5]\nrunpy.run_module('chat_service', run_name='__main__', alter_sys=True)"
)


def wrong_clock(seconds: float, every_s: float = 0.0) -> tuple[str, ...]:
    """Words that start a server whose wall clock is wrong; with `every_s` it is set right and wrong
    again every so many seconds.
    """
    is_wrong = f"time.monotonic() // {every_s} % 2" if every_s else "1"
    return (
        *(sys.executable, "-P", "-c"),
        "import runpy, sys, time\n"
        f"right = time.time\ntime.time = lambda: right() + {seconds} * ({is_wrong})\n{_SERVE}",
    )


def stepping_mongod(folder: Path, clock: Path) -> str:
    """A program that is a mongod whose wall clock steps with what is in a file."""
    program = folder / "stepping-mongod"
    program.write_text(
        "#!/bin/sh\n"
        f"export LD_PRELOAD={FAKETIME} FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_NO_CACHE=1\n"
        f"export FAKETIME_TIMESTAMP_FILE={clock}\n"
        f'exec {find_mongod("")} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)
