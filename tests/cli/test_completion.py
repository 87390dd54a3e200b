"""Completion: the scripts are printed, and a real bash completes with its own."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Chat


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shells_script_is_printed(chat: Chat, shell: str) -> None:
    assert "_CHAT_COMPLETE" in chat("completion", shell).out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("chat rev", ["revoke"]), ("chat le", ["lease"]), ("chat send --rec", ["--receipt"])],
)
def test_bash_completes_commands_and_options(
    chat: Chat, tmp_path: Path, typed: str, completed: list[str]
) -> None:
    # `chat` is on the PATH, as where it is installed.
    program = tmp_path / "chat"
    words = " ".join(f"'{word}'" for word in chat.command())
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = (
        'eval "$(chat completion bash)"\n'
        f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_chat_completion chat; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environ = {**chat.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == completed
