"""Runs a program that the kernel kills when its parent dies, however that happens.

usage: python -I -S tether.py PARENT_PID PROGRAM [ARGUMENT...]

Used by `workers.mongod.embedded`, so that no mongod outlives a server that was killed. Standard
library only. On systems other than Linux the program merely runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Tie this process to its parent, then become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have died before the call: nobody would tell us any more.
        if os.getppid() != parent:
            sys.exit("tether: the parent is gone")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
