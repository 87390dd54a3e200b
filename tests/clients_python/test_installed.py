"""The client in a user's project: installed alone, on each Python, and with types that check."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from config.settings import PROJECT_ROOT
from tests.support.npm import NoNpm, copy_and_install, installed
from tests.support.server import Server

pytestmark = pytest.mark.clients

_PROJECT: Final = Path(__file__).parent / "project"
#: Versions of Python that no other test uses, and the newest, and what is installed there.
_BUILDS: Final = {
    "3.9": "tar.gz",
    "3.10": "whl",
    "3.13": "tar.gz",
    "3.14": "whl",
}
#: Mistakes that a type checker must find in a user's project, in these lines.
_WRONG: Final = '''\
"""Mistakes that a type checker must find in a user's project."""

from chat_inbox import ChatClient, SyncChatClient


async def forgets_to_await(chat: ChatClient) -> int:
    return chat.count("bob")


def passes_a_number(chat: SyncChatClient) -> None:
    chat.post("bob", 5)


def misspells(chat: SyncChatClient) -> None:
    chat.read("bob", limt=5)
'''
_WRONG_LINES: Final = {7, 11, 15}
_CLEAN: Final = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def interpreter(version: str) -> str:
    """Return a Python of this version. Skip the test if this machine has none."""
    for found in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        return str(found)
    command = shutil.which(f"python{version}")
    if command is None:
        pytest.skip(f"this machine has no Python {version}")
    return command


def environment(python: str, folder: Path, *packages: str) -> str:
    """Create a virtual environment with these packages, and return its Python."""
    subprocess.run([python, "-m", "venv", folder], check=True, env=_CLEAN)
    own = str(folder / "bin" / "python")
    install = [own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages]
    subprocess.run(install, check=True, env=_CLEAN)
    return own


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("builds")
    # The build writes into the project's folder, and another test may be building.
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info", "*_cache")
    shutil.copytree(PROJECT_ROOT / "clients" / "python", source, ignore=ignored)
    python = environment(sys.executable, folder / "venv", "build>=1.5")
    subprocess.run(
        [python, "-m", "build", "--outdir", folder, source],
        check=True,
        capture_output=True,
        env=_CLEAN,
    )
    return folder


@pytest.fixture(scope="module")
def served(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a service in a process of its own."""
    folder = tmp_path_factory.mktemp("served")
    with Server(folder, CHAT_MONGO_URI=mongo_uri, CHAT_MONGO_DATABASE="clients_python") as server:
        yield server.base


@pytest.mark.parametrize("version", _BUILDS)
def test_a_project_uses_the_installed_client(
    version: str, builds: Path, served: str, tmp_path: Path
) -> None:
    (build,) = builds.glob(f"chat_inbox_client-*.{_BUILDS[version]}")
    python = environment(interpreter(version), tmp_path / "venv", str(build))
    # Warnings are errors: a connection that stays open shows itself in one.
    command = [python, "-X", "dev", "-W", "error", str(_PROJECT / "worker.py"), served]
    subprocess.run(command, check=True, env=_CLEAN, cwd=tmp_path)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=_CLEAN,
    )
    names = {line.partition("==")[0] for line in listed.stdout.split()}
    assert not names & {"tornado", "pymongo", "motor", "uvloop", "msgspec", "click"}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_projects_types_are_checked(checker: str, builds: Path, tmp_path: Path) -> None:
    (wheel,) = builds.glob("*.whl")
    python = environment(sys.executable, tmp_path / "venv", str(wheel))
    command = mypy(python) if checker == "mypy" else pyright(python)
    shutil.copy(_PROJECT / "worker.py", tmp_path)
    (tmp_path / "wrong.py").write_text(_WRONG, encoding="utf-8")
    right = checked(command, tmp_path, "worker.py")
    assert right.returncode == 0, right.stdout
    wrong = checked(command, tmp_path, "wrong.py")
    lines = {int(line) for line in re.findall(r"wrong\.py:(\d+)", wrong.stdout)}
    assert lines == _WRONG_LINES, wrong.stdout


def checked(command: list[str], folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run a type checker on a file."""
    return subprocess.run(
        [*command, name],
        cwd=folder,
        env=_CLEAN,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def mypy(python: str) -> list[str]:
    """Return the command that checks the oldest Python that mypy knows."""
    return [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-incremental",
        "--python-executable",
        python,
    ]


def pyright(python: str) -> list[str]:
    """Return the command that checks the oldest supported Python."""
    files = [_PROJECT / "package.json", _PROJECT / "package-lock.json"]
    try:
        folder = installed("pyright", files, lambda each: copy_and_install(files, each))
    except NoNpm as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}, from which pyright comes")
    program = str(folder / "node_modules" / ".bin" / "pyright")
    return [program, "--pythonpath", python, "--pythonversion", "3.9", "--level", "error"]
