"""Ends a long program of this repository together with all that it has started."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from workers.mongod import die_with_parent

#: A program that does not end within so many seconds is killed.
_PATIENCE_S = 15.0
#: A program that was told to end is killed after so many seconds.
_END_S = 60


def ended_by_signals(main: Callable[[], int]) -> int:
    """Run `main`. SIGTERM and SIGHUP end it as Ctrl-C does: its blocks are left, and what they
    started ends. Returns the exit code.
    """
    ended_by = signal.SIGINT

    def interrupt(number: int, _: object) -> None:
        nonlocal ended_by
        ended_by = signal.Signals(number)
        # Another one must not interrupt the blocks that are being left.
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        # If a block does not end, the kernel ends this process, and what is tied to it.
        signal.setitimer(signal.ITIMER_REAL, _END_S)
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup` ignores SIGHUP.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(f"ended by {ended_by.name}\n")
        return 128 + ended_by


@asynccontextmanager
async def child(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program that ends with the block. The kernel kills it if this process dies before."""
    program = shutil.which(command[0]) or command[0]
    tie = (sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()))
    process = await asyncio.create_subprocess_exec(*tie, program, *command[1:], **options)
    async with ending(process, signal.SIGTERM):
        yield process


@asynccontextmanager
async def ending(
    process: asyncio.subprocess.Process, with_signal: signal.Signals
) -> AsyncIterator[None]:
    """End a process with this signal when the block is left, and kill it if that takes long."""
    try:
        yield
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(with_signal)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
