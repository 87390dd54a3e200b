"""Commands in odd environments: one line that says what is wrong, and a documented exit code."""

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

from tests.cli.conftest import Chat, Ended
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually


def in_shell(chat: Chat, words: str, redirections: str, **environ: str) -> Ended:
    """Run a command with streams that a shell redirects or closes."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *chat.command(*words.split())],
        env={**chat.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in ended.err, ended.err
    assert "Exception ignored" not in ended.err, ended.err
    return ended


@pytest.mark.parametrize(
    ("words", "redirections", "code", "said"),
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
def test_odd_streams_are_one_line_and_a_code(
    chat: Chat, name: str, words: str, redirections: str, code: int, said: str
) -> None:
    ended = in_shell(chat, words.replace("NAME", name), redirections)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert ended.err.count("\n") == (1 if said else 0)


def test_no_stream_needed_is_no_stream_missed(chat: Chat, name: str) -> None:
    assert in_shell(chat, f"send {name} kept", "<&-").code == 0
    assert in_shell(chat, f"count {name}", "<&- 2>&-").records == [{"unread": 1}]


@pytest.mark.parametrize("form", ["--json", "--text"])
def test_a_full_disk_names_the_key_of_what_was_read(chat: Chat, name: str, form: str) -> None:
    chat("send", name, "--lines", stdin=b"a\nb\nc\n")
    ended = in_shell(chat, f"read {name} {form}", ">/dev/full")
    assert ended.code == 8
    assert ended.err.startswith(
        "chat: the output could not be written: No space left on device; 3 "
    )
    assert ended.err.count("\n") == 1
    again = chat("read", *ended.err.partition("chat read ")[2].split())
    assert [message["text"] for message in again.records] == ["a", "b", "c"]


def test_a_file_that_grows_full_names_the_key_too(chat: Chat, name: str, tmp_path: Path) -> None:
    chat("send", name, "--lines", stdin=b"x" * 1000 + b"\n" + b"y" * 1000 + b"\n")
    # 512-byte blocks: the second message does not fit. Python ignores SIGXFSZ.
    with (tmp_path / "small").open("wb") as small:
        done = subprocess.run(
            ["sh", "-c", 'ulimit -f 3; exec "$@"', "sh", *chat.command("read", name)],
            env=chat.environ,
            stdout=small,
            stderr=subprocess.PIPE,
            check=False,
        )
    said = done.stderr.decode()
    assert (done.returncode, said.count("\n")) == (8, 1)
    assert "File too large; 1 of the messages" in said
    again = chat("read", *said.partition("chat read ")[2].split())
    assert [len(message["text"]) for message in again.records] == [1000, 1000]


@pytest.mark.parametrize("form", ["--json", "--text"])
def test_a_full_disk_names_the_lease(chat: Chat, name: str, form: str) -> None:
    chat("send", name, "kept")
    ended = in_shell(chat, f"lease {name} --ttl 10m {form}", ">/dev/full")
    assert (ended.code, ended.err.count("\n")) == (8, 1)
    assert chat(*ended.err.rpartition(": chat ")[2].split()).code == 0
    assert chat.texts(name) == ["kept"]


def test_what_watch_could_not_show_is_unread_again(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"a\nb\n")
    ended = in_shell(chat, f"watch {name}", ">/dev/full")
    assert (ended.code, "what was not shown is unread again" in ended.err) == (8, True)
    assert [each["text"] for each in chat("read", name, "--wait", "10s").records] == ["a", "b"]


def test_a_full_disk_names_what_was_stored(chat: Chat, name: str) -> None:
    ended = in_shell(chat, f"send {name} kept --receipt", ">/dev/full")
    assert ended.code == 8
    words = ended.err.split()
    message_id, receipt = words[words.index("as") + 1].strip(","), words[-1]
    assert chat("status", message_id, receipt).records[0]["status"] == "pending"


@pytest.mark.parametrize(
    ("locale", "encoding"), [("C", "ascii:strict"), ("C", "latin-1:strict"), ("POSIX", "cp1252")]
)
def test_a_text_that_the_terminal_cannot_encode_is_shown(
    chat: Chat, name: str, locale: str, encoding: str
) -> None:
    chat.environ |= {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for form in ("--text", "--json"):
        chat("send", name, "日本 \U0001f600")
        ended = chat("read", name, form)
        assert ended.code == 0
        assert "\\u65e5\\u672c" in ended.out


def test_json_in_a_pipe_has_nothing_that_a_terminal_obeys(chat: Chat, name: str) -> None:
    text = "a\x1b]0;x\x07 \x7f \x9b31m \u202egnp.exe \u2066 \u200f \u2028 é日\U0001f600\n"
    chat("send", name, "--file", "/dev/stdin", stdin=text.encode())
    ended = chat("read", name)
    assert ended.records[0]["text"] == text
    assert not set(ended.out) & set("\x1b\x07\x7f\x9b\u202e\u2066\u200f\u2028")
    assert "\\u009b" in ended.out
    assert "é日\U0001f600" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((b"send", b"bob", b"\xff"), "'\\udcff' is not UTF-8"),
        ((b"send", b"\xff", b"x"), "'NAME': '\\udcff' is not UTF-8"),
        ((b"read", b"bob", b"--key", b"\xff"), "'--key': '\\udcff' is not UTF-8"),
        ((b"read", b"bob", b"--url", b"http://\xff/"), "is no address such as"),
        ((b"read", b"bob", b"--url", b"http://a..b/"), "is no address such as"),
        ((b"status", b"\xff", b"x"), "'ID': '\\udcff' is not UTF-8"),
        ((b"ack", b"bob", b"\xff"), "'LEASE': '\\udcff' is not UTF-8"),
        ((b"send", b"bob", b"--file", b"/none/\xff"), "does not exist"),
        ((b"serve", b"--config", b"/none/\xff"), "bad setting: /none/"),
        ((b"serve", b"--host", b"\xff"), "--host: must be text"),
    ],
)
def test_an_argument_that_is_no_utf8_is_named(
    chat: Chat, words: tuple[bytes, ...], said: str
) -> None:
    command = [*map(os.fsencode, chat.command()), *words]
    done = subprocess.run(command, env=chat.environ, capture_output=True, check=False)
    err = done.stderr.decode()
    assert (done.returncode, err.count("\n")) == (2, 1), err
    assert said in err


class Other(NamedTuple):
    """What something that is not the service answers."""

    status: int
    type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Others(BaseHTTPRequestHandler):
    """Something in front of the service, or instead of it."""

    answer: ClassVar[Other]

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
def answering(answer: Other) -> Iterator[str]:
    """Run such a one; gives its address."""
    handler = type("Handler", (Others,), {"answer": answer})
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
        Other(200, "text/html", _PAGE),
        Other(302, "text/html", b"", (("Location", "/login"),)),
        Other(401, "text/html", _PAGE, (("WWW-Authenticate", "Basic"),)),
        Other(200, "application/json", b'{"results": 1, "messages": [1], "lease": [], "id": {}}'),
        Other(200, "application/json", b"[[[[1]]]]", (("X-Unread-Count", "many"),)),
        Other(422, "application/json", b'{"errors": ["x", 1], "type": 3}'),
        Other(200, "application/json", b"[" * 100_000),
    ],
    ids=["page", "redirect", "unauthorized", "json", "list", "errors", "deep"],
)
def test_an_answer_that_is_not_the_services_is_said_to_be_so(chat: Chat, answer: Other) -> None:
    with answering(answer) as url:
        # Each is a process: all of them for the commonest.
        for words in _COMMANDS if answer.body == _PAGE else ("read bob", "send bob --lines"):
            ended = chat(*words.split(), stdin=b"a\n", CHAT_URL=url)
            # Of a line it is unknown what became of it there.
            assert ended.code in ((7,) if "--lines" in words else ()) + (2, 6), (words, ended)
            assert ended.err.startswith("chat: "), (words, ended)
            assert len(ended.err.splitlines()) <= 2, (words, ended)


def test_a_stream_of_another_is_said_to_be_none(chat: Chat) -> None:
    events = b'event: open\ndata: {"lease": "01"}\n\nevent: message\ndata: "x"\n\n'
    with answering(Other(200, "text/event-stream", events, (("X-Unread-Count", "1"),))) as url:
        ended = chat("watch", "bob", CHAT_URL=url)
    assert (ended.code, "is this its address?" in ended.err) == (2, True)


def test_what_the_service_says_when_it_has_no_database_is_said(chat: Chat, name: str) -> None:
    problem = b'{"type": "urn:chat:problem:unavailable", "detail": "the database is away"}'
    answer = Other(503, "application/problem+json", problem)
    with answering(answer) as url:
        for words in ("read", "count", "lease"):
            ended = chat(words, name, CHAT_URL=url)
            assert ended.code == 6
            # A HEAD has no body.
            reason = "it answered 503" if words == "count" else "the database is away"
            assert reason in ended.err
            assert "no answer" not in ended.err
            assert "is it running" not in ended.err
        sent = chat("send", name, "--lines", stdin=b"x\n", CHAT_URL=url)
        assert "line 1 was not sent: nothing was done: the service at" in sent.err


def test_a_health_check_of_something_else_fails_in_a_line(chat: Chat) -> None:
    with answering(Other(200, "text/html", _PAGE)) as url:
        assert chat("healthcheck", "--port", url.rpartition(":")[2]).code == 0
    with answering(Other(503, "text/html", _PAGE)) as url:
        ended = chat("healthcheck", "--port", url.rpartition(":")[2])
        assert (ended.code, ended.err) == (1, "chat: not ready: /readyz answers 503\n")
    ended = chat("healthcheck", "--host", "a..b")
    assert (ended.code, ended.err.count("\n")) == (1, 1)


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
}


@pytest.mark.parametrize("uri", _URIS)
def test_a_connection_string_that_is_wrong_is_one_line(chat: Chat, uri: str) -> None:
    ended = chat("serve", "--port", "0", "--mongo-uri", uri)
    assert (ended.code, ended.out, ended.err.count("\n")) == (4, "", 1), ended.err
    assert ended.err.startswith("chat: the connection string is invalid: ")
    assert _URIS[uri] in ended.err
    assert "--mongo-uri" in ended.err
    assert "RET" not in ended.err


def test_the_doctor_says_what_is_wrong_with_a_connection_string(chat: Chat) -> None:
    uri = "mongodb://h/?tls=true&tlsCAFile=/none"
    ended = chat("doctor", "--port", "0", "--mongo-uri", uri)
    (found,) = [each for each in ended.records if each["check"] == "database"]
    assert found["state"] == "fail"
    assert "No such file" in found["detail"]


def test_an_option_that_the_driver_ignores_is_told_of(chat: Chat) -> None:
    uri = "mongodb://127.0.0.1:1/?repicaSet=rs0"
    ended = chat("serve", "--port", "0", "--mongo-uri", uri, CHAT_MONGO_WAIT_S="0")
    assert ended.code == 4
    assert "an option of the connection string is ignored" in ended.err
    assert "repicaSet" in ended.err or "repicaset" in ended.err


@pytest.mark.parametrize("host", ["a..b", "256.1.1.1", "[::1]", "x" * 64])
def test_a_host_that_is_none_ends_with_3(chat: Chat, host: str) -> None:
    ended = chat("serve", "--port", "0", "--host", host, "--mongo-uri", "mongodb://127.0.0.1:1")
    assert (ended.code, ended.err.count("\n")) == (3, 1), ended.err
    assert "--host" in ended.err


@pytest.mark.parametrize("redirections", ["<&- >/dev/full", "<&- >&-"])
async def test_a_service_without_standard_streams_serves(
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
