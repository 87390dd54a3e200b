"""A service and a checkout for each document whose commands are run. curl is Debian's."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT
from tests.support.server import Server

_NOT_COPIED = (".git", ".venv", ".tox", "data", "*_cache", "__pycache__", ".hypothesis", "*.lock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need more than Python: tox has an environment for them."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("clients")


@pytest.fixture
def server(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service that the document's commands talk to."""
    with Server(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database) as running:
        yield running


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout that is set up: with the Python that runs the tests."""
    folder = tmp_path / "chat-inbox"
    shutil.copytree(PROJECT_ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="ascii")
    python.chmod(0o755)
    with (folder / "requirements/embedded.txt").open("rb") as requirements:
        installed = subprocess.run(["cksum"], stdin=requirements, capture_output=True, check=True)
    (folder / ".venv/.installed").write_bytes(installed.stdout)
    return folder
