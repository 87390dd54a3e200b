"""scripts/mongo-shell works offline: with mongosh from the PATH, or else with Python."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.client import ChatClient
from tests.support.server import Server


class Shell:
    """Runs the script of a checkout on a database, with programs in front of the PATH."""

    def __init__(self, checkout: Path, uri: str, database: str) -> None:
        self.programs = checkout / "programs"
        self.programs.mkdir()
        self._script = checkout / "scripts/mongo-shell"
        self._environ = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "CHAT_MONGO_URI": uri,
            "CHAT_MONGO_DATABASE": database,
        }

    def add(self, name: str) -> None:
        """Add a program that prints its name and its arguments."""
        file = self.programs / name
        file.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\n', encoding="ascii")
        file.chmod(0o755)

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        ran = subprocess.run(
            [str(self._script), *arguments],
            env=self._environ,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return ran.stdout


@pytest.fixture
def shell(checkout: Path, mongo_uri: str, database: str) -> Shell:
    return Shell(checkout, mongo_uri, database)


@pytest.mark.usefixtures("server")
def test_javascript_in_the_python_shell_is_refused_in_one_line(shell: Shell) -> None:
    for program in ('db.fleet.findOne({_id: "leader"})', "db.messages.find({$expr: 1})"):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            shell("--python", "--", "--eval", program)
        (line,) = refused.value.stderr.splitlines()
        assert line.startswith("scripts/mongo-shell: this is the Python shell")
        assert "--npx" in line


async def test_without_mongosh_it_is_a_python_shell(shell: Shell, server: Server) -> None:
    chat = ChatClient(server.base)
    await chat.post("bob", "a text")
    chat.close()
    # Nothing is fetched unless that is asked for.
    shell.add("npx")
    unread = 'messages.count_documents({**inbox("bob"), "unread": True})'
    assert shell("--", "--eval", unread) == "1\n"
    found = shell("--", "--quiet", "--eval", 'messages.find(inbox("bob"), {"text": 0})')
    assert "'username': 'bob'" in found
    assert "a text" not in found
    assert "62923" in shell(stdin='route("bob")\n')


def test_it_prefers_mongosh_and_takes_npx_only_if_asked(shell: Shell, database: str) -> None:
    shell.add("mongosh")
    shell.add("npx")
    name, uri, *arguments = shell("--", "--quiet", "--eval", "1").splitlines()
    assert name == "mongosh"
    assert f"/{database}" in uri
    assert arguments[-3:] == ["--quiet", "--eval", "1"]
    assert shell("--python", "--", "--eval", "1 + 1") == "2\n"
