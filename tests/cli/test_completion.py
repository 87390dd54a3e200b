"""Completion: the scripts are printed, and a real bash completes with its own."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Chat


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shells_script_is_printed(chat: Chat, shell: str) -> None:
    printed = chat("completion", shell).out
    assert "_CHAT_COMPLETE" in printed
    # Ours, so that a description may have a comma.
    assert ('string split -m 1 ","' in printed) == (shell == "fish")


@pytest.fixture
def environ(chat: Chat, tmp_path: Path) -> dict[str, str]:
    """An environment with `chat` on the PATH, as where it is installed."""
    program = tmp_path / "chat"
    words = " ".join(f"'{word}'" for word in chat.command())
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return {**chat.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("chat rev", ["revoke"]), ("chat le", ["lease"]), ("chat send --rec", ["--receipt"])],
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
        ("chat ack", "ack\tacknowledge: read, and gone"),
        ("chat send --rec", "--receipt\tGet a receipt, for status and revoke."),
        ("chat serve --config /etc/hostn", "/etc/hostname"),
    ],
)
def test_fish_completes_with_what_each_does(
    environ: dict[str, str], typed: str, completed: str
) -> None:
    script = f"chat completion fish | source; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "-c", script], env=environ, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == completed + "\n"
