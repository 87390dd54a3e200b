"""`chat watch` streams messages across a restart, and acknowledges what it has shown."""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_service.cli.commands.watch import _terminate
from tests.cli.conftest import Chat
from tests.cli.terminal import Terminal
from tests.support.server import Server
from tests.support.waiting import PATIENCE


def watching(chat: Chat, *words: str) -> "subprocess.Popen[str]":
    """Start a watch with its output piped."""
    return subprocess.Popen(
        chat.command("watch", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chat.environ,
        encoding="utf-8",
    )


def next_text(watch: "subprocess.Popen[str]") -> str:
    """Return the text of the next message that a watch shows."""
    assert watch.stdout is not None
    return str(json.loads(watch.stdout.readline())["text"])


def test_old_and_new_messages_are_shown_across_a_restart(own_server: Server) -> None:
    chat = Chat(own_server.base)
    chat("send", "bob", "before")
    watch = watching(chat, "bob")
    assert next_text(watch) == "before"
    chat("send", "bob", "during")
    assert next_text(watch) == "during"
    own_server.signal(signal.SIGTERM)
    own_server.wait()
    own_server.start()
    chat("send", "bob", "after")
    assert next_text(watch) == "after"
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=30 * PATIENCE)
    assert (watch.returncode, err) == (130, "")
    # The last message was acknowledged, too.
    assert chat("read", "bob").code == 1


def test_ctrl_c_ends_a_watch_without_a_message(chat: Chat, name: str) -> None:
    with Terminal(chat, "watch", name) as terminal:
        chat("send", name, "hello")
        terminal.until(b"hello\r\n")
        terminal.ctrl_c()
        assert terminal.exit_code() == 130
        assert b"Traceback" not in terminal.seen
    assert chat("count", name).records == [{"unread": 0}]


def is_running(pid: str) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + 30 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_ends_the_command_and_releases_its_message(
    chat: Chat, name: str, tmp_path: Path
) -> None:
    chat("send", name, "hello")
    pids = tmp_path / "pids"
    watch = watching(chat, name, "--exec", f"sleep 600 & echo $! $$ > {pids}; wait")
    wait_until(lambda: pids.exists() and pids.read_text(encoding="ascii").endswith("\n"))
    watch.send_signal(signal.SIGTERM)
    assert (watch.communicate(timeout=30 * PATIENCE)[1], watch.returncode) == ("", 143)
    wait_until(lambda: not any(map(is_running, pids.read_text(encoding="ascii").split())))
    assert chat.texts(name) == ["hello"]


def test_a_message_stays_leased_if_its_command_fails(chat: Chat, name: str) -> None:
    sent = [chat("send", name, text, "--receipt").records[0] for text in ("good", "bad", "better")]
    command = 'read -r it; echo "<$it>"; test "$it" != bad'
    with Terminal(chat, "watch", name, "--exec", command) as terminal:
        terminal.until(b"<better>")
        terminal.until(b"exit 1")

        def statuses() -> list[str]:
            results = [chat("status", each["id"], each["receipt"]) for each in sent]
            return [result.records[0]["status"] for result in results]

        while statuses()[2] != "read":
            pass
        assert statuses() == ["read", "leased", "read"]
        terminal.ctrl_c()
        assert terminal.exit_code() == 130


def test_closing_the_terminal_ends_a_watch_and_its_command(
    chat: Chat, name: str, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    command = f"read answer </dev/tty; sleep 600 & echo $answer $! > {pids}; wait"
    with Terminal(chat, "watch", name, "--exec", command) as terminal:
        chat("send", name, "hello")
        terminal.until(b"watching")
        terminal.type(b"yes\n")
        wait_until(lambda: pids.exists() and pids.read_text(encoding="ascii").endswith("\n"))
        answer, pid = pids.read_text(encoding="ascii").split()
        assert answer == "yes"
        terminal.close()
        assert terminal.process.wait(30) == 129
    wait_until(lambda: not is_running(pid))
    assert chat.texts(name) == ["hello"]


async def test_a_command_that_ignores_sigterm_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat_service.cli.commands.watch._GRACE_S", 0.2)
    command = "trap '' TERM; echo deaf; sleep 600 & wait; wait; sleep 600"
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    await process.stdout.readline()
    async with asyncio.timeout(20):
        await _terminate(process, owns_group=True)
    assert process.returncode == -signal.SIGKILL
