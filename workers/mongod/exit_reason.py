"""Finds out why a mongod ended: from its log, its stderr, and the signal that ended it.

The log continues over many runs; only lines of the last run count. Used by
`workers.mongod.embedded`.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workers.mongod.ballast import free_bytes

#: The number of bytes that are read from the end of stderr and of the log.
_STDERR_BYTES, _LOG_BYTES = 4096, 1 << 20
#: Longest wait for the rest of stderr after the end, in seconds.
_REST_S = 1.0
#: If fewer bytes than this are free, mongod ended because the disk is full.
_FULL_BYTES = 1 << 20
#: What the loader says on systems that are older than the build, or that lack a library.
_FOR_ANOTHER_SYSTEM = ("GLIBC_", "GLIBCXX_", "error while loading shared libraries")
_OTHER_BUILDS = (
    "this build is for another system: install MongoDB for this one, so that mongod is on the "
    "PATH, or start everything with docker compose up"
)
_NO_SPACE = "No space left on device"
_HINTS = {
    "SIGILL": "; this processor lacks instructions that mongod needs: use another build",
    "SIGKILL": "; the kernel does that if memory runs out",
    "SIGBUS": "; a full or broken disk causes that",
}

#: How lines begin that have no reason.
_GIVES_UP = ("Fatal assertion", "***aborting")


class ExitReason:
    """Collects what one run of mongod writes. Create it before mongod starts."""

    def __init__(self, program: str, log_file: Path) -> None:
        self._program = program
        self._log_file = log_file
        self._begin = _size(log_file)
        self._stderr = b""
        self._listening: asyncio.Task[None] | None = None

    def listen(self, stderr: asyncio.StreamReader) -> None:
        """Read stderr to its end, and keep the last part of it."""
        self._listening = asyncio.create_task(self._listen(stderr), name="mongod-stderr")

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(_STDERR_BYTES):
            self._stderr = (self._stderr + data)[-_STDERR_BYTES:]

    async def reason(self, code: int | None) -> str:
        """Return why mongod ended with this code, and what to do."""
        if self._listening is not None:
            await asyncio.wait((self._listening,), timeout=_REST_S)
        lines = list(self._log_lines())
        stderr = [line.strip() for line in self._stderr.decode("utf-8", "replace").splitlines()]
        free = free_bytes(self._log_file.parent)
        is_full = free is not None and free < _FULL_BYTES
        if is_full or any(_NO_SPACE in line for line in (*lines, *stderr)):
            return (
                f"the disk of {self._log_file.parent} is full; free some space, and mongod "
                "restarts on its own"
            )
        ended = ending_of(code)
        problems = [text for line in lines if (text := _problem(line))]
        # The last ones only say that mongod gives up.
        told = [text for text in problems if not text.startswith(_GIVES_UP)]
        said = next(reversed(told or problems), "")
        said = said or next((line for line in reversed(stderr) if line), "")
        if any(mark in said for mark in _FOR_ANOTHER_SYSTEM):
            return f"it {ended}: {said[:400]}; {_OTHER_BUILDS}"
        if said:
            return f"it {ended}: {said[:400]} (see {self._log_file})"
        if code is not None and code < 0:
            return f"it {ended}"
        if not lines:
            return (
                f"{self._program} {ended} and wrote no log: is it a mongod? Name another with the "
                "setting mongod (CHAT_MONGOD)"
            )
        return f"it {ended} (see {self._log_file})"

    def _log_lines(self) -> Iterator[str]:
        """Yield the lines that this run has written to the log."""
        with suppress(OSError), self._log_file.open("rb") as log:
            size = os.fstat(log.fileno()).st_size
            log.seek(max(self._begin if self._begin <= size else 0, size - _LOG_BYTES))
            yield from log.read(_LOG_BYTES).decode("utf-8", "replace").splitlines()


def ending_of(code: int | None) -> str:
    """Return how a program ended: with a code, or by which signal."""
    if code is None or code >= 0:
        return f"ended with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}{_HINTS.get(name, '')}"


def _problem(line: str) -> str:
    """Return the message of a log line if it is an error, or an empty string."""
    try:
        entry = json.loads(line)
        if entry["s"] not in ("E", "F"):
            return ""
        more = entry.get("attr", {})
        detail = (more.get("error") or more.get("message")) if isinstance(more, dict) else None
        if isinstance(detail, dict):
            detail = detail.get("msg", "")
        # mongod writes several lines, and this becomes one.
        return " ".join(f"{entry['msg']}: {detail or ''}".split()).strip(" :")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
