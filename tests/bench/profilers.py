"""Samples of running processes: perf sees system calls and mongod, py-spy sees Python's functions.

Both are optional programs. perf counts time on a processor, in the kernel and outside. py-spy takes
a thread that waits for a processor for a busy one, so use it for shares of the time outside the
kernel only.
"""

import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

#: Samples per second. py-spy stops the process for each sample.
_PERF_HZ, _PY_SPY_HZ = 997, 100
_HEAD = re.compile(r"(.*?)\s+(\d+)/(\d+)")


class CannotProfile(Exception):
    """A profiler is not installed, or this system does not permit it."""


class Stack(NamedTuple):
    """A sample: the process, the thread's id and name, and its frames from the innermost on."""

    pid: int
    tid: int
    thread: str
    frames: list[str]

    @property
    def is_in_kernel(self) -> bool:
        """Whether the thread was in a system call. Only perf knows."""
        return any(frame.startswith("entry_SYSCALL") for frame in self.frames)


@asynccontextmanager
async def perf(pids: Sequence[int], seconds: float) -> AsyncIterator[list[Stack]]:
    """Sample all threads of these processes. The yielded list is filled when the context ends.

    Raises `CannotProfile`.
    """
    program = _program("perf", "apt install linux-perf")
    with tempfile.TemporaryDirectory(prefix="perf-") as folder:
        data = str(Path(folder, "perf.data"))
        process = await _started(
            *(program, "record", "-q", "-e", "cpu-clock", "-F", str(_PERF_HZ), "-g", "-o", data),
            *("-p", ",".join(map(str, pids)), "--", "sleep", str(seconds)),
        )
        stacks: list[Stack] = []
        yield stacks
        await _output(process)
        script = await _started(program, "script", "-i", data, "-F", "comm,pid,tid,ip,sym")
        stacks += perf_stacks(await _output(script))
    if not any(stack.is_in_kernel for stack in stacks):
        raise CannotProfile("perf does not see the kernel: set kernel.perf_event_paranoid to 1")


@asynccontextmanager
async def py_spy(pid: int, seconds: float) -> AsyncIterator[list[Stack]]:
    """Sample the main thread of a Python process. Otherwise like `perf`."""
    program = _program("py-spy", ".tox/bench-run/bin/pip install py-spy")
    with tempfile.NamedTemporaryFile(prefix="py-spy-") as file:
        process = await _started(
            *(program, "record", "--native", "--threads", "--rate", str(_PY_SPY_HZ)),
            *("--pid", str(pid), "--duration", str(round(seconds))),
            *("--format", "raw", "--output", file.name),
        )
        stacks: list[Stack] = []
        yield stacks
        await _output(process)
        stacks += py_spy_stacks(file.read().decode(errors="replace"))


def _program(name: str, install: str) -> str:
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which(name, path=folders)
    if program is None:
        raise CannotProfile(f"{name} is not installed ({install})")
    return program


async def _started(*command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def _output(process: asyncio.subprocess.Process) -> str:
    output, errors = await process.communicate()
    if process.returncode:
        raise CannotProfile(f"a profiler failed: {errors.decode(errors='replace').strip()}")
    return output.decode(errors="replace")


def perf_stacks(script: str) -> Iterator[Stack]:
    """Yield the samples in the output of `perf script`."""
    for block in script.split("\n\n"):
        head, *lines = block.strip("\n").split("\n")
        found = _HEAD.match(head)
        if found is not None:
            frames = [frame for _, _, frame in (line.strip().partition(" ") for line in lines)]
            yield Stack(int(found[2]), int(found[3]), found[1].strip(), frames)


def py_spy_stacks(raw: str) -> Iterator[Stack]:
    """Yield the samples of the main thread in the raw output of py-spy."""
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if "MainThread" in thread:
            yield from [Stack(0, 0, thread, frames[::-1])] * int(count)
