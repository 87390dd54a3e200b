"""Raw HTTP: send exact bytes on a real socket, and parse the answer.

For requests that no well-behaved client sends. `unharmed` also checks the service: no request may
affect its later behavior.
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
    """A response. Header names are in lower case."""

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
    """Return a well-formed request with these parts, valid or not. An empty `host` omits that
    header.
    """
    lines = [b"%b %b HTTP/1.1" % (method, target), *([host] if host else []), *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


def post(body: bytes, *headers: bytes, host: bytes = HOST) -> bytes:
    """Return a POST with this body."""
    return request(b"POST", b"/chat", *headers, body=body, host=host)


def get(target: bytes, *headers: bytes, host: bytes = HOST) -> bytes:
    """Return a GET of this target."""
    return request(b"GET", target, *headers, host=host)


def message(username: str, text: str) -> bytes:
    """Return the body of a valid post."""
    return json.dumps({"text": text, "username": username}).encode()


def chunked(*chunks: bytes) -> bytes:
    """Return a chunked body, including its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Connection:
    """One connection to a service. Answers are taken in order of arrival."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        #: Whether the server keeps the connection open for another request.
        self.is_kept = True

    async def send(self, *pieces: bytes) -> None:
        """Send bytes. Several pieces are sent one by one, as long as the server accepts them."""
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
                # Let the server, on the same loop, read one piece at a time.
                await asyncio.sleep(0)
        except ConnectionError:
            # The server has closed already; earlier answers can still be read.
            pass

    async def answer(self, to: bytes = b"GET") -> Answer | None:
        """Return the next answer, to a request with this method, or None if the server closed
        instead.
        """
        # No row takes long; a row that hangs must fail by itself.
        async with asyncio.timeout(10 * PATIENCE):
            return await self._answer(to)

    async def ask(self, sent: bytes) -> Answer:
        """Send one complete request. It must be answered as the OpenAPI document allows."""
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
        # The server may have reset the connection, which closes it, too.
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

    async def connect(self, address: str = "127.0.0.1") -> Connection:
        """Open a new connection, from an address of the loopback network."""
        streams = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        self.connections.append(Connection(*streams))
        return self.connections[-1]

    async def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            await connection.close()

    async def ask(self, sent: bytes) -> Answer:
        """Send one request on a new connection. It must be answered."""
        return await (await self.connect()).ask(sent)

    async def post(self, username: str, text: str) -> str:
        """Post a message, which must be accepted. Return its id."""
        return accepted(await self._ask_well(post(message(username, text))))

    async def texts(self, username: str) -> list[str]:
        """Read an inbox, which must succeed. Return the texts."""
        return texts_of(await self._ask_well(get(b"/chat/" + quote(username, safe="").encode())))

    async def _ask_well(self, sent: bytes) -> Answer:
        connection = await self.connect()
        answer = await connection.ask(sent)
        await connection.close()
        return answer


def accepted(answer: Answer) -> str:
    """Return the id from the answer to an accepted post."""
    assert answer.status == 201, answer
    assert list(answer.document) == ["id"], answer
    message_id = answer.document["id"]
    assert isinstance(message_id, str), answer
    return message_id


def texts_of(answer: Answer) -> list[str]:
    """Return the texts from the answer to a read."""
    assert answer.status == 200, answer
    assert all(set(message) == {"text", "id"} for message in answer.document), answer
    return [message["text"] for message in answer.document]


def assert_problem(
    answer: Answer, status: int, kind: str, fields: Collection[str] | None = None
) -> None:
    """Assert that the answer is a complete problem document of this kind, about exactly these
    fields.
    """
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
    """Assert that the server's last answer says that the request is not HTTP."""
    assert answer is not None
    assert_problem(answer, 400, "bad-request")
    assert answer.headers["connection"] == "close", answer


@asynccontextmanager
async def unharmed(service: Service) -> AsyncIterator[Wire]:
    """Check that the block does not harm the service.

    A message still gets through, on a new connection and on all that the server keeps open. No
    request is left open, no claimed message is lost, and no error is logged. All rows use the inbox
    `bob`.
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
            # Empty the inbox, so that a failure here does not affect the next row.
            await wire.texts("bob")
            raise
        finally:
            await wire.close()
    assert not errors, errors
    # The only open request is the one for the metrics.
    assert "chat_http_requests_open 1.0" in metrics, metrics
    assert "chat_messages_undelivered_total 0.0" in metrics, metrics


async def _assert_serves(connection: Connection) -> None:
    """Assert that this connection serves a valid post, and a read with exactly that message."""
    name = f"probe-{next(_numbers)}"
    message_id = accepted(await connection.ask(post(message(name, "still here"))))
    read = await connection.ask(get(b"/chat/" + name.encode()))
    assert read.status == 200, read
    assert read.document == [{"text": "still here", "id": message_id}], read


@contextmanager
def errors_logged() -> Iterator[list[object]]:
    """Collect every log record of level ERROR and above, or with a traceback."""
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
