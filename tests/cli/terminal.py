"""Runs a command on a pseudo-terminal."""

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
    """One command whose streams are a terminal. Use as a context manager."""

    def __init__(self, chat: Chat, *words: str, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            chat.command(*words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**chat.environ, "TERM": "xterm-256color", **environ},
            start_new_session=True,
            # Make it the controlling terminal, so that /dev/tty works and closing it sends SIGHUP.
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

    def until(self, text: bytes, within_s: float = 20) -> None:
        """Wait until the command has written this text."""
        deadline = time.monotonic() + within_s
        while text not in self.seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, self.seen
            if select.select([self._ours], [], [], left_s)[0]:
                assert self._take(), self.seen

    def exit_code(self) -> int:
        """Wait for the exit of the command, and return its exit code."""
        while self._take():
            pass
        return self.process.wait(30)

    def ctrl_c(self) -> None:
        """Send what a terminal sends for Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def type(self, keys: bytes) -> None:
        """Type some keys."""
        os.write(self._ours, keys)

    def close(self) -> None:
        """Close the terminal. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._ours)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:
            # All processes have closed the other end.
            return False
        self.seen += chunk
        return bool(chunk)
