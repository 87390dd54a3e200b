"""Why a mongod ended: the reason comes from its log, its stderr and its exit code."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from workers.mongod import exit_reason
from workers.mongod.exit_reason import ExitReason, ending_of

PROGRAM = "/usr/bin/mongod"


def line(severity: str, msg: str, **attr: object) -> str:
    """Return a line of mongod's log."""
    return json.dumps({"s": severity, "msg": msg, "attr": attr}) + "\n"


async def reason_of(folder: Path, log: str, stderr: bytes, code: int | None) -> str:
    """Return the reason for a run that wrote this log and this stderr."""
    log_file = folder / "mongod.log"
    why = ExitReason(PROGRAM, log_file)
    with log_file.open("a", encoding="utf-8") as file:
        file.write(log)
    stream = asyncio.StreamReader()
    stream.feed_data(stderr)
    stream.feed_eof()
    why.listen(stream)
    return await why.reason(code)


@pytest.mark.parametrize(
    ("log", "stderr", "code", "reason"),
    [
        pytest.param(
            line("F", "Please read about --repair")
            + line("F", "Fatal assertion", msgid=50944)
            + line("F", "\n\n***aborting after fassert() failure\n\n"),
            b"",
            14,
            "it ended with 14: Please read about --repair (see {log})",
            id="damaged",
        ),
        pytest.param(
            "",
            b"mongod: libc.so.6: version `GLIBC_2.34' not found (required by mongod)\n",
            1,
            "it ended with 1: mongod: libc.so.6: version `GLIBC_2.34' not found (required by "
            "mongod); this build is for another system: install MongoDB for this one, so that "
            "mongod is on the PATH, or start everything with docker compose up",
            id="a build for a newer system",
        ),
        pytest.param(
            line("E", "Cannot open", error="Permission denied") + line("I", "Shutting down"),
            b"",
            100,
            "it ended with 100: Cannot open: Permission denied (see {log})",
            id="the last error of the log",
        ),
        pytest.param(
            line("F", "Fatal assertion", message="bad page") + line("W", "later"),
            b"terminate called\n",
            14,
            "it ended with 14: Fatal assertion: bad page (see {log})",
            id="the log before stderr",
        ),
        pytest.param(
            line("E", "Without details"),
            b"",
            1,
            "it ended with 1: Without details (see {log})",
            id="an error without details",
        ),
        pytest.param(
            line("I", "Starting") + "not JSON\n" + '{"msg": "no severity"}\n[]\n',
            b"mongod: cannot allocate\n\n",
            1,
            "it ended with 1: mongod: cannot allocate (see {log})",
            id="the last line of stderr",
        ),
        pytest.param(
            line("I", "Starting"), b"", 62, "it ended with 62 (see {log})", id="only the code"
        ),
        pytest.param(
            line("I", "Starting"),
            b"",
            -signal.SIGKILL,
            "it was ended by SIGKILL; the kernel does that if memory runs out",
            id="a signal",
        ),
        pytest.param(
            "",
            b"",
            127,
            f"{PROGRAM} ended with 127 and wrote no log: is it a mongod? Name another with the "
            "setting mongod (CHAT_MONGOD)",
            id="no mongod",
        ),
        pytest.param(
            line("E", "Write failed", error="No space left on device"),
            b"",
            -signal.SIGABRT,
            "the disk of {folder} is full; free some space, and mongod restarts on its own",
            id="a full disk, by the log",
        ),
        pytest.param(
            line("I", "Starting"),
            b"fatal: No space left on device\n",
            1,
            "the disk of {folder} is full; free some space, and mongod restarts on its own",
            id="a full disk, by stderr",
        ),
    ],
)
async def test_the_reason_names_cause_and_fix(
    tmp_path: Path, log: str, stderr: bytes, code: int, reason: str
) -> None:
    found = await reason_of(tmp_path, log, stderr, code)
    assert found == reason.format(log=tmp_path / "mongod.log", folder=tmp_path)


async def test_a_disk_without_space_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_reason, "free_bytes", lambda folder: 4096)
    found = await reason_of(tmp_path, line("I", "Starting"), b"", -signal.SIGBUS)
    assert found.startswith(f"the disk of {tmp_path} is full")


async def test_errors_of_earlier_runs_do_not_count(tmp_path: Path) -> None:
    log_file = tmp_path / "mongod.log"
    log_file.write_text(line("E", "Of yesterday", error="x"), encoding="utf-8")
    found = await reason_of(tmp_path, line("I", "Starting"), b"", 1)
    assert found == f"it ended with 1 (see {log_file})"


async def test_a_log_that_was_replaced_counts_as_a_whole(tmp_path: Path) -> None:
    log_file = tmp_path / "mongod.log"
    log_file.write_text("x" * 1000, encoding="utf-8")
    why = ExitReason(PROGRAM, log_file)
    log_file.write_text(line("E", "Of this run"), encoding="utf-8")
    assert await why.reason(1) == f"it ended with 1: Of this run (see {log_file})"


async def test_a_long_stderr_keeps_its_end(tmp_path: Path) -> None:
    found = await reason_of(tmp_path, line("I", "Starting"), b"x\n" * 9000 + b"the end\n", 1)
    assert ": the end (see " in found


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (0, "ended with 0"),
        (None, "ended with None"),
        (-signal.SIGTERM, "was ended by SIGTERM"),
        (
            -signal.SIGILL,
            "was ended by SIGILL; this processor lacks instructions that mongod needs: use "
            "another build",
        ),
        (-100, "was ended by signal 100"),
    ],
)
def test_an_ending_is_a_code_or_a_signal(code: int | None, ending: str) -> None:
    assert ending_of(code) == ending
