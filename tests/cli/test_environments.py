"""Commands in unusual environments print one line about the problem, and exit as documented."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
from tornado.testing import bind_unused_port

from tests.cli.conftest import Chat, Result
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually


def in_shell(chat: Chat, words: str, redirections: str, **environ: str) -> Result:
    """Run a command whose streams a shell redirects or closes."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *chat.command(*words.split())],
        env={**chat.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in result.err, result.err
    assert "Exception ignored" not in result.err, result.err
    return result


@pytest.mark.parametrize(
    ("words", "redirections", "code", "message"),
    [
        ("--help", ">/dev/full", 8, "could not be written: No space left on device"),
        ("--version", ">&-", 8, "could not be written: Bad file descriptor"),
        ("serve --print-config", ">/dev/full", 8, "No space left on device"),
        ("completion bash", ">/dev/full", 8, "No space left on device"),
        ("doctor --port 0", ">/dev/full", 8, "No space left on device"),
        ("count NAME", ">/dev/full", 8, "No space left on device"),
        ("count NAME", ">&-", 2, "standard output is closed: nothing was done"),
        ("read NAME", ">&-", 2, "standard output is closed: nothing was done"),
        ("read NAME", "<&- >&-", 2, "standard output is closed"),
        ("send NAME x", ">&-", 2, "standard output is closed: nothing was done"),
        ("send NAME", "<&-", 2, "standard input cannot be read: Bad file descriptor"),
        ("send NAME --lines", "<&-", 2, "standard input cannot be read"),
        ("nope", "2>/dev/full", 2, ""),
        ("nope", "<&- >&- 2>&-", 2, ""),
    ],
)
def test_unusable_streams_give_one_line_and_an_exit_code(
    chat: Chat, name: str, words: str, redirections: str, code: int, message: str
) -> None:
    result = in_shell(chat, words.replace("NAME", name), redirections)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == (1 if message else 0)


def test_streams_that_are_not_needed_may_be_closed(chat: Chat, name: str) -> None:
    assert in_shell(chat, f"send {name} kept", "<&-").code == 0
    assert in_shell(chat, f"count {name}", "<&- 2>&-").records == [{"unread": 1}]


@pytest.mark.parametrize("form", ["--json", "--text"])
def test_on_a_full_disk_read_names_the_key(chat: Chat, name: str, form: str) -> None:
    chat("send", name, "--lines", stdin=b"a\nb\nc\n")
    result = in_shell(chat, f"read {name} {form}", ">/dev/full")
    assert result.code == 8
    assert result.err.startswith(
        "chat: the output could not be written: No space left on device; 3 of the messages"
    )
    assert result.err.count("\n") == 1
    again = chat("read", *result.err.partition("chat read ")[2].split())
    assert [message["text"] for message in again.records] == ["a", "b", "c"]


def test_at_a_file_size_limit_read_names_the_key(chat: Chat, name: str, tmp_path: Path) -> None:
    chat("send", name, "--lines", stdin=b"x" * 1000 + b"\n" + b"y" * 1000 + b"\n")
    # The limit is in blocks of 512 bytes: the second message does not fit. Python ignores SIGXFSZ.
    with (tmp_path / "small").open("wb") as small:
        done = subprocess.run(
            ["sh", "-c", 'ulimit -f 3; exec "$@"', "sh", *chat.command("read", name)],
            env=chat.environ,
            stdout=small,
            stderr=subprocess.PIPE,
            check=False,
        )
    message = done.stderr.decode()
    assert (done.returncode, message.count("\n")) == (8, 1)
    assert "File too large; 1 of the messages" in message
    again = chat("read", *message.partition("chat read ")[2].split())
    assert [len(message["text"]) for message in again.records] == [1000, 1000]


@pytest.mark.parametrize("form", ["--json", "--text"])
def test_on_a_full_disk_lease_names_the_lease(chat: Chat, name: str, form: str) -> None:
    chat("send", name, "kept")
    result = in_shell(chat, f"lease {name} --ttl 10m {form}", ">/dev/full")
    assert (result.code, result.err.count("\n")) == (8, 1)
    assert chat(*result.err.rpartition(": chat ")[2].split()).code == 0
    assert chat.texts(name) == ["kept"]


def test_messages_that_watch_cannot_show_become_unread(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"a\nb\n")
    result = in_shell(chat, f"watch {name}", ">/dev/full")
    assert (result.code, "not shown become unread again" in result.err) == (8, True)
    assert [each["text"] for each in chat("read", name, "--wait", "10s").records] == ["a", "b"]


def test_on_a_full_disk_send_names_the_stored_message(chat: Chat, name: str) -> None:
    result = in_shell(chat, f"send {name} kept --receipt", ">/dev/full")
    assert result.code == 8
    words = result.err.split()
    message_id, receipt = words[words.index("as") + 1].strip(","), words[-1]
    assert chat("status", message_id, receipt).records[0]["status"] == "pending"


@pytest.mark.parametrize(
    ("locale", "encoding"), [("C", "ascii:strict"), ("C", "latin-1:strict"), ("POSIX", "cp1252")]
)
def test_a_text_that_the_locale_cannot_encode_is_escaped(
    chat: Chat, name: str, locale: str, encoding: str
) -> None:
    chat.environ |= {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for form in ("--text", "--json"):
        chat("send", name, "日本 \U0001f600")
        result = chat("read", name, form)
        assert result.code == 0
        assert "\\u65e5\\u672c" in result.out


def test_json_in_a_pipe_has_no_control_characters(chat: Chat, name: str) -> None:
    text = "a\x1b]0;x\x07 \x7f \x9b31m \u202egnp.exe \u2066 \u200f \u2028 é日\U0001f600\n"
    chat("send", name, "--file", "/dev/stdin", stdin=text.encode())
    result = chat("read", name)
    assert result.records[0]["text"] == text
    assert not set(result.out) & set("\x1b\x07\x7f\x9b\u202e\u2066\u200f\u2028")
    assert "\\u009b" in result.out
    assert "é日\U0001f600" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((b"send", b"bob", b"\xff"), "'\\udcff' is not UTF-8"),
        ((b"send", b"\xff", b"x"), "'NAME': '\\udcff' is not UTF-8"),
        ((b"read", b"bob", b"--key", b"\xff"), "'--key': '\\udcff' is not UTF-8"),
        ((b"read", b"bob", b"--url", b"http://\xff/"), "is not an address such as"),
        ((b"read", b"bob", b"--url", b"http://a..b/"), "is not an address such as"),
        ((b"status", b"\xff", b"x"), "'ID': '\\udcff' is not UTF-8"),
        ((b"ack", b"bob", b"\xff"), "'LEASE': '\\udcff' is not UTF-8"),
        ((b"send", b"bob", b"--file", b"/none/\xff"), "does not exist"),
        ((b"serve", b"--config", b"/none/\xff"), "bad setting: /none/"),
        ((b"serve", b"--host", b"\xff"), "--host: must be text"),
    ],
)
def test_an_argument_that_is_not_utf8_is_named(
    chat: Chat, words: tuple[bytes, ...], message: str
) -> None:
    command = [*map(os.fsencode, chat.command()), *words]
    done = subprocess.run(command, env=chat.environ, capture_output=True, check=False)
    err = done.stderr.decode()
    assert (done.returncode, err.count("\n")) == (2, 1), err
    assert message in err


