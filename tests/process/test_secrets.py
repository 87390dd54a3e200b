"""No secret leaves a service but to whom it belongs: canaries are in everything that is secret.

Real processes serve every route to good and bad requests, with bugs that are injected and with an
end by a signal. Afterwards no canary may be in the output, the metrics, the telemetry, the
problems, the pages or the arguments of a process.
"""

import asyncio
import base64
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from tornado.ioloop import IOLoop

from tests.support import issuer
from tests.support.code_path import CODE_PATH
from tests.support.collector import Collector
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually

#: Bugs in the code that has a token, a text, a name or a key in its variables. A stand-in for the
#: package better_exceptions shows variables in tracebacks, as that one does.
BUGS = {
    "sitecustomize.py": """
import chat_service.access.gate as gate
import chat_service.handlers.inbox as inbox

def fail_for(module, name, sign):
    original = getattr(module, name)
    def with_bug(*arguments, **options):
        if sign in repr(arguments):
            raise KeyError("injected")
        return original(*arguments, **options)
    setattr(module, name, with_bug)

if "serve" in __import__("sys").orig_argv or "process" in __import__("sys").orig_argv:
    fail_for(inbox, "new_message", "explode")
    fail_for(gate, "sha256", "explode")
""",
    "better_exceptions.py": """
import traceback

def format_exception(kind, error, trace):
    lines = traceback.format_exception(kind, error, trace)
    while trace is not None:
        lines.append(repr(trace.tb_frame.f_locals))
        trace = trace.tb_next
    return lines
""",
}


