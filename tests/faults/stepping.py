"""Start processes whose clock is wrong, or steps while they run.

The service gets another `time.time`. The mongod runs under Debian's `faketime`, which changes the
clocks of a C program. Used by `tests.faults.clocks` and `tests.faults.testbed`.
"""

import sys
from pathlib import Path

from workers.mongod.embedded import find_mongod

#: The library of Debian's package `faketime`.
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

_SERVE = (
    # The rest of the command line is: python -P -m chat_service ...
    "del sys.argv[1:5]\nrunpy.run_module('chat_service', run_name='__main__', alter_sys=True)"
)


def wrong_clock(seconds: float, every_s: float = 0.0) -> tuple[str, ...]:
    """Return the command prefix that starts a server with a wrong wall clock. With `every_s`, the
    clock alternates between right and wrong with that period, in seconds.
    """
    is_wrong = f"time.monotonic() // {every_s} % 2" if every_s else "1"
    return (
        *(sys.executable, "-P", "-c"),
        "import runpy, sys, time\n"
        f"right = time.time\ntime.time = lambda: right() + {seconds} * ({is_wrong})\n{_SERVE}",
    )


def stepping_mongod(folder: Path, clock: Path) -> str:
    """Write a program that runs a mongod whose wall clock follows an offset in a file, within a
    second.

    With the cache, fewer waits of its threads begin by one clock and end by another. Such a wait
    takes as long as the step back, and may stop the mongod for that time.
    """
    program = folder / "stepping-mongod"
    program.write_text(
        "#!/bin/sh\n"
        f"export LD_PRELOAD={FAKETIME} FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_CACHE_DURATION=1\n"
        f"export FAKETIME_TIMESTAMP_FILE={clock}\n"
        f'exec {find_mongod("")} "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    return str(program)
