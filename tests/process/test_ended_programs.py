"""The long programs of this repository end with all that they have started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.code_path import CODE_PATH
from tests.support.waiting import eventually

#: Says the id of its child, which ends only by a signal.
PROGRAM = """
import asyncio, sys, tempfile
from tests.support.ending import child, ended_by_signals

async def run():
    with tempfile.TemporaryDirectory():
        async with child("sleep", "1000") as process:
            print(process.pid, flush=True)
            await asyncio.sleep(1000)

sys.exit(ended_by_signals(lambda: asyncio.run(run())))
"""


def started(folder: Path) -> "subprocess.Popen[str]":
    """Start a program whose temporary files are in `folder`. It has begun once it prints a line."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": CODE_PATH, "TMPDIR": str(folder)},
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def session(leader: int) -> list[int]:
    """Return the ids of the processes that run in the session of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[3]) == leader and stat[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_and_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert len(session(process.pid)) > 1
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert session(process.pid) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_killed_program_leaves_no_process(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
        process.wait(60)

        async def is_gone() -> bool:
            return session(process.pid) == []

        await eventually(is_gone)
