"""Runs a program that the kernel kills when its parent dies for any reason.

usage: python -I -S die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

`workers.mongod.embedded` uses it so that no mongod outlives a server that was killed. It uses only
the standard library. On systems other than Linux it just runs the program.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Tie this process to its parent, then execute the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # If the parent died before the call, the kernel would not send the signal any more.
        if os.getppid() != parent:
            sys.exit("die_with_parent: the parent process no longer exists")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
