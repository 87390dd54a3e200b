"""HTTP by hand: the very bytes of a request on a real socket, and what came back.

For requests that no well-behaved client can send. `unharmed` also judges the service: whatever
was sent to it, it must be as good as new afterwards.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import quote

from structlog.testing import capture_logs

from chat_service.service import Service
from tests.support.contract import contract
from tests.support.waiting import PATIENCE

HOST = b"Host: good.test"

_numbers = count()
_REQUEST_LINE = re.compile(rb"([^ \r\n]+) ([^ \r\n]+) HTTP/1")


class Answer(NamedTuple):
    """A response. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)


def request(
    method: bytes, target: bytes, *headers: bytes, body: bytes | None = None, host: bytes = HOST
) -> bytes:
    """A request in proper form, whatever its parts are; one without `host` has no such line."""
    lines = [b"%b %b HTTP/1.1" % (method, target), *([host] if host else []), *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


def post(body: bytes, *headers: bytes, host: bytes = HOST) -> bytes:
    """A post of this body."""
    return request(b"POST", b"/chat", *headers, body=body, host=host)


def get(target: bytes, *headers: bytes, host: bytes = HOST) -> bytes:
    """A GET of this target."""
    return request(b"GET", target, *headers, host=host)


def message(username: str, text: str) -> bytes:
    """The body of a good post."""
    return json.dumps({"text": text, "username": username}).encode()


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks, with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Connection:
    """One connection to a service. Answers are taken in the order they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        #: Whether the server has promised to read another request from it.
        self.is_kept = True

    async def send(self, *pieces: bytes) -> None:
        """Send bytes; several pieces go out one by one, as long as the server takes them."""
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
                # The server, on the same loop, has its turn: it reads one piece at a time.
                await asyncio.sleep(0)
        except ConnectionError:
            # It has closed already; what it answered before may still be read.
            pass

    async def answer(self, to: bytes = b"GET") -> Answer | None:
        """The next answer, to a request of this method; None where the server closed instead."""
        # No row takes long; one that hangs must say which it is.
        async with asyncio.timeout(10 * PATIENCE):
            return await self._answer(to)

    async def ask(self, sent: bytes) -> Answer:
        """Send one whole request, which must be answered, with what the OpenAPI document allows."""
        await self.send(sent)
        answer = await self.answer(sent.partition(b" ")[0])
        assert answer is not None, f"closed without an answer: {sent[:200]!r}"
        self.is_kept = self.is_kept and b" HTTP/1.0\r\n" not in sent
        if line := _REQUEST_LINE.match(sent):
            method, target = (part.decode("latin1") for part in line.groups())
            if answer.status != 100:
                contract().check(method, target, *answer)
        return answer

    async def close(self) -> None:
        """Close it from this side."""
        self.is_kept = False
        self._writer.close()
        # It may have been reset by the server before: that is closed, too.
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def _answer(self, to: bytes) -> Answer | None:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.is_kept = False
            if getattr(error, "partial", b""):
                raise
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(": ") for line in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        assert len(headers) == len(lines), f"a header came twice: {lines}"
        status = int(status_line.split(" ")[1])
        assert status < 500, head
        self.is_kept = headers.get("connection") != "close"
        if status in (100, 204, 304) or to == b"HEAD":
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, await self._chunks())
        return Answer(
            status, headers, await self._reader.readexactly(int(headers["content-length"]))
        )

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return body


class Wire:
    """Raw connections to one service."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connections: list[Connection] = []

    async def connect(self) -> Connection:
        """A new connection."""
        self.connections.append(Connection(*await asyncio.open_connection("127.0.0.1", self._port)))
        return self.connections[-1]

    async def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            await connection.close()

    async def ask(self, sent: bytes) -> Answer:
        """Send one request on a new connection; it must be answered."""
        return await (await self.connect()).ask(sent)

    async def post(self, username: str, text: str) -> str:
        """Post a message that must be accepted; its id."""
        return accepted(await self._ask_well(post(message(username, text))))

    async def texts(self, username: str) -> list[str]:
        """Read an inbox, which must work; the texts."""
        return texts_of(await self._ask_well(get(b"/chat/" + quote(username, safe="").encode())))

    async def _ask_well(self, sent: bytes) -> Answer:
        connection = await self.connect()
        answer = await connection.ask(sent)
        await connection.close()
        return answer


def accepted(answer: Answer) -> str:
    """The id in the answer to a post that was stored."""
    assert answer.status == 201, answer
    assert list(answer.document) == ["id"], answer
    message_id = answer.document["id"]
    assert isinstance(message_id, str), answer
    return message_id


def texts_of(answer: Answer) -> list[str]:
    """The texts in the answer to a read."""
    assert answer.status == 200, answer
    assert all(set(message) == {"text", "id"} for message in answer.document), answer
    return [message["text"] for message in answer.document]


def assert_problem(
    answer: Answer, status: int, kind: str, fields: Collection[str] | None = None
) -> None:
    """The answer is a whole problem document of this kind, about exactly these fields."""
    assert (answer.status, answer.headers.get("content-type")) == (
        status,
        "application/problem+json",
    ), answer
    problem = answer.document
    assert problem["type"] == f"urn:chat:problem:{kind}", problem
    assert problem["status"] == status, problem
    assert problem["title"], problem
    assert problem["detail"], problem
    assert problem["instance"] == answer.headers["x-request-id"], problem
    assert {error["field"] for error in problem.get("errors", ())} == set(fields or ()), problem
    assert all(error["detail"] for error in problem.get("errors", ())), problem
    assert answer.headers["cache-control"] == "no-store", answer
    assert "etag" not in answer.headers, answer


def assert_not_http(answer: Answer | None) -> None:
    """The server saw that this is not HTTP, and said so in its last answer."""
    assert answer is not None
    assert_problem(answer, 400, "bad-request")
    assert answer.headers["connection"] == "close", answer


@asynccontextmanager
async def unharmed(service: Service) -> AsyncIterator[Wire]:
    """Whatever is sent within: a message still gets through, and nothing went wrong unseen.

    On a new connection and on all that the server keeps open. And then no request is left open,
    no claimed message was lost, no error was logged. `bob` is the inbox of all rows.
    """
    wire = Wire(service.port)
    with errors_logged() as errors:
        try:
            yield wire
            for connection in wire.connections:
                await (_assert_serves(connection) if connection.is_kept else connection.close())
            await _assert_serves(await wire.connect())
            metrics = (await wire.ask(get(b"/metrics"))).body.decode().splitlines()
        except BaseException:
            # What went wrong here shall not look wrong in the next row, too.
            await wire.texts("bob")
            raise
        finally:
            await wire.close()
    assert not errors, errors
    # The one that is open is the question itself.
    assert "chat_http_requests_open 1.0" in metrics, metrics
    assert "chat_messages_undelivered_total 0.0" in metrics, metrics


async def _assert_serves(connection: Connection) -> None:
    """A good post and a good read on this connection: exactly that message comes back."""
    name = f"probe-{next(_numbers)}"
    message_id = accepted(await connection.ask(post(message(name, "still here"))))
    read = await connection.ask(get(b"/chat/" + name.encode()))
    assert read.status == 200, read
    assert read.document == [{"text": "still here", "id": message_id}], read


@contextmanager
def errors_logged() -> Iterator[list[object]]:
    """Collects every log record of level ERROR and above, or with a traceback."""
    found: list[object] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR or record.exc_info:
                found.append(self.format(record))

    handler = Collect()
    logging.getLogger().addHandler(handler)
    try:
        with capture_logs() as entries:
            yield found
    finally:
        logging.getLogger().removeHandler(handler)
        found += [
            entry
            for entry in entries
            if entry["log_level"] in ("error", "critical") or entry.get("exc_info")
        ]
