"""The service beside a project with packages of its own that are named `config` and `workers`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import ChatClient
from tests.support.code_path import CODE_PATH
from tests.support.server import Server

_FOREIGN = 'raise ImportError("a package of the project was imported")\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a project's packages."""
    folder = tmp_path / "project"
    for name in ("config.py", "config/__init__.py", "workers/__init__.py", "workers/errors.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_FOREIGN, encoding="utf-8")
    return folder


def run(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `python OPTIONS` in a project's folder, which is first on PYTHONPATH."""
    path = os.pathsep.join((str(folder), CODE_PATH))
    return subprocess.run(
        [sys.executable, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("command", ["doctor --port 0", "serve --print-config"])
def test_commands_run_in_a_projects_folder(project: Path, command: str) -> None:
    done = run(project, "-m", "chat_service", *command.split())
    assert "a package of the project" not in done.stdout + done.stderr
    assert done.stdout


def test_completion_works_in_a_projects_folder(project: Path) -> None:
    variables = {"_CHAT_COMPLETE": "bash_complete", "COMP_WORDS": "chat serve --pr"}
    done = run(project, "-m", "chat_service", COMP_CWORD="2", **variables)
    assert "--processes" in done.stdout, done.stderr


async def test_processes_serve_in_a_projects_folder(
    project: Path, tmp_path: Path, mongo_uri: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    path = os.pathsep.join((str(project), CODE_PATH))
    options = ("--mongo-uri", mongo_uri, "--processes", "2")
    with Server(tmp_path, *options, CHAT_MONGO_DATABASE=database, PYTHONPATH=path) as server:
        chat = ChatClient(server.base)
        await chat.post("bob", "kept")
        assert len(await chat.read("bob")) == 1
        chat.close()


def test_a_package_that_python_loaded_first_is_replaced(project: Path) -> None:
    (project / "config.py").unlink()
    (project / "config" / "__init__.py").write_text("", encoding="utf-8")
    (project / "sitecustomize.py").write_text("import config\n", encoding="utf-8")
    done = run(project, "-m", "chat_service", "serve", "--print-config")
    assert done.returncode == 0, done.stderr
