"""The service as a separate process: started, signalled and killed like in production."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.support.code_path import CODE_PATH
from tests.support.waiting import PATIENCE


class Server:
    """`python -m chat_service serve`, on a free port. Use as a context."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, **environ: str) -> None:
        self.log = folder / "server.log"
        self.command = [
            *(sys.executable, "-P", "-m", "chat_service", "serve"),
            *("--port", str(port), *arguments),
        ]
        mark = secrets.token_hex(8)
        self._mark = f"TEST_SERVER={mark}".encode()
        self.environ = {
            **os.environ,
            "PYTHONPATH": CODE_PATH,
            "TEST_SERVER": mark,
            **environ,
        }
        self.process: subprocess.Popen[str]
        self.base = ""
        #: The command prefix that starts it.
        self.wrapper: tuple[str, ...] = ()
        #: The file descriptor for its stderr instead of the log.
        self.stderr: int | None = None

    def start(self) -> "Server":
        """Start it and wait until it listens."""
        self.spawn()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            self.wait()
            raise AssertionError(f"the service did not start: {line!r}\n{self.errors()}")
        self.base = line.removeprefix("listening on ").strip()
        return self

    def spawn(self) -> None:
        """Start it without waiting."""
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command],
                stdout=subprocess.PIPE,
                stderr=log if self.stderr is None else self.stderr,
                env=self.environ,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on."""
        return self.base.removeprefix("http://").rpartition(":")[0], self.port

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.base.rpartition(":")[2])

    def errors(self) -> str:
        """Return what it has written to stderr."""
        return self.log.read_text(encoding="utf-8")

    def members(self) -> list[int]:
        """Return the ids of its serving processes, including starting and exiting ones."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    environ = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"process" in words and self._mark in environ:
                    found.append(int(entry.name))
        return sorted(found)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, within_s: float = 30) -> int:
        """Wait for its exit. Return the exit code."""
        code = self.process.wait(within_s * PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


def mongods_on(data_dir: Path) -> list[int]:
    """Return the ids of the mongod processes that run on a data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if arguments[0].endswith(b"mongod") and os.fsencode(data_dir) in arguments:
                found.append(int(entry.name))
    return found


def wait_for_no_mongod(data_dir: Path, within_s: float = 20) -> None:
    """Return once none is left; AssertionError where one stays."""
    deadline = time.monotonic() + within_s * PATIENCE
    while mongods_on(data_dir):
        assert time.monotonic() < deadline, "a mongod was left over"
        time.sleep(0.02)
