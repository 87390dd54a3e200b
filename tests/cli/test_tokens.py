"""Tokens of client commands: where they come from, where they go, and what a refusal prints."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from chat_inbox import ChatClient
from chat_service.cli.credentials import find_token
from tests.cli.conftest import Chat, Result
from tests.cli.terminal import Terminal
from tests.clients_python.test_tokens import REFUSED, SECRET, limited, tokens_of
from tests.support.access import TOKENS, everybody, write
from tests.support.middleman import Middleman, answer
from tests.support.server import Server

OTHER = "cht_other"


async def run(chat: Chat, words: str, **environ: str) -> Result:
    """Run a command while the test's loop serves it."""
    result = await asyncio.to_thread(lambda: chat(*words.split(), stdin=b"text", **environ))
    assert SECRET not in result.out + result.err
    return result


def write_token(folder: Path, mode: int = 0o600, token: str = SECRET) -> Path:
    """Write a token to the user's own file. Return the file."""
    file = folder / "chat" / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{token}\n", encoding="utf-8")
    file.chmod(mode)
    return file


async def test_a_token_is_found_in_order(server: Server, name: str, tmp_path: Path) -> None:
    write_token(tmp_path, token="cht_home")
    named = tmp_path / "named"
    named.write_text("\ufeffcht_named\r\n", encoding="utf-8")
    named.chmod(0o444)
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    file = {"CHAT_TOKEN_FILE": str(named)}
    async with Middleman(server.port) as between:
        chat = Chat(between.base)
        for environ, expected in (
            ({**home, **file, "CHAT_TOKEN": SECRET}, SECRET),
            ({**home, **file, "CHAT_TOKEN": ""}, "cht_named"),
            ({**home, "CHAT_TOKEN_FILE": ""}, "cht_home"),
            ({"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}, ""),
        ):
            assert (await run(chat, f"count {name}", **environ)).code == 0
            assert tokens_of(between.heads)[-1] == expected
        (tmp_path / ".config").mkdir()
        write_token(tmp_path / ".config", token="cht_default")
        await run(chat, f"count {name}", HOME=str(tmp_path), XDG_CONFIG_HOME="")
        assert tokens_of(between.heads)[-1] == "cht_default"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_token_file_of_others_is_refused(chat: Chat, tmp_path: Path, mode: int) -> None:
    file = write_token(tmp_path, mode)
    result = chat("count", "bob", XDG_CONFIG_HOME=str(tmp_path))
    assert (result.code, result.out) == (2, "")
    assert result.err == f"chat: other users can read or change {file}; run: chmod 600 {file}\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"a b", "no token has"),
        (b"\xff\xfe", "no token has"),
        (None, "No such file"),
    ],
)
def test_an_unusable_token_is_one_line(
    chat: Chat, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    result = chat("count", "bob", CHAT_TOKEN_FILE=str(file))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert reason in result.err
    assert str(file) in result.err
    if content == b"a b":
        assert "a b" not in result.err


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("send NAME x", 1),
        ("send NAME --lines", 1),
        ("read NAME", 1),
        ("count NAME", 1),
        ("lease NAME", 1),
        ("ack NAME 00", 1),
        ("status 00 x", 1),
        ("load --duration 1s --connections 2 --inboxes 2", 3),
    ],
)
async def test_every_command_sends_the_token(
    server: Server, name: str, words: str, count: int
) -> None:
    async with Middleman(server.port) as between:
        await run(Chat(between.base), words.replace("NAME", name), CHAT_TOKEN=SECRET)
        tokens = tokens_of(between.heads)
    assert len(tokens) >= count
    assert set(tokens) == {SECRET}


@pytest.mark.parametrize("words", ["send bob x", "read bob", "watch bob", "load --yes", "doctor"])
def test_plain_http_to_others_needs_insecure(chat: Chat, words: str) -> None:
    # This address is for documents: nobody has it.
    url = "http://192.0.2.1"
    result = chat(*words.split(), CHAT_URL=url, CHAT_TOKEN=SECRET)
    assert (result.code, result.out) == (2, "")
    assert "plain HTTP would show the token to the network on the way to 192.0.2.1" in result.err
    assert "--insecure" in result.err
    assert result.err.count("\n") == 1


def test_no_option_takes_a_token(chat: Chat) -> None:
    for words in (("send", "bob", "x"), ("read", "bob"), ("load",), ("doctor",)):
        result = chat(*words, "--token", SECRET)
        assert result.code == 2
        assert "No such option" in result.err


