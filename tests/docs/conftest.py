"""A service and a checkout for each document whose commands are run. Needs Debian's curl."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

_NOT_COPIED = (".git", ".venv", ".tox", "data", "*_cache", "__pycache__", ".hypothesis", "*.lock")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of this checkout that is set up with the Python of the tests."""
    folder = tmp_path / "chat-inbox"
    shutil.copytree(PROJECT_ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="ascii")
    python.chmod(0o755)
    with (folder / "requirements/embedded.txt").open("rb") as requirements:
        installed = subprocess.run(["cksum"], stdin=requirements, capture_output=True, check=True)
    # As scripts/setup-venv marks an environment that is up to date.
    mark = f"{installed.stdout.decode('ascii').strip()} {python.resolve()}\n"
    (folder / ".venv/.installed").write_text(mark, encoding="utf-8")
    return folder