class ForeignAnswer(NamedTuple):
    """An answer of a server that is not the chat service."""

    status: int
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class ForeignServer(BaseHTTPRequestHandler):
    """A proxy in front of the service, or another server at its address."""

    answer: ClassVar[ForeignAnswer]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.answer.status)
        for field, value in (("Content-Type", self.answer.type), *self.answer.headers):
            self.send_header(field, value)
        self.send_header("Content-Length", str(len(self.answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.answer.body)

    do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(answer: ForeignAnswer) -> Iterator[str]:
    """Run a server that always gives this answer, and yield its address."""
    handler = type("Handler", (ForeignServer,), {"answer": answer})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


_COMMANDS = (
    "count bob",
    "read bob",
    "lease bob",
    "send bob x",
    "send bob --lines",
    "ack bob 01",
    "extend bob 01 --ttl 5",
    "status 01 x",
    "revoke 01 x",
    "watch bob",
)
_PAGE = b"<!doctype html><title>Sign in</title>"


@pytest.mark.parametrize(
    "answer",
    [
        ForeignAnswer(200, "text/html", _PAGE),
        ForeignAnswer(302, "text/html", b"", (("Location", "/login"),)),
        ForeignAnswer(401, "text/html", _PAGE, (("WWW-Authenticate", "Basic"),)),
        ForeignAnswer(
            200, "application/json", b'{"results": 1, "messages": [1], "lease": [], "id": {}}'
        ),
        ForeignAnswer(200, "application/json", b"[[[[1]]]]", (("X-Unread-Count", "many"),)),
        ForeignAnswer(422, "application/json", b'{"errors": ["x", 1], "type": 3}'),
        ForeignAnswer(200, "application/json", b"[" * 100_000),
    ],
    ids=["page", "redirect", "unauthorized", "json", "list", "errors", "deep"],
)
def test_answers_of_another_server_give_an_error(chat: Chat, answer: ForeignAnswer) -> None:
    with answering(answer) as url:
        # Each command is a process, so all of them are tried only with the most common answer.
        for words in _COMMANDS if answer.body == _PAGE else ("read bob", "send bob --lines"):
            result = chat(*words.split(), stdin=b"a\n", CHAT_URL=url)
            # For lines, the outcome is unknown.
            assert result.code in ((7,) if "--lines" in words else ()) + (2, 6), (words, result)
            assert result.err.startswith("chat: "), (words, result)
            assert len(result.err.splitlines()) <= 2, (words, result)


def test_a_stream_of_another_server_gives_an_error(chat: Chat) -> None:
    events = b'event: open\ndata: {"lease": "01"}\n\nevent: message\ndata: "x"\n\n'
    with answering(
        ForeignAnswer(200, "text/event-stream", events, (("X-Unread-Count", "1"),))
    ) as url:
        result = chat("watch", "bob", CHAT_URL=url)
    assert (result.code, "check the address" in result.err) == (2, True)


def test_an_unavailable_database_is_reported(chat: Chat, name: str) -> None:
    problem = b'{"type": "urn:chat:problem:unavailable", "detail": "the database has failed"}'
    answer = ForeignAnswer(503, "application/problem+json", problem)
    with answering(answer) as url:
        for words in ("read", "count", "lease"):
            result = chat(words, name, CHAT_URL=url)
            assert result.code == 6
            # The answer to a HEAD request has no body.
            reason = "it answered 503" if words == "count" else "the database has failed"
            assert reason in result.err
            assert "no answer" not in result.err
            assert "check that the service is running" not in result.err
        sent = chat("send", name, "--lines", stdin=b"x\n", CHAT_URL=url)
        assert "line 1 was not sent: nothing was done: the service at" in sent.err


def test_a_failed_health_check_gives_one_line(chat: Chat) -> None:
    with answering(ForeignAnswer(200, "text/html", _PAGE)) as url:
        assert chat("healthcheck", "--port", url.rpartition(":")[2]).code == 0
    with answering(ForeignAnswer(503, "text/html", _PAGE)) as url:
        result = chat("healthcheck", "--port", url.rpartition(":")[2])
        assert (result.code, result.err) == (1, "chat: not ready: /readyz answered 503\n")
    result = chat("healthcheck", "--host", "a..b")
    assert (result.code, result.err.count("\n")) == (1, 1)


_URIS: dict[str, str] = {
    "mongodb://user:S3C@RET@host/": "escaped",
    "mongodb://user:S3C/RET@host/": "percent-encoded",
    "mongodb://user:S3C%RET@host/": "escaped",
    "mongodb://host:99999/": "Port must be an integer",
    "mongodb://host:port/": "Port contains non-digit",
    "mongodb://[::1/": "IPv6",
    "mongodb://": "hostname",
    "mongodb://a,,b/": "Empty host",
    "mongodb://h/?readPreference=primary&readPreferenceTags=dc:ny": "combined with tags",
    "mongodb://h/?tls=true&tlsCAFile=/none/ca.pem": "'/none/ca.pem' No such file",
    "mongodb://h/?tls=true&tlsCertificateKeyFile=/": "'/' Is a directory",
    "mongodb://h/?tls=true&tlsCAFile=/etc/passwd": "certificate",
    "mongodb://h/?tls=true&ssl=false": "tls",
    "mongodb://a,b/?directConnection=true": "multiple hosts",
    "mongodb://h/?authMechanism=PLAIN": "requires a username",
    "mongodb://h/?datetime_conversion=x": "'x'",
    "mongodb://h/?x": "key=value",
    "mongodb://h/?repicaSet=rs0": "Unknown option: repicaset. Did you mean",
    "mongodb://h/?tls=yes": "tls must be 'true' or 'false'",
}


@pytest.mark.parametrize("uri", _URIS)
def test_a_wrong_connection_string_gives_one_line(chat: Chat, uri: str) -> None:
    result = chat("serve", "--port", "0", "--mongo-uri", uri)
    assert (result.code, result.out, result.err.count("\n")) == (4, "", 1), result.err
    assert result.err.startswith("chat: the connection string is invalid: ")
    assert _URIS[uri] in result.err
    assert "--mongo-uri" in result.err
    assert "RET" not in result.err


def test_doctor_explains_a_wrong_connection_string(chat: Chat) -> None:
    uri = "mongodb://h/?tls=true&tlsCAFile=/none"
    result = chat("doctor", "--port", "0", "--mongo-uri", uri)
    (found,) = [each for each in result.records if each["check"] == "database"]
    assert found["state"] == "fail"
    assert "No such file" in found["detail"]


@pytest.mark.parametrize("host", ["a..b", "256.1.1.1", "[::1]", "x" * 64])
def test_an_invalid_host_exits_with_3(chat: Chat, host: str) -> None:
    result = chat("serve", "--port", "0", "--host", host, "--mongo-uri", "mongodb://127.0.0.1:1")
    assert (result.code, result.err.count("\n")) == (3, 1), result.err
    assert "--host" in result.err


@pytest.mark.parametrize("redirections", ["<&- >/dev/full", "<&- >&-"])
async def test_a_service_runs_without_standard_streams(
    tmp_path: Path, mongo_uri: str, database: str, redirections: str
) -> None:
    sock, port = bind_unused_port()
    sock.close()
    server = Server(tmp_path, "--mongo-uri", mongo_uri, port=port, CHAT_MONGO_DATABASE=database)
    with server.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'exec "$@" {redirections}', "sh", *server.command),
            env=server.environ,
            stderr=log,
        )
    try:

        async def is_started() -> bool:
            return '"started"' in server.errors()

        await eventually(is_started)
        chat = ChatClient(f"http://127.0.0.1:{port}")
        await chat.post("bob", "kept")
        assert len(await chat.read("bob")) == 1
        chat.close()
    finally:
        process.terminate()
        code = await process.wait()
    assert code == 0
    assert "Traceback" not in server.errors()
