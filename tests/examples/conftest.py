"""Starts the programs in examples/. Needs Debian's busybox, chromium, curl and haproxy."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
from tornado.ioloop import IOLoop

from config.settings import PROJECT_ROOT
from tests.pages.conftest import browser, check_access, tokens
from tests.support.code_path import CODE_PATH

__all__ = ["browser", "check_access", "tokens"]

EXAMPLES = PROJECT_ROOT / "examples"


class Ended(NamedTuple):
    """The exit code and the output of a program."""

    code: int
    output: str
    errors: str


async def run(*command: str | Path, given: str = "", **environ: str) -> Ended:
    """Run a program to its end. `given` is its standard input."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=_environment(environ)
    )
    output, errors = await process.communicate(given.encode())
    code = await process.wait()
    return Ended(code, output.decode(), errors.decode())


#: Starts a program that runs on.
Start: TypeAlias = Callable[..., Awaitable[Process]]


@pytest.fixture
def start(io_loop: IOLoop) -> Iterator[Start]:
    """Start programs, and kill those that still run at the end."""
    running: list[Process] = []

    async def make(*command: str | Path, cwd: Path | None = None, **environ: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, cwd=cwd, env=_environment(environ), start_new_session=True
        )
        running.append(process)
        return process

    async def end() -> None:
        for process in running:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    yield make
    io_loop.run_sync(end, timeout=60)


def _environment(changes: dict[str, str]) -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("CHAT_")}
    return ours | {"PYTHONPATH": CODE_PATH} | changes
