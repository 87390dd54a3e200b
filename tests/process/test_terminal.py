"""What a person sees who starts the service at a terminal."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server

Start: TypeAlias = "Callable[..., Terminal]"

#: What the service shows last when it has started.
LAST_LINE = "Ctrl-C stops the service"


class Terminal:
    """A service whose stdout and stderr are a terminal."""

    def __init__(self, folder: Path, *arguments: str, environ: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        server = Server(folder, *arguments)
        self.process = subprocess.Popen(
            server.command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**server.environ, **environ},
        )
        os.close(slave)
        self._output = b""

    def read_until(self, text: str) -> str:
        """Return everything shown so far, once it contains `text` or the service has ended."""
        while text not in self.shown:
            try:
                self._output += os.read(self._master, 65536)
            except OSError:
                break
        return self.shown

    @property
    def shown(self) -> str:
        """Everything shown so far. What is read at a time may end in the middle of a character."""
        return self._output.decode("utf-8", "ignore").replace("\r\n", "\n")

    def stop(self) -> str:
        """Press Ctrl-C, and return everything that was shown."""
        self.process.send_signal(signal.SIGINT)
        shown = self.read_until("nothing ends with this")
        assert self.process.wait() == 0
        os.close(self._master)
        return shown


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a service at a terminal. It never outlives the test."""
    started: list[Terminal] = []

    def start_one(*arguments: str, environ: dict[str, str]) -> Terminal:
        started.append(Terminal(tmp_path, *arguments, environ=environ))
        return started[-1]

    yield start_one
    for each in started:
        each.process.kill()
        each.process.wait()


async def test_a_terminal_names_the_pages_and_a_first_message(tmp_path: Path, start: Start) -> None:
    data = tmp_path / "data"
    terminal = start("--data-dir", str(data), environ={"NO_COLOR": "1"})
    shown = terminal.read_until(f"stay in {data}.")
    (base,) = re.findall(r"(?m)^listening on (http://127\.0\.0\.1:\d+)$", shown)
    assert "starting the embedded MongoDB" in shown.partition("listening")[0]
    for page in (f"web UI         {base}/", f"API reference  {base}/docs"):
        assert f"\n  {page}\n" in shown
    assert f"\n  dashboard      {base}/ops\n" in shown
    assert f"the messages stay in {data}." in shown
    (posting,) = re.findall(r"(?m)^    (curl -d .*)$", shown)
    assert posting == f"curl -d 'hello' {base}/chat/bob"
    chat = ChatClient(base)
    assert await chat.texts("bob") == []
    chat.close()
    shown = terminal.stop()
    assert re.search(r"(?m)^\d\d:\d\d:\d\d  200 GET /chat/:username  [\d.]+ ms$", shown)
    assert "leads the fleet" not in shown


@pytest.mark.parametrize(
    ("variable", "value", "has", "lacks"),
    [
        ("CHAT_HOST", "0.0.0.0", "web UI         http://127.0.0.1:", "dashboard"),
        ("CHAT_OPS", "off", "API reference", "dashboard"),
        ("CHAT_LOG_FORMAT", "json", '"event": "started"', "$CHAT_TOKEN"),
    ],
)
def test_a_terminal_names_only_what_is_served(
    start: Start, mongo_uri: str, database: str, variable: str, value: str, has: str, lacks: str
) -> None:
    arguments = ("--mongo-uri", mongo_uri)
    environ = {"CHAT_MONGO_DATABASE": database, "NO_COLOR": "1", variable: value}
    terminal = start(*arguments, environ=environ)
    terminal.read_until(LAST_LINE)
    shown = terminal.stop()
    assert has in shown
    assert lacks not in shown
    assert "the messages stay" not in shown
