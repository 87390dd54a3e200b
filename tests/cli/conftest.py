"""The command line as its users have it: real processes, against a real service of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from config.settings import PROJECT_ROOT
from tests.support.server import Server
from tests.support.waiting import PATIENCE

_names = count()
#: What changes how a Python program writes.
_UNWANTED = ("NO_COLOR", "PYTHONUNBUFFERED")


class Ended(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Any]:
        """The JSON of each line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Chat:
    """Runs `chat`, as it is from a checkout, with its streams piped."""

    def __init__(self, url: str) -> None:
        self.environ = {
            **{name: value for name, value in os.environ.items() if name not in _UNWANTED},
            "PYTHONPATH": str(PROJECT_ROOT),
            # Tornado leaves a socket that could not be bound to the collector.
            "PYTHONWARNINGS": "error,ignore::ResourceWarning",
            "CHAT_URL": url,
        }

    def command(self, *words: str) -> list[str]:
        """The words of a command."""
        return [sys.executable, "-P", "-m", "chat_service", *words]

    def __call__(self, *words: str, stdin: bytes = b"", **environ: str) -> Ended:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*words),
            input=stdin,
            env={**self.environ, **environ},
            capture_output=True,
            timeout=30 * PATIENCE,
            check=False,
        )
        ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in ended.err, ended.err
        return ended

    def texts(self, name: str) -> list[str]:
        """What is unread in an inbox; it is read then."""
        return [message["text"] for message in self("read", name).records]


@pytest.fixture(scope="session")
def server(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all these tests; each uses an inbox of its own."""
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
    """The command line, with that service's address in the environment."""
    return Chat(server.base)


@pytest.fixture
def name() -> str:
    """An inbox that no other test uses."""
    return f"inbox-{next(_names)}"


@pytest.fixture
def own_server(tmp_path: Path, mongo_uri: str, database: str) -> Iterator[Server]:
    """A service that the test may stop and start again on its port."""
    server = Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    with server:
        server.command += ["--port", str(server.port)]
        yield server
