"""Completion: scripts for three shells, tried in bash and fish."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Chat


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_each_shell_is_printed(chat: Chat, shell: str) -> None:
    printed = chat("completion", shell).out
    assert "_CHAT_COMPLETE" in printed
    # Our change to the script lets a description contain a comma.
    assert ('string split -m 1 ","' in printed) == (shell == "fish")


@pytest.fixture
def environ(chat: Chat, tmp_path: Path) -> dict[str, str]:
    """An environment with `chat` on the PATH, as after an installation."""
    program = tmp_path / "chat"
    words = " ".join(f"'{word}'" for word in chat.command())
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return {**chat.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("chat rev", ["revoke"]),
        ("chat le", ["lease"]),
        ("chat send --rec", ["--receipt"]),
        ("chat dea", ["dead"]),
        ("chat dead --ret", ["--return"]),
        ("chat send --insec", ["--insecure"]),
        ("chat token ch", ["check"]),
        ("chat token new --unt", ["--until"]),
    ],
)
def test_bash_completes_commands_and_options(
    environ: dict[str, str], typed: str, completed: list[str]
) -> None:
    script = (
        'eval "$(chat completion bash)"\n'
        f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_chat_completion chat; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == completed


@pytest.mark.clients
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("chat ack", "ack\tacknowledge leased messages, which consumes them"),
        ("chat send --rec", "--receipt\tGet a receipt, for status and revoke."),
        ("chat serve --config /etc/hostn", "/etc/hostname"),
        ("chat token check /etc/hostn", "/etc/hostname"),
    ],
)
def test_fish_shows_descriptions_with_completions(
    environ: dict[str, str], typed: str, completed: str
) -> None:
    script = f"chat completion fish | source; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "-c", script], env=environ, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == completed + "\n"