@pytest.mark.parametrize(
    ("refusal", "code", "message"),
    [
        (
            REFUSED,
            9,
            "does not accept the token from CHAT_TOKEN: it is unknown, revoked or expired",
        ),
        (
            answer(403, b'{"type": "urn:chat:problem:forbidden"}'),
            9,
            'the token from CHAT_TOKEN may not send to "bob" at ',
        ),
        (limited(90), 6, "limits this client; try again in 90 s"),
        (
            answer(429, b'{"type": "urn:chat:problem:inbox-full", "detail": "bob is full"}'),
            6,
            "nothing was stored: bob is full",
        ),
        (
            answer(
                507, b'{"type": "urn:chat:problem:storage-full", "detail": "nothing was stored"}'
            ),
            6,
            "has no room: nothing was stored",
        ),
    ],
)
async def test_a_refusal_is_one_line_and_an_exit_code(
    server: Server, refusal: bytes, code: int, message: str
) -> None:
    async with Middleman(server.port) as between:
        chat = Chat(between.base)
        between.answers = [refusal]
        result = await run(chat, "send bob x", CHAT_TOKEN=SECRET)
        assert (result.code, result.out) == (code, "")
        assert message in result.err
        assert result.err.count("\n") == 1
        between.answers = [refusal]
        lines = await run(chat, "send bob --lines", CHAT_TOKEN=SECRET)
        assert lines.code == code
        assert "the remaining lines are not read" in lines.err


@pytest.mark.parametrize("words", ["count bob", "watch bob", "load --duration 1s"])
async def test_without_a_token_a_401_says_how_to_give_one(server: Server, words: str) -> None:
    async with Middleman(server.port) as between:
        # The answer to HEAD has no body.
        between.answers = [answer(401, b"", b"WWW-Authenticate: Bearer")]
        result = await run(Chat(between.base), words)
    assert result.code == 9
    assert "needs a token; set CHAT_TOKEN or CHAT_TOKEN_FILE, or write it to" in result.err
    assert result.err.count("\n") == 1


async def test_a_renewed_token_file_is_read_again(
    server: Server, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET, encoding="utf-8")
    async with Middleman(server.port) as between:
        chat = Chat(between.base)
        between.answers = [REFUSED]
        first = await run(chat, f"count {name}", CHAT_TOKEN_FILE=str(file))
        # The file has the same token, so the request is not repeated.
        assert (first.code, len(between.heads)) == (9, 1)
        token = find_token({"CHAT_TOKEN_FILE": str(file)})
        assert token is not None
        async with ChatClient(between.base, token=token.source()) as client:
            await client.count(name)
            file.write_text(OTHER, encoding="utf-8")
            between.answers = [REFUSED]
            await client.count(name)
        assert tokens_of(between.heads) == [SECRET, SECRET, SECRET, OTHER]


async def test_a_token_can_come_through_a_pipe(server: Server, name: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writing = threading.Thread(target=fifo.write_text, args=(SECRET,), kwargs={"encoding": "utf-8"})
    async with Middleman(server.port) as between:
        writing.start()
        result = await run(Chat(between.base), f"count {name}", CHAT_TOKEN_FILE=str(fifo))
        writing.join()
        assert result.code == 0
        assert tokens_of(between.heads) == [SECRET]


def test_commands_work_at_a_service_with_access(
    tmp_path: Path, mongo_uri: str, database: str, name: str
) -> None:
    file = tmp_path / "access.toml"
    write(file, everybody())
    environ = {
        "CHAT_ACCESS": "tokens",
        "CHAT_ACCESS_FILE": str(file),
        "CHAT_MONGO_DATABASE": database,
    }
    server = Server(tmp_path, "--mongo-uri", mongo_uri, port=0, **environ)
    with server:
        chat = Chat(server.base)
        refused = chat("watch", name, CHAT_TOKEN=TOKENS["bob"])
        assert refused.code == 9
        assert f'the token from CHAT_TOKEN may not read "{name}" at' in refused.err
        with Terminal(chat, "watch", "bob", CHAT_TOKEN=TOKENS["bob"]) as terminal:
            terminal.until(b"watching bob")
            assert chat("send", "bob", "hello", CHAT_TOKEN=TOKENS["alice"]).code == 0
            terminal.until(b"hello")
            write(file, everybody(bob="-"))
            assert terminal.exit_code() == 9
        assert b"does not accept the token from CHAT_TOKEN" in terminal.seen
        assert TOKENS["bob"].encode() not in terminal.seen
        load = ("load", "--duration", "1s", "--connections", "4", "--inboxes", "8")
        result = chat(*load, CHAT_TOKEN=TOKENS["root"])
        assert (result.code, result.records[0]["errors"]) == (0, {})
        for who in ("root", "alice"):
            doctor = chat("doctor", "--port", "0", "--mongo-uri", mongo_uri, CHAT_TOKEN=TOKENS[who])
            checks = {each["check"] for each in doctor.records}
            # Only operators may see the metrics.
            assert ("metrics" in checks, "loop lag" in checks) == (who == "alice", who == "root")
        healthy = chat("healthcheck", "--port", str(server.port), stdin=b"", **environ)
        assert healthy.code == 0, healthy.err
