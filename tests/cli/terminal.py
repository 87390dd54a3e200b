"""A command on a terminal: a pseudo-terminal stands in for the window."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
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
            # It is what /dev/tty names, and its end is the session's.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.seen = b""
        self._is_closed = False

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
        self.close()

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

    def type(self, keys: bytes) -> None:
        """What somebody types."""
        os.write(self._ours, keys)

    def close(self) -> None:
        """Close the window. Safe twice."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._ours)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:
            # Nobody has the other end any more.
            return False
        self.seen += chunk
        return bool(chunk)
