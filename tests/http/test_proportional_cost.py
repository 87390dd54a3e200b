"""No request costs much more than an honest one of its size: a table of expensive requests.

The service runs as a separate process, as users start it. The test compares the processor time of
that process for an expensive and for an honest request, in alternating rounds, and checks only
their ratio. Each bound is two to four times the measured ratio. If the service has a remedy for a
request, its bound is lower than its cost without the remedy.
"""

import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import pytest
from websockets.frames import Frame, Opcode

from tests.support.raw import chunked, get, message, post, request
from tests.support.server import Server
from tests.support.waiting import PATIENCE

ROUNDS, AT_ONCE = 3, 10
#: The delay after which the kernel has counted all processor time, in seconds.
TICK_S = 0.01
#: A little less than the limits of a head and of a body.
HEAD_BYTES, BODY_BYTES = 7_500, 480_000

UPGRADE = (
    *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Wire:
    """A connection to the service, which is reopened after the service closed it."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._connect()

    def ask(self, sent: bytes, answers: int = 1) -> int:
        """Send requests and read their answers. Return the status of the last one."""
        self._socket.sendall(sent)
        for _ in range(answers):
            status = self._take_answer()
        if self._is_closing:
            self.close()
            self._connect()
        return status

    def open_some(self, sent: bytes) -> int:
        """Send the same bytes on several new connections. Return the status of the last answer.

        Wait until the service closes a WebSocket. Leave an event stream after its first bytes.
        """
        sockets = [
            socket.create_connection(self._address, timeout=30 * PATIENCE) for _ in range(AT_ONCE)
        ]
        for each in sockets:
            each.sendall(sent)
        for each in sockets:
            received = each.recv(65536)
            status = int(received.split(b" ")[1])
            with suppress(ConnectionError):
                while received and status == 101:
                    received = each.recv(65536)
            each.close()
        return status

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=30 * PATIENCE)
        self._file = self._socket.makefile("rb")
        self._is_closing = False

    def _take_answer(self) -> int:
        status, length = int(self._file.readline().split(b" ")[1]), 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            assert name.lower() != b"transfer-encoding"
            if name.lower() == b"content-length":
                length = int(value)
            if name.lower() == b"connection":
                self._is_closing = value.strip() == b"close"
        self._file.read(length)
        return status


class Row(NamedTuple):
    """An expensive and an honest request, and how many times as much the first may cost."""

    expensive: bytes
    honest: bytes
    times: float
    answers: int = 1
    opens: bool = False
    repeats: int = AT_ONCE
    status: int = 200


def answered(status: int, row: Row) -> Row:
    """Return the row with another status of the expensive request's answer than 200."""
    return row._replace(status=status)


def head(target: bytes = b"/chat/nobody", *headers: bytes) -> bytes:
    return get(target, *headers)


def read_of(size: int) -> bytes:
    """Return a read of this many bytes, padded with a header that has no effect."""
    plain = get(b"/chat/nobody", b"X-Pad: ")
    return get(b"/chat/nobody", b"X-Pad: " + b"x" * (size - len(plain)))


def post_of(size: int) -> bytes:
    """Return a valid post of this many bytes, padded with an ignored field."""
    body = b'{"username":"bob","text":"x","pad":"%b"}'
    return post(body % (b"x" * max(size - len(post(body)), 0)))


def batch(items: bytes, *headers: bytes) -> bytes:
    return request(b"POST", b"/chat/batch", *headers, body=items)


def batch_of(count: int, text: str = "x") -> bytes:
    """Return a batch of this many valid messages."""
    return batch(b"[%b]" % b",".join([message("bob", text)] * count))


def against_read(expensive: bytes, times: float) -> Row:
    return Row(expensive, read_of(max(len(expensive), 100)), times)


def paced(expensive: bytes, times: float) -> Row:
    """Return a row with few repeats, because the service slows down more frequent requests."""
    return against_read(expensive, times)._replace(repeats=3)


def against_post(expensive: bytes, times: float) -> Row:
    return Row(expensive, post_of(len(expensive)), times)


def against_batch(items: bytes, times: float, *headers: bytes) -> Row:
    return Row(batch(items, *headers), batch_of(500), times)


def header(name: bytes, value: bytes, times: float) -> Row:
    """Return a row for a read with one long header."""
    repeated = value * (HEAD_BYTES // len(value))
    return against_read(get(b"/chat/nobody", name + b": " + repeated), times)


def field(name: bytes, value: bytes, times: float) -> Row:
    """Return a row for a post in which one field has this value."""
    others = {b"text": b'"text":"x"', b"username": b'"username":"bob"'}
    kept = b",".join(other for each, other in others.items() if each != name)
    return against_post(post(b'{%b,"%b":%b}' % (kept, name, value)), times)


def list_of(item: bytes) -> bytes:
    return b"[%b]" % b",".join([item] * (BODY_BYTES // (len(item) + 1)))


def socket_of(*frames: Frame, headers: tuple[bytes, ...] = ()) -> bytes:
    upgrade = get(b"/chat/nobody/stream", *UPGRADE, *headers)
    return upgrade + b"".join(frame.serialize(mask=True) for frame in frames)


def flood(frame: Frame, times: float) -> Row:
    """Return a row for 64 KiB of one frame, against a WebSocket that is only opened and closed."""
    count = (64 << 10) // len(frame.serialize(mask=True))
    closing = Frame(Opcode.CLOSE, b"\x03\xe8")
    return Row(socket_of(*[frame] * count), socket_of(closing), times, opens=True)


def handshake(name: bytes, value: bytes, times: float) -> Row:
    """Return a row for a handshake with one long header, against one with an unknown header."""
    closing = Frame(Opcode.CLOSE, b"\x03\xe8")
    long = value * (6000 // len(value))
    expensive = socket_of(closing, headers=(name + b": " + long,))
    return Row(expensive, socket_of(closing, headers=(b"X-Pad: " + long,)), times, opens=True)


def stream(line: bytes, times: float) -> Row:
    """Return a row for opening an event stream with a header line, against an unknown one."""
    target, meaningless = b"/chat/nobody/stream", b"X-Pad: " + b"x" * len(line)
    return Row(get(target, line), get(target, meaningless), times, opens=True)


IDS = [f"{number:032x}" for number in range(5000)]
WHOLE_LEASE = b'{"lease":"ab","ids":%b}'
ASK = b"/chat/nobody/ack"

ROWS = {
    # Answers that are the same for every client.
    "metrics": paced(get(b"/metrics"), 0.9),
    "readiness": against_read(get(b"/readyz"), 0.9),
    "the dashboard's history": paced(get(b"/ops/history", b"Accept-Encoding: gzip"), 2),
    "the OpenAPI document": against_read(get(b"/openapi.json", b"Accept-Encoding: gzip"), 2),
    "a page, by its ETag": against_read(
        get(b"/", b"If-None-Match: " + b'W/"0123456789abcdef", ' * 340), 2
    ),
    # Lists and values in header lines.
    "Prefer with commas": header(b"Prefer", b",", 3),
    "Prefer with many preferences": header(b"Prefer", b"wait=x;y,", 5),
    "Prefer on many lines": against_read(get(b"/chat/nobody", *[b"Prefer: ,"] * 99), 9),
    "Accept-Encoding with commas": against_read(
        get(b"/", b"Accept-Encoding: " + b"," * HEAD_BYTES), 0.8
    ),
    "Connection with commas": header(b"Connection", b",", 4),
    "traceparent": header(b"traceparent", b"0", 4),
    "X-Request-ID": header(b"X-Request-ID", b"a", 4),
    "a key with escapes": answered(400, header(b"Idempotency-Key", b"\\\\", 3)),
    "a quoted key with escapes": answered(
        400,
        against_read(
            get(b"/chat/nobody", b'Idempotency-Key: "' + rb"\\" * (HEAD_BYTES // 2) + b'"'), 1.2
        ),
    ),
    "the most header lines": against_read(
        get(b"/chat/nobody", *[b"X%d: y" % number for number in range(99)]), 9
    ),
    "too many header lines": answered(
        431, against_read(get(b"/chat/nobody", *[b"a:"] * (HEAD_BYTES // 4)), 5)
    ),
    # Request targets.
    "a query with 100 fields": answered(400, against_read(get(b"/chat/nobody?" + b"a=b&" * 99), 4)),
    "a query with escapes": answered(
        400, against_read(get(b"/chat/nobody?" + (b"%61" * 10 + b"=%62" * 10 + b"&") * 95), 0.6)
    ),
    "a query with one long field": answered(
        400, against_read(get(b"/chat/nobody?a=" + b"%61" * 2400), 0.6)
    ),
    "a query with almost a wait": answered(
        400, against_read(get(b"/chat/nobody?" + b"xwait=" * 1200), 0.6)
    ),
    "a name with escapes": answered(400, against_read(get(b"/chat/" + b"%61" * 2400), 3)),
    "an id with escapes": answered(
        404, against_read(get(b"/messages/" + b"%61" * 2400 + b"/status", b"X-Receipt: x"), 0.8)
    ),
    "a path with slashes": answered(404, against_read(get(b"/" * HEAD_BYTES), 3)),
    "a method that is not allowed": answered(
        405, against_read(request(b"PUT", b"/chat/nobody"), 2)
    ),
    "OPTIONS": answered(204, against_read(request(b"OPTIONS", b"/chat/nobody"), 2)),
    # Bodies.
    "a list as text": answered(400, field(b"text", list_of(b"{}"), 3.5)),
    "a list as username": answered(400, field(b"username", list_of(b"0"), 5)),
    "a list as timeout": answered(400, field(b"timeout", list_of(b"{}"), 3.5)),
    "a timeout with many digits": answered(400, field(b"timeout", b"1" * BODY_BYTES, 5)),
    "an ignored field": answered(201, field(b"other", list_of(b"{}"), 7)),
    "many fields": answered(201, field(b"other", b'1,"a":1' * 60_000, 7)),
    "a deep body": answered(
        400, field(b"text", b"[" * (BODY_BYTES // 2) + b"]" * (BODY_BYTES // 2), 5)
    ),
    "a body with spaces": answered(400, against_post(post(b" " * BODY_BYTES), 5)),
    "a body in several chunks": answered(
        201,
        Row(
            request(b"POST", b"/chat", b"Transfer-Encoding: chunked")
            + chunked(*[message("bob", "x" * 50_000)]),
            post(message("bob", "x" * 50_000)),
            4,
        ),
    ),
    "many ids of a lease": answered(
        410, against_post(request(b"POST", ASK, body=WHOLE_LEASE % json.dumps(IDS).encode()), 12)
    ),
    "too many ids": answered(
        400, against_post(request(b"POST", ASK, body=WHOLE_LEASE % list_of(b'"x"')), 7)
    ),
    # Batches, against a valid one with as many messages.
    "500 items that are not objects": against_batch(b"[" + b"1," * 499 + b"1]", 0.9),
    "500 empty items": against_batch(b"[" + b"{}," * 499 + b"{}]", 0.9),
    "500 invalid texts": against_batch(b"[" + b'{"text":[{},{}]},' * 499 + b"{}]", 0.9),
    "500 lines with empty objects": against_batch(b"{}\n" * 500, 0.7),
    "one line and many empty ones": against_post(
        batch(b"{}\n" + b" \n" * (BODY_BYTES // 2), b"Content-Type: application/x-ndjson"), 5
    ),
    "too many items": answered(
        400, Row(batch(b"[" + b"{}," * 1_300_000 + b"{}]"), batch_of(500, "x" * 7800), 1)
    ),
    # Pipelined requests, against as many single ones.
    "pipelined reads": Row(get(b"/chat/nobody") * 500, get(b"/chat/nobody"), 750, 500),
    "pipelined unknown paths": answered(
        404, Row(get(b"/nowhere") * 500, get(b"/nowhere"), 750, 500)
    ),
    # Streams that are opened repeatedly.
    "a stream with an invalid Last-Event-ID": stream(b"Last-Event-ID: " + b"x" * 6000, 2),
    "a stream with an unknown Last-Event-ID": stream(b"Last-Event-ID: " + b"0" * 32, 3),
    # WebSockets.
    "a flood of pings": answered(101, flood(Frame(Opcode.PING, b""), 10)),
    "a flood of pongs": answered(101, flood(Frame(Opcode.PONG, b""), 10)),
    "a flood of long pings": answered(101, flood(Frame(Opcode.PING, b"x" * 125), 12)),
    "a flood of nonsense": answered(101, flood(Frame(Opcode.TEXT, b"x"), 10)),
    "a flood of unknown ids": answered(
        101, flood(Frame(Opcode.TEXT, b'{"type":"ack","id":"x"}'), 10)
    ),
    "a flood of closes": answered(101, flood(Frame(Opcode.CLOSE, b"\x03\xe8"), 3)),
    "many offered extensions": answered(
        101, handshake(b"Sec-WebSocket-Extensions", b"permessage-deflate;a=b, ", 2)
    ),
    "a handshake with many tokens": answered(400, handshake(b"Connection", b"a,", 2)),
    "many offered subprotocols": answered(101, handshake(b"Sec-WebSocket-Protocol", b"a,", 2)),
}


@pytest.fixture(scope="module")
def server(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all rows."""
    folder = tmp_path_factory.mktemp("cost")
    names = {"CHAT_MONGO_DATABASE": "test_proportional_cost", "CHAT_ALLOWED_HOSTS": "good.test"}
    server = Server(folder, "--mongo-uri", mongo_uri)
    server.environ |= names
    with server:
        yield server


@pytest.fixture(scope="module")
def limited(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose clients may do almost nothing."""
    names = {
        "CHAT_MONGO_DATABASE": "test_proportional_cost",
        "CHAT_ALLOWED_HOSTS": "good.test",
        "CHAT_CLIENT_REQUESTS_PER_S": "0.001",
        "CHAT_CLIENT_BURST": "1",
    }
    server = Server(tmp_path_factory.mktemp("limited"), "--mongo-uri", mongo_uri)
    server.environ |= names
    with server:
        yield server


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A connection to the service."""
    opened = Wire(server.port)
    yield opened
    opened.close()


def processor_s(server: Server) -> float:
    """Return the processor time of the service's process, in seconds, over all threads."""
    # The kernel adds a thread's time when the thread sleeps, or at the next tick.
    time.sleep(TICK_S)
    # Linux has a clock for each process; this is how `clock_getcpuclockid` names it.
    return time.clock_gettime((~server.process.pid << 3) | 2)


def measure(server: Server, ask: Callable[[], int], repeats: int) -> float:
    """The processor time that a request takes, in seconds."""
    before = processor_s(server)
    for _ in range(repeats):
        ask()
    return (processor_s(server) - before) / repeats


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_it_costs_in_proportion(server: Server, wire: Wire, row: Row) -> None:
    sent, model, times, answers, opens, repeats, status = row
    expensive: Callable[[], int] = partial(wire.ask, sent, answers)
    honest: Callable[[], int] = partial(wire.ask, model)
    if opens:
        expensive, honest = partial(wire.open_some, sent), partial(wire.open_some, model)
    # Send each once before measuring, because the first request fills caches.
    assert expensive() == status
    assert honest() in (101, 200, 201, 404)
    repeats = 1 if opens else max(repeats // answers, 1)
    as_many = 1 if opens else AT_ONCE
    rounds = [
        (measure(server, expensive, repeats), measure(server, honest, as_many))
        for _ in range(ROUNDS)
    ]
    expensive_s, honest_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    assert expensive_s / honest_s <= times, (
        f"{expensive_s * 1000:.2f} ms against {honest_s * 1000:.2f} ms"
    )


#: Requests of a client that exceeds its rate.
LIMITED = {
    "a read": get(b"/chat/nobody"),
    "a post": post(message("bob", "x")),
    "a read by Tornado": get(b"/chat/nobody", b"TE: trailers"),
    "a count": request(b"HEAD", b"/chat/nobody"),
    "a batch of 4 MB": batch_of(500, "x" * 7800),
}


@pytest.mark.parametrize("sent", LIMITED.values(), ids=LIMITED.keys())
def test_a_limited_request_costs_less_than_a_served_one(
    server: Server, limited: Server, wire: Wire, sent: bytes
) -> None:
    refused = Wire(limited.port)
    refused.ask(get(b"/chat/nobody"))
    # Each service has had one such request before it is measured.
    assert refused.ask(sent) == 429
    assert wire.ask(sent) in (200, 201)
    rounds = [
        (
            measure(limited, partial(refused.ask, sent), 10 * AT_ONCE),
            measure(server, partial(wire.ask, sent), 10 * AT_ONCE),
        )
        for _ in range(ROUNDS)
    ]
    refused.close()
    refused_s, served_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    assert refused_s < served_s
