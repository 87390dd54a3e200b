"""Fixtures that run the command line in real processes against a real service."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.code_path import CODE_PATH
from tests.support.server import Server
from tests.support.waiting import PATIENCE

_names = count()
#: Variables that would change the output or the requests.
_UNWANTED = ("NO_COLOR", "PYTHONUNBUFFERED", "CHAT_TOKEN", "CHAT_TOKEN_FILE")


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Any]:
        """The output lines, decoded as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Chat:
    """Runs `chat` from the checkout, with its streams piped."""

    def __init__(self, url: str) -> None:
        self.environ = {
            **{name: value for name, value in os.environ.items() if name not in _UNWANTED},
            "PYTHONPATH": CODE_PATH,
            # Tornado leaves a socket that it could not bind to the garbage collector.
            "PYTHONWARNINGS": "error,ignore::ResourceWarning",
            "CHAT_URL": url,
        }

    def command(self, *arguments: str) -> list[str]:
        """Return the complete command line of a command."""
        return [sys.executable, "-P", "-m", "chat_service", *arguments]

    def __call__(self, *arguments: str, stdin: bytes = b"", **environ: str) -> Result:
        """Run a command and wait for its exit. Fail if it printed a traceback."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            env={**self.environ, **environ},
            capture_output=True,
            timeout=30 * PATIENCE,
            check=False,
        )
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in result.err, result.err
        return result

    def texts(self, name: str) -> list[str]:
        """Read an inbox and return the texts of its messages."""
        return [message["text"] for message in self("read", name).records]


@pytest.fixture(scope="session")
def server(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all these tests. Each test uses its own inbox."""
    folder = tmp_path_factory.mktemp("server")
    database = f"test_cli_{os.getpid()}"
    # Each command is a process of its own: on a busy machine some of them take a minute.
    with Server(
        *(folder, "--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_DEFAULT_TIMEOUT_S="3600",
    ) as running:
        yield running


@pytest.fixture
def chat(server: Server) -> Chat:
    """The command line, with the address of the shared service in its environment."""
    return Chat(server.base)


@pytest.fixture
def name() -> str:
    """The name of an inbox that no other test uses."""
    return f"inbox-{next(_names)}"


@pytest.fixture
def own_server(tmp_path: Path, mongo_uri: str, database: str) -> Iterator[Server]:
    """A service that the test may stop and restart on the same port."""
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    with server:
        server.command += ["--port", str(server.port)]
        yield server
