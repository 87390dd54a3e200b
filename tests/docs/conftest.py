"""A service and a checkout for each document whose commands are run. Needs Debian's curl."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import PROJECT_ROOT

_NOT_COPIED = (".git", ".venv*", ".tox", "data", "*_cache", "__pycache__", ".hypothesis", "*.lock")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of this checkout that is set up with the Python of the tests."""
    folder = tmp_path / "chat-inbox"
    shutil.copytree(PROJECT_ROOT, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    _mark_as_installed(folder / ".venv", "embedded")
    _mark_as_installed(folder / ".venv-jwt", "embedded", "jwt")
    return folder


def _mark_as_installed(environment: Path, *requirements: str) -> None:
    """Make an environment with the Python of the tests that scripts/setup-venv takes as its own."""
    python = environment / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="ascii")
    python.chmod(0o755)
    wanted = b"".join(
        (environment.parent / f"requirements/{name}.txt").read_bytes() for name in requirements
    )
    sums = subprocess.run(["cksum"], input=wanted, capture_output=True, check=True)
    mark = f"{sums.stdout.decode('ascii').strip()} {python.resolve()}\n"
    (environment / ".installed").write_text(mark, encoding="utf-8")