class Canaries:
    """Unique values, by what is secret."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}

    def make(self, what: str, prefix: str = "") -> str:
        """Return a new value for a secret."""
        value = f"{prefix}canary{secrets.token_hex(12)}"
        self.keep(what, value)
        return value

    def keep(self, what: str, value: str) -> None:
        """Look for this value, too."""
        self.made[f"{what} {len(self.made)}"] = value

    def found_in(self, text: str, but: Sequence[str] = ()) -> list[str]:
        """Return which of them occur in a text, as they are or encoded."""
        return [
            what
            for what, value in self.made.items()
            if not what.startswith(tuple(but)) and any(form in text for form in _forms(value))
        ]


def _forms(value: str) -> Iterator[str]:
    """Yield what a value looks like in logs, URLs and headers."""
    yield value
    yield quote(value, safe="")
    yield json.dumps(value)[1:-1]
    encoded = value.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # Without the end, which depends on what follows.
        yield encode(encoded).decode().rstrip("=")[:-1]
    yield encoded.hex()


def test_a_canary_is_found_in_each_of_its_forms() -> None:
    canaries = Canaries()
    value = canaries.make("name", "\u00e9 /")
    assert canaries.found_in("nothing") == []
    for form in (f"x{value}x", quote(value, safe=""), base64.b64encode(value.encode()).decode()):
        assert canaries.found_in(form) == ["name 0"]
        assert canaries.found_in(form, but=["name"]) == []


class Answer(NamedTuple):
    """An answer: its status, and everything that was received."""

    status: int
    text: str


class Attempt:
    """The requests of one run: each route, with all kinds of credentials, well-formed and not."""

    def __init__(self, port: int, canaries: Canaries, good: Mapping[str, str]) -> None:
        """`good` has tokens that permit everything, by what they are called."""
        self._port = port
        self._canaries = canaries
        self._good = good
        self.answers: list[Answer] = []

    async def ask(self, data: bytes) -> Answer:
        """Send bytes, and return the answer; a stream's is its head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head, body = b"", b""
        try:
            writer.write(data)
            async with asyncio.timeout(20 * PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                if not data.startswith(b"HEAD ") and b"/stream" not in data.partition(b"\r\n")[0]:
                    body = await _body(reader, head)
        except (ConnectionError, asyncio.IncompleteReadError):
            # What it said before can still be judged.
            pass
        finally:
            writer.close()
        status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
        self.answers.append(Answer(status, (head + body).decode("utf-8", "replace")))
        return self.answers[-1]

    async def request(
        self, method: str, path: str, *lines: str, body: str | bytes | None = None
    ) -> Answer:
        """Send a request with these header lines."""
        body = body.encode() if isinstance(body, str) else body
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, *length]
        return await self.ask("\r\n".join([*head, "", ""]).encode() + (body or b""))

    async def run(self) -> None:
        """Send everything."""
        for what, token in self._good.items():
            await self._use(what, f"Authorization: Bearer {token}")
        for lines in self._credentials():
            await self._try(lines)
        await self._malform(f"Authorization: Bearer {next(iter(self._good.values()))}")

    def _credentials(self) -> Iterator[Sequence[str]]:
        """Yield header lines with all kinds of good and bad credentials."""
        token = next(iter(self._good.values()))
        unknown = self._canaries.make("token", "cht_")
        encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
        websocket = (
            *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        yield ()
        yield (f"Authorization: Bearer {unknown}",)
        yield (f"Authorization: Bearer {unknown} {unknown}",)
        yield (f"Authorization: Basic {base64.b64encode(f'a:{unknown}'.encode()).decode()}",)
        yield (f"Authorization: {unknown}",)
        yield (f"Authorization: Bearer {token}", f"Authorization: Bearer {unknown}")
        yield (f"Authorization: Bearer eyJhbGciOiJub25lIn0.{unknown}.{unknown}",)
        # The bug that is injected into the look-up of tokens.
        yield (f"Authorization: Bearer {self._canaries.make('token', 'explode')}",)
        for name in ("chat", "__Host-chat"):
            for origin in ("http://127.0.0.1", "http://evil.test"):
                yield (f"Cookie: a=b; {name}={token}", f"Origin: {origin}")
            yield (f"Cookie: {name}={self._canaries.make('cookie')}", "Sec-Fetch-Site: same-origin")
        yield (*websocket, f"Sec-WebSocket-Protocol: chat.v1, chat.bearer.{encoded}")
        yield (*websocket, f"Sec-WebSocket-Protocol: chat.v1, chat.bearer.{unknown}")

    async def _use(self, what: str, authorization: str) -> None:
        """Use every route as its clients do, with secrets of all kinds."""
        make = self._canaries.make
        name, key, text = make("name"), make("key"), make("text")
        inbox = f"/chat/{name}"
        body = json.dumps({"username": name, "text": text, "timeout": 60})
        posted = await self.request(
            *("POST", "/chat", authorization, f"Idempotency-Key: {key}", "Prefer: receipt"),
            body=body,
        )
        assert posted.status == 201, (what, posted)
        receipt = _header(posted, "X-Receipt")
        self._canaries.keep("receipt", receipt)
        message = _document(posted)["id"]
        batch = json.dumps([json.loads(body), {"username": name, "text": [text]}])
        await self.request(
            "POST", "/chat/batch", authorization, f"Idempotency-Key: {key}b", body=batch
        )
        with_receipt = (authorization, f"X-Receipt: {receipt}")
        assert (
            await self.request("GET", f"/messages/{message}/status", *with_receipt)
        ).status == 200
        await self.request("DELETE", f"/messages/{message}", *with_receipt)
        await self.request("DELETE", f"/messages/{message}", authorization, f"X-Receipt: {key}")
        leased = _document(
            await self.request("POST", f"{inbox}/lease?ttl=5", authorization, body="")
        )
        for action in ("extend", "ack", "release"):
            fields = {"lease": leased["lease"], **({"ttl": 5} if action == "extend" else {})}
            await self.request("POST", f"{inbox}/{action}", authorization, body=json.dumps(fields))
        await self.request("POST", "/chat", authorization, body=body)
        await self.request("HEAD", inbox, authorization)
        await self.request("GET", f"{inbox}/stream", authorization)
        await self.request(
            "POST", f"{inbox}/read", authorization, f"Idempotency-Key: {key}-read", body=""
        )
        await self.request("GET", f"{inbox}?wait=0.1", authorization)
        session = await self.request("POST", "/session", authorization, body="")
        assert session.status == 200, (what, session)
        for method in ("GET", "DELETE"):
            await self.request(method, "/session", authorization)
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/assets/api.js", "/ops"):
            assert (await self.request("GET", path, authorization)).status == 200
        # The bug that is injected into the reading of messages.
        text = f"explode {text}"
        failed = await self.request(
            "POST", "/chat", authorization, body=json.dumps({"username": name, "text": text})
        )
        assert failed.status == 500, failed

    async def _try(self, lines: Sequence[str]) -> None:
        """Try some routes with these credentials."""
        make = self._canaries.make
        name, text = make("name"), make("text")
        body = json.dumps({"username": name, "text": text})
        await self.request("POST", "/chat", *lines, f"Idempotency-Key: {make('key')}", body=body)
        await self.request("POST", "/chat/batch", *lines, body=f"[{body}]")
        for path in (name, f"{name}?wait=0", f"{name}/stream"):
            await self.request("GET", f"/chat/{path}", *lines)
        await self.request("POST", f"/chat/{name}/ack", *lines, body=json.dumps({"lease": text}))
        await self.request(
            "GET", f"/messages/{text}/status", *lines, f"X-Receipt: {make('receipt')}"
        )
        await self.request("POST", "/session", *lines, body="")
        for path in ("/session", "/ops/history", "/metrics", f"/{name}"):
            await self.request("GET", path, *lines)

    async def _malform(self, authorization: str) -> None:
        """Send requests that are wrong in the place where a secret is."""
        make, token = self._canaries.make, self._canaries.make("token", "cht_")
        name, text = make("name"), make("text")
        for body in (
            f'{{"username": "{name}", "text": "{text}',
            f'{{"username": "{name}", "text": ["{text}"]}}',
            f'{{"username": "{name}", "text": "{text}", "timeout": "{text}"}}',
            f'{{"username": "{name * 20}", "text": "{text}"}}',
            f'{{"username": "{name}", "text": "{text}\\ud800"}}',
            f'{{"username": "{name}", "text": "{text * 9000}"}}',
            f'"{text}"',
        ):
            await self.request("POST", "/chat", authorization, body=body)
            await self.request("POST", "/chat/batch", authorization, body=f"[{body}]")
        await self.request("POST", "/chat", authorization, body=text.encode() + b"\xff")
        await self.request("POST", "/chat", authorization, f"Idempotency-Key: {'k' * 300}{text}")
        for query in (f"limit={text}", f"wait={text}", f"{name}=1", f"token={token}"):
            await self.request("GET", f"/chat/{name}?{query}", authorization)
            await self.request("GET", f"/ops/history?{query}", authorization)
        await self.request("GET", f"/chat/{name}", f"Authorization : Bearer {token}")
        await self.request("GET", f"/chat/{name}", f"Authorization: Bearer {token}\x00")
        await self.request("GET", f"/chat/{name}", f" Authorization: Bearer {token}")
        await self.request("GET", f"/chat/{name}", f"Authorization: Bearer {token * 100}")
        await self.request("GET", f"/chat/{name}", f"Authorization: Bearer {token * 400}")
        await self.request(token, f"/chat/{name}")
        await self.request("GET", f"/chat/%zz{name}", authorization)
        await self.ask(f"GET /chat/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\n{token}\r\n\r\n".encode())
        await self.ask(f"{token}\r\n\r\n".encode())


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"\r\nTransfer-Encoding: chunked" in head:
        return await reader.readuntil(b"\r\n0\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    return await reader.readexactly(int(length[1])) if length else b""


def _header(answer: Answer, name: str) -> str:
    found = re.search(rf"(?im)^{name}: ([^\r]*)", answer.text)
    assert found, answer
    return found[1]


def _document(answer: Answer) -> dict[str, str]:
    document = json.loads(answer.text.partition("\r\n\r\n")[2])
    assert isinstance(document, dict)
    return document


def _rights(name: str, token: str) -> str:
    digest = sha256(token.encode()).hexdigest()
    rights = 'send = ["*"]\nread = ["*"]\nops = true\n'
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\n{rights}'


class Run:
    """One service with canaries in all its secrets."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.canaries = Canaries()
        file_token = self.canaries.make("token", "cht_")
        chat = {"send": ["*"], "read": ["*"], "ops": True}
        signed = issuer.token(sub="signed", chat=chat)
        for part in (signed, signed.rpartition(".")[2]):
            self.canaries.keep("token", part)
        self.good = {"file": file_token, "jwt": signed}
        (folder / "access.toml").write_text(_rights("worker", file_token), encoding="utf-8")
        (folder / "keys.json").write_text(json.dumps(issuer.key_set()), encoding="utf-8")
        bugs = folder / "bugs"
        bugs.mkdir()
        for file, code in BUGS.items():
            (bugs / file).write_text(code, encoding="utf-8")
        self.environ = {
            "CHAT_ACCESS": "both",
            "CHAT_ACCESS_FILE": str(folder / "access.toml"),
            "CHAT_JWT_ISSUER": issuer.ISSUER,
            "CHAT_JWT_AUDIENCE": issuer.AUDIENCE,
            "CHAT_JWT_KEYS": str(folder / "keys.json"),
            "CHAT_LOG_LEVEL": "debug",
            "CHAT_LOG_REQUESTS_PER_S": "100000",
            "CHAT_LOG_USERNAME_KEY": self.canaries.make("log key"),
            "PYTHONPATH": f"{bugs}:{CODE_PATH}",
            "PYTHONFAULTHANDLER": "1",
            **environ,
        }
        self.server = Server(folder, *arguments, port=0, **self.environ)
        self.output = ""

    async def drive(self) -> None:
        """Use every route, and look for canaries in what is not only for their owner."""
        attempt = Attempt(self.server.port, self.canaries, self.good)
        await attempt.run()
        problems = [answer for answer in attempt.answers if answer.status >= 400]
        assert {400, 401, 403, 404, 413, 500} <= {answer.status for answer in problems}
        for answer in problems:
            # An unknown parameter is named to the one who sent it.
            assert not self.canaries.found_in(answer.text, but=["name"]), answer
        # These are for everyone who may read them.
        authorization = f"Authorization: Bearer {self.good['file']}"
        for path in ("/metrics", "/ops/history", "/openapi.json", "/readyz"):
            answer = await attempt.request("GET", path, authorization)
            assert answer.status == 200, answer
            assert not self.canaries.found_in(answer.text), path

    def arguments(self) -> str:
        """Return the arguments of all its processes, as every user of the machine sees them."""
        mark = f"TEST_SERVER={self.server.environ['TEST_SERVER']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append((entry / "cmdline").read_bytes())
        assert found
        return b"\n".join(found).decode("utf-8", "replace")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End it with a signal, and return all that it has written."""
        assert self.server.process.stdout is not None
        self.server.signal(number)
        output = self.server.process.stdout.read()
        self.server.wait()
        return output + self.server.errors()


@pytest.fixture
def collector(io_loop: IOLoop) -> Collector:
    """Where a service sends its telemetry."""
    return Collector()


async def test_logs_and_telemetry_have_no_secrets(
    tmp_path: Path, mongo_uri: str, database: str, collector: Collector
) -> None:
    run = Run(
        tmp_path,
        *("--mongo-uri", mongo_uri),
        CHAT_MONGO_DATABASE=database,
        CHAT_LOG_FORMAT="json",
        CHAT_TELEMETRY="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    async with collector:
        with run.server:
            await run.drive()
            arguments = run.arguments()
            output = await asyncio.to_thread(run.stop)
    assert output.count("KeyError: 'injected'") > 2
    assert output.count('"event": "request"') > 100
    assert not run.canaries.found_in(output)
    assert not run.canaries.found_in(arguments)
    spans = "".join(map(str, collector.spans))
    assert "POST /chat" in spans
    assert collector.metrics
    told = [spans, str(collector.metrics), str(collector.resources)]
    told += [f"{request.body!r}{request.headers}" for request in collector.requests]
    assert not run.canaries.found_in("\n".join(told))


async def test_a_crash_shows_no_secrets(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        *("--processes", "2", "--data-dir", str(tmp_path / "data")),
        CHAT_LOG_FORMAT="text",
        # So that the search is known to find what is there.
        CHAT_LOG_USERNAMES="clear",
    )
    with run.server:
        await run.drive()
        arguments = run.arguments()
        victim = run.server.members()[0]
        os.kill(victim, signal.SIGABRT)

        async def is_replaced() -> bool:
            members = run.server.members()
            return victim not in members and len(members) == 2

        await eventually(is_replaced, 30)
        output = await asyncio.to_thread(run.stop)
    assert "Fatal Python error: Aborted" in output
    assert "KeyError: 'injected'" in output
    found = run.canaries.found_in(output)
    assert found
    assert not run.canaries.found_in(output, but=["name"])
    assert not run.canaries.found_in(arguments)


def test_the_printed_settings_have_no_secrets(tmp_path: Path) -> None:
    canaries = Canaries()
    secret = {
        "CHAT_MONGO_URI": f"mongodb://chat:{canaries.make('password')}@db/?replicaSet=rs",
        "CHAT_LOG_USERNAME_KEY": canaries.make("log key"),
        "CHAT_TOKEN": canaries.make("token"),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "chat_service", "serve", "--print-config"],
        env={**os.environ, "PYTHONPATH": CODE_PATH, **secret},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert json.loads(done.stdout)["port"] == 8080
    assert not canaries.found_in(done.stdout + done.stderr)


@pytest.mark.parametrize("is_good", [True, False])
async def test_commands_show_no_token(
    tmp_path: Path, mongo_uri: str, database: str, is_good: bool
) -> None:
    run = Run(tmp_path, "--mongo-uri", mongo_uri, CHAT_MONGO_DATABASE=database)
    token = run.good["file"] if is_good else run.canaries.make("token", "cht_")
    with run.server:
        environ = {**os.environ, "PYTHONPATH": CODE_PATH, "CHAT_TOKEN": token}
        chat = [sys.executable, "-P", "-m", "chat_service"]
        file = str(tmp_path / "access.toml")
        outputs = []
        codes = set()
        for words, given in (
            (["send", "bob", "-"], "text"),
            (["send", "bob", "--lines"], "one\ntwo\n"),
            (["read", "bob"], ""),
            (["count", "bob"], ""),
            (["lease", "bob"], ""),
            (["ack", "bob", "00"], ""),
            (["status", "00", "none"], ""),
            (["load", "--duration", "1s", "--connections", "2"], ""),
            (["doctor", "--port", "0", "--mongo-uri", mongo_uri], ""),
            (["token", "check", file, "-"], token),
            (["token", "hash"], token),
        ):
            done = await asyncio.to_thread(
                subprocess.run,
                [*chat, *words],
                input=given,
                env={**environ, "CHAT_URL": run.server.base},
                capture_output=True,
                encoding="utf-8",
                timeout=60 * PATIENCE,
                check=False,
            )
            codes.add(done.returncode)
            outputs.append(done.stdout + done.stderr)
    assert (9 in codes) == (not is_good)
    assert not run.canaries.found_in("\n".join(outputs))
