"""Sending and reading through pipes, as scripts do."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.cli.conftest import Chat
from tests.support.waiting import PATIENCE


def test_a_sent_message_is_read_once_with_its_id(chat: Chat, name: str) -> None:
    (sent,) = chat("send", name, "lunch?", "--timeout", "10m").records
    assert chat("count", name).records == [{"unread": 1}]
    assert chat("read", name).records == [{"text": "lunch?", "id": sent["id"]}]
    again = chat("read", name)
    assert (again.code, again.out, again.err) == (1, "", "")


def test_a_file_is_sent_unchanged_and_a_pipe_without_newline(
    chat: Chat, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "letter"
    file.write_bytes("Grüße\n\n".encode())
    assert chat("send", name, "--file", str(file)).code == 0
    assert chat("send", name, stdin=b"two\nlines\n").code == 0
    assert chat("send", name, "-", stdin=b"a hyphen").code == 0
    assert chat.texts(name) == ["Grüße\n\n", "two\nlines", "a hyphen"]


def test_words_form_one_text_and_empty_input_sends_nothing(chat: Chat, name: str) -> None:
    assert chat("send", name, "hello", "world").code == 0
    nothing = chat("send", name, stdin=b"")
    assert (nothing.code, nothing.err) == (1, "chat: standard input is empty; nothing was sent\n")
    assert chat("send", name, "").code == 0
    assert chat.texts(name) == ["hello world", ""]


def test_lines_are_posted_in_order_with_a_result_for_each(chat: Chat, name: str) -> None:
    lines = [f"line {number}" for number in range(1200)]
    lines[700] = "x" * 70_000
    sent = chat("send", name, "--lines", "--receipt", stdin="\n".join(lines).encode())
    assert sent.code == 2
    assert "line 701 was refused: text" in sent.err
    assert [record["line"] for record in sent.records] == list(range(1, 1201))
    assert [record["line"] for record in sent.records if "error" in record] == [701]
    assert all("receipt" in record for record in sent.records if "id" in record)
    del lines[700]
    assert chat.texts(name) == lines


def test_a_line_is_sent_as_soon_as_it_arrives(chat: Chat, name: str) -> None:
    process = subprocess.Popen(
        chat.command("send", name, "--lines"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=chat.environ,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    assert b'"line":1' in process.stdout.readline()
    assert chat.texts(name) == ["first"]
    process.communicate(b"last, without a newline")
    assert process.returncode == 0
    assert chat.texts(name) == ["last, without a newline"]


def test_a_repeat_with_a_key_changes_nothing(chat: Chat, name: str) -> None:
    for _ in range(2):
        chat("send", name, "once", "--key", "my-key-of-today")
        chat("send", name, "--lines", "--key", "my-key-of-lines", stdin=b"a\nb\n")
    key = "0123456789abcdef0123456789abcdef"
    first = chat("read", name, "--key", key)
    assert [message["text"] for message in first.records] == ["once", "a", "b"]
    assert chat("read", name, "--key", key) == first
    assert chat("read", name).code == 1


def test_a_read_returns_all_messages_or_up_to_the_limit(chat: Chat, name: str) -> None:
    lines = [str(number) for number in range(2500)]
    chat("send", name, "--lines", stdin="\n".join(lines).encode())
    few = chat("read", name, "--limit", "1100").records
    assert [message["text"] for message in few] == lines[:1100]
    assert chat.texts(name) == lines[1100:]


def test_a_read_waits_for_a_first_message(chat: Chat, name: str) -> None:
    waiting = subprocess.Popen(
        chat.command("read", name, "--wait", "1m"), stdout=subprocess.PIPE, env=chat.environ
    )
    chat("send", name, "at last")
    out, _ = waiting.communicate(timeout=30 * PATIENCE)
    assert b'"text":"at last"' in out
    assert waiting.returncode == 0
    assert chat("read", name, "--wait", "0.1").code == 1


class Failing(BaseHTTPRequestHandler):
    """A service that cannot store the first batch in any try, but stores the next batches."""

    tries = 6

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).tries -= 1
        is_failing = self.tries >= 0
        answer = {"status": 503, "type": "urn:chat:problem:unavailable"} if is_failing else {}
        if not is_failing:
            answer = {
                "results": [{"id": f"{number:032x}"} for number in range(len(json.loads(body)))]
            }
        sent = json.dumps(answer).encode()
        self.send_response(503 if is_failing else 200)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


def test_each_line_is_reported_if_only_some_are_stored(chat: Chat) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        sent = chat("send", "bob", "--lines", "--url", url, stdin=b"x\n" * 1200)
        server.shutdown()
    assert sent.code == 6
    assert [record["line"] for record in sent.records if "id" in record] == [*range(501, 1201)]
    assert [record["line"] for record in sent.records if "error" in record] == [*range(1, 501)]
    assert "line 500 was not sent: " in sent.err


def test_lines_are_not_read_once_the_service_is_unavailable(chat: Chat) -> None:
    process = subprocess.Popen(
        chat.command("send", "bob", "--lines", "--url", "http://127.0.0.1:1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chat.environ,
    )
    assert process.stdin is not None
    # Standard input stays open: without a stop, the command would wait for more lines.
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.wait(30 * PATIENCE) == 6
    process.stdin.close()
    assert process.stderr is not None
    assert process.stdout is not None
    assert b"the remaining lines are not read" in process.stderr.read()
    process.stderr.close()
    process.stdout.close()


def test_a_password_in_the_address_is_never_shown(chat: Chat) -> None:
    url = "http://me:s3cret@127.0.0.1:1"
    for words in (("count", "bob"), ("send", "bob", "x"), ("doctor",), ("load",)):
        result = chat(*words, "--url", url)
        assert "127.0.0.1:1" in result.out + result.err
        assert "s3cret" not in result.out + result.err


def test_after_a_broken_pipe_read_names_the_key(chat: Chat, name: str) -> None:
    chat("send", name, "--lines", stdin=b"some text\n" * 20_000)
    command = subprocess.Popen(
        chat.command("read", name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=chat.environ
    )
    assert command.stdout is not None
    assert command.stderr is not None
    assert b"some text" in command.stdout.readline()
    command.stdout.close()
    (message,) = command.stderr.read().decode().splitlines()
    command.stderr.close()
    assert command.wait(30) == 141
    again = chat("read", *message.partition("chat read ")[2].split())
    assert len(again.records) == 1000
    # Messages of later batches are still unread.
    assert chat("count", name).records == [{"unread": 10_000, "more": True}]
    assert chat("count", name, "--text").out == ">10000\n"


def test_text_output_can_be_chosen_for_a_pipe(chat: Chat, name: str) -> None:
    (sent,) = chat("send", name, "two\nlines \x1b[2J").records
    shown = chat("read", name, "--text").out
    assert shown.startswith(f"two\nlines \\x1b[2J\n  {sent['id']}, ")


def test_a_final_crlf_is_removed_from_a_text(chat: Chat, name: str) -> None:
    assert chat("send", name, stdin=b"one\r\ntwo\r\n").code == 0
    assert chat("send", name, "--lines", stdin=b"three\r\nfour\r\n\r\nfive").code == 0
    assert chat("send", name, stdin=b"bare\r").code == 0
    assert chat.texts(name) == ["one\r\ntwo", "three", "four", "", "five", "bare\r"]
