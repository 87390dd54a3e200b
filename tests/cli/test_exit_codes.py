"""Exit codes are as documented, and errors are one line that says what to do."""

import asyncio
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import Chat
from tests.support.middleman import Middleman
from tests.support.server import Server


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sned"], "No such command 'sned'. Did you mean 'send'?"),
        (["--url", "http://127.0.0.1:1", "read", "bob"], "Put it after the command."),
        (["inspect", "ops", "--url", "http://127.0.0.1:1"], "'--url'. This command asks the data"),
        (["token", "hash", "--url", "http://127.0.0.1:1"], "No such option '--url'. See:"),
        (["send"], "Missing argument 'NAME'"),
        (["send", "bob", "x", "--timeout", "soon"], "'soon' is not a duration such as 30s"),
        (["send", "bob", "x", "--timeout", "1.5"], "not a whole number of seconds"),
        (["send", "bob", "x", "--lines"], "--lines reads standard input"),
        (["read", "bob", "--url", "localhost:8080"], "is not an address such as http://"),
        (["read", "bob", "--limit", "0"], "--limit"),
        (["send", "bob" * 100, "x"], "the service refused: the inbox's name must have 1 to 128"),
        (
            ["send", "bob", "x", "--timeout", "9999d"],
            "--timeout must be a number of seconds from 1",
        ),
        (["send", "bob", "x", "--key", ""], "'--key': must not be empty"),
        (["read", "bob", "--key", "short"], "--key must have at least 22 characters"),
        (["status", "01a2", "none"], "this receipt"),
        (["ack", "bob", "x"], "the lease must be a string of hexadecimal digits, as chat lease"),
        (["read", ""], "'NAME': must not be empty."),
        (["completion"], "Missing argument 'SHELL'. Choose from: bash, zsh, fish. See:"),
        (["load", "--duration", "0.5"], "--duration must be at least 1s."),
        (["load", "--url", "http://chat.example"], "add --yes"),
    ],
)
def test_usage_errors_and_refusals_exit_with_2_and_one_line(
    chat: Chat, words: list[str], message: str
) -> None:
    result = chat(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("chat: ")
    assert message in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["send bob x", "read bob", "watch bob", "count bob", "load"])
def test_an_unreachable_service_exits_with_6(chat: Chat, command: str) -> None:
    result = chat(*command.split(), CHAT_URL="http://127.0.0.1:1")
    assert (result.code, result.out) == (6, "")
    assert result.err.startswith("chat: no answer from http://127.0.0.1:1")
    assert result.err.count("no answer from") == 1
    assert result.err.count("\n") == 1


async def test_an_unknown_outcome_exits_with_7_and_names_the_key(server: Server, name: str) -> None:
    async with Middleman(server.port) as middleman:
        middleman.lose = 100
        chat = Chat(middleman.base)
        result = await asyncio.to_thread(chat, "send", name, "stored once")
        assert result.code == 7
        key = result.err.strip().rpartition("--key ")[2]
        middleman.lose = 0
        again = await asyncio.to_thread(chat, "send", name, "stored once", "--key", key)
        assert again.code == 0
        assert await asyncio.to_thread(chat.texts, name) == ["stored once"]


@pytest.mark.parametrize("words", ["serve --print-config", "completion bash", "--help"])
def test_a_closed_pipe_exits_with_141_and_no_message(chat: Chat, words: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        chat.command(*words.split()),
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=chat.environ,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_help_of_every_command_has_examples(chat: Chat) -> None:
    overview = chat("--help").out
    commands = [line.split()[0] for line in overview.splitlines() if line.startswith("  ")]
    named = [word for word in commands if word.isalpha() and word.islower() and word != "chat"]
    for command in ("send", "read", "watch", "lease", "status", "serve", "doctor", "load"):
        assert command in named
        text = chat(command, "--help").out
        assert text.count(f"chat {command}") >= 3, text
    assert "130  Ctrl-C" in overview


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ("'count', 'bob'", ("workers", "pymongo", "uvloop", "msgspec", "config", "tornado")),
        ("'serve', '--print-config'", ("chat_inbox", "httpx")),
        ("'--help',", ("workers", "tornado", "config", "chat_inbox", "httpx")),
    ],
)
def test_a_command_imports_only_what_it_needs(
    chat: Chat, words: str, absent: tuple[str, ...]
) -> None:
    program = (
        "import sys; from chat_service.cli.main import main; "
        f"main([{words}]); print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=chat.environ,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert not set(absent) & set(done.stderr.splitlines())


def test_serve_accepts_the_client_variable_chat_url(chat: Chat) -> None:
    assert chat("serve", "--print-config", CHAT_URL="http://127.0.0.1:1").code == 0
