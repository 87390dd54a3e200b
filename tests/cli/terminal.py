"""A command on a terminal: a pseudo-terminal stands in for the window."""

import os
import pty
import select
import signal
import subprocess
import time
from types import TracebackType

from tests.cli.conftest import Chat


class Terminal:
    """One command with a terminal as its streams. Use as a context."""

    def __init__(self, chat: Chat, *words: str, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            chat.command(*words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**chat.environ, "TERM": "xterm-256color", **environ},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def until(self, words: bytes, within_s: float = 20) -> None:
        """Wait until it has written these words."""
        deadline = time.monotonic() + within_s
        while words not in self.seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, self.seen
            if select.select([self._ours], [], [], left_s)[0]:
                assert self._take(), self.seen

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        while self._take():
            pass
        return self.process.wait(30)

    def ctrl_c(self) -> None:
        """What the terminal does on that key."""
        os.killpg(self.process.pid, signal.SIGINT)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:
            # Nobody has the other end any more.
            return False
        self.seen += chunk
        return bool(chunk)
