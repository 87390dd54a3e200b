"""No request costs much more than an honest one of its size: a table of what is dear.

Measured is the processor time of the service's own process, which runs as its users start it, in
alternating rounds with the honest request. Only their ratio is judged. A bound is two to four times
what is measured, and below what the same request costs without its remedy, where it has one.
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
#: The longest that a kernel may be late with what it counts, in seconds.
TICK_S = 0.01
#: As long as a head and a body may be, and some less.
HEAD_BYTES, BODY_BYTES = 7_500, 480_000

UPGRADE = (
    *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Wire:
    """One connection to the service, which is opened again where it was closed."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._connect()

    def ask(self, sent: bytes, answers: int = 1) -> int:
        """Send requests and take their answers; the status of the last, which must be there."""
        self._socket.sendall(sent)
        for _ in range(answers):
            status = self._take_answer()
        if self._is_closing:
            self.close()
            self._connect()
        return status

    def open_some(self, sent: bytes) -> int:
        """Send all that is ever sent over a connection, on some at once; the status of the last.

        A WebSocket is waited for until it is closed, a stream of events is left.
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
        """Close it."""
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
    """A kind of request, an honest one, and how many times as much as that it may cost."""

    dear: bytes
    honest: bytes
    times: float
    answers: int = 1
    opens: bool = False
    repeats: int = AT_ONCE
    status: int = 200


def answered(status: int, row: Row) -> Row:
    """A row of which the dear request has another answer than 200."""
    return row._replace(status=status)


def head(target: bytes = b"/chat/nobody", *headers: bytes) -> bytes:
    return get(target, *headers)


def read_of(size: int) -> bytes:
    """A read of so many bytes: the rest is one header that means nothing."""
    plain = get(b"/chat/nobody", b"X-Pad: ")
    return get(b"/chat/nobody", b"X-Pad: " + b"x" * (size - len(plain)))


def post_of(size: int) -> bytes:
    """A good post of so many bytes: the rest is one field that is ignored."""
    body = b'{"username":"bob","text":"x","pad":"%b"}'
    return post(body % (b"x" * max(size - len(post(body)), 0)))


def batch(items: bytes, *headers: bytes) -> bytes:
    return request(b"POST", b"/chat/batch", *headers, body=items)


def batch_of(count: int, text: str = "x") -> bytes:
    """A batch of so many good messages."""
    return batch(b"[%b]" % b",".join([message("bob", text)] * count))


def against_read(dear: bytes, times: float) -> Row:
    return Row(dear, read_of(max(len(dear), 100)), times)


def paced(dear: bytes, times: float) -> Row:
    """A request that is slowed down where it is sent more often than this."""
    return against_read(dear, times)._replace(repeats=3)


def against_post(dear: bytes, times: float) -> Row:
    return Row(dear, post_of(len(dear)), times)


def against_batch(items: bytes, times: float, *headers: bytes) -> Row:
    return Row(batch(items, *headers), batch_of(500), times)


def header(name: bytes, value: bytes, times: float) -> Row:
    """A read with one long header."""
    repeated = value * (HEAD_BYTES // len(value))
    return against_read(get(b"/chat/nobody", name + b": " + repeated), times)


def field(name: bytes, value: bytes, times: float) -> Row:
    """A post in which one field holds this."""
    others = {b"text": b'"text":"x"', b"username": b'"username":"bob"'}
    kept = b",".join(other for each, other in others.items() if each != name)
    return against_post(post(b'{%b,"%b":%b}' % (kept, name, value)), times)


def list_of(item: bytes) -> bytes:
    return b"[%b]" % b",".join([item] * (BODY_BYTES // (len(item) + 1)))


def socket_of(*frames: Frame, headers: tuple[bytes, ...] = ()) -> bytes:
    upgrade = get(b"/chat/nobody/stream", *UPGRADE, *headers)
    return upgrade + b"".join(frame.serialize(mask=True) for frame in frames)


def flood(frame: Frame, times: float) -> Row:
    """A WebSocket with 64 KiB of the same frame, against one that is only opened and closed."""
    count = (64 << 10) // len(frame.serialize(mask=True))
    closing = Frame(Opcode.CLOSE, b"\x03\xe8")
    return Row(socket_of(*[frame] * count), socket_of(closing), times, opens=True)


def handshake(name: bytes, value: bytes, times: float) -> Row:
    """A handshake with one long header, against one that is long by a header without meaning."""
    closing = Frame(Opcode.CLOSE, b"\x03\xe8")
    long = value * (6000 // len(value))
    dear = socket_of(closing, headers=(name + b": " + long,))
    return Row(dear, socket_of(closing, headers=(b"X-Pad: " + long,)), times, opens=True)


def stream(line: bytes, times: float) -> Row:
    """A stream of events that is opened and left, against one with a line without meaning."""
    target, meaningless = b"/chat/nobody/stream", b"X-Pad: " + b"x" * len(line)
    return Row(get(target, line), get(target, meaningless), times, opens=True)


IDS = [f"{number:032x}" for number in range(5000)]
WHOLE_LEASE = b'{"lease":"ab","ids":%b}'
ASK = b"/chat/nobody/ack"

ROWS = {
    # What is the same for all who ask.
    "metrics": paced(get(b"/metrics"), 0.9),
    "readiness": against_read(get(b"/readyz"), 0.9),
    "the dashboard's history": paced(get(b"/ops/history", b"Accept-Encoding: gzip"), 2),
    "the API's document": against_read(get(b"/openapi.json", b"Accept-Encoding: gzip"), 2),
    "a page asked for by its tag": against_read(
        get(b"/", b"If-None-Match: " + b'W/"0123456789abcdef", ' * 340), 2
    ),
    # Lists and values in a head.
    "Prefer of commas": header(b"Prefer", b",", 3),
    "Prefer of preferences": header(b"Prefer", b"wait=x;y,", 5),
    "Prefer on many lines": against_read(get(b"/chat/nobody", *[b"Prefer: ,"] * 99), 9),
    "Accept-Encoding of commas": against_read(
        get(b"/", b"Accept-Encoding: " + b"," * HEAD_BYTES), 0.8
    ),
    "Connection of commas": header(b"Connection", b",", 4),
    "traceparent": header(b"traceparent", b"0", 4),
    "X-Request-ID": header(b"X-Request-ID", b"a", 4),
    "a key of escapes": answered(400, header(b"Idempotency-Key", b"\\\\", 3)),
    "a quoted key of escapes": answered(
        400,
        against_read(
            get(b"/chat/nobody", b'Idempotency-Key: "' + rb"\\" * (HEAD_BYTES // 2) + b'"'), 1.2
        ),
    ),
    "as many header lines as may be": against_read(
        get(b"/chat/nobody", *[b"X%d: y" % number for number in range(99)]), 9
    ),
    "more header lines than may be": answered(
        431, against_read(get(b"/chat/nobody", *[b"a:"] * (HEAD_BYTES // 4)), 5)
    ),
    # Targets.
    "a query of 100 fields": answered(400, against_read(get(b"/chat/nobody?" + b"a=b&" * 99), 4)),
    "a query of escapes": answered(
        400, against_read(get(b"/chat/nobody?" + (b"%61" * 10 + b"=%62" * 10 + b"&") * 95), 0.6)
    ),
    "a query of one long field": answered(
        400, against_read(get(b"/chat/nobody?a=" + b"%61" * 2400), 0.6)
    ),
    "a query that nearly waits": answered(
        400, against_read(get(b"/chat/nobody?" + b"xwait=" * 1200), 0.6)
    ),
    "a name of escapes": answered(400, against_read(get(b"/chat/" + b"%61" * 2400), 3)),
    "an id of escapes": answered(
        404, against_read(get(b"/messages/" + b"%61" * 2400 + b"/status", b"X-Receipt: x"), 0.8)
    ),
    "a path of slashes": answered(404, against_read(get(b"/" * HEAD_BYTES), 3)),
    "a method that is not allowed": answered(
        405, against_read(request(b"PUT", b"/chat/nobody"), 2)
    ),
    "OPTIONS": answered(204, against_read(request(b"OPTIONS", b"/chat/nobody"), 2)),
    # Bodies.
    "a text that is a list": answered(400, field(b"text", list_of(b"{}"), 3.5)),
    "a name that is a list": answered(400, field(b"username", list_of(b"0"), 5)),
    "a timeout that is a list": answered(400, field(b"timeout", list_of(b"{}"), 3.5)),
    "a timeout of digits": answered(400, field(b"timeout", b"1" * BODY_BYTES, 5)),
    "an ignored field": answered(201, field(b"other", list_of(b"{}"), 7)),
    "many fields": answered(201, field(b"other", b'1,"a":1' * 60_000, 7)),
    "a deep body": answered(
        400, field(b"text", b"[" * (BODY_BYTES // 2) + b"]" * (BODY_BYTES // 2), 5)
    ),
    "a body of spaces": answered(400, against_post(post(b" " * BODY_BYTES), 5)),
    "a body in some chunks": answered(
        201,
        Row(
            request(b"POST", b"/chat", b"Transfer-Encoding: chunked")
            + chunked(*[message("bob", "x" * 50_000)]),
            post(message("bob", "x" * 50_000)),
            4,
        ),
    ),
    "ids of a lease": answered(
        410, against_post(request(b"POST", ASK, body=WHOLE_LEASE % json.dumps(IDS).encode()), 12)
    ),
    "too many ids": answered(
        400, against_post(request(b"POST", ASK, body=WHOLE_LEASE % list_of(b'"x"')), 7)
    ),
    # Batches, against a good one of as many messages.
    "500 items that are no objects": against_batch(b"[" + b"1," * 499 + b"1]", 0.9),
    "500 empty items": against_batch(b"[" + b"{}," * 499 + b"{}]", 0.9),
    "500 wrong texts": against_batch(b"[" + b'{"text":[{},{}]},' * 499 + b"{}]", 0.9),
    "500 lines that are empty objects": against_batch(b"{}\n" * 500, 0.7),
    "a line, and many that are empty": against_post(
        batch(b"{}\n" + b" \n" * (BODY_BYTES // 2), b"Content-Type: application/x-ndjson"), 5
    ),
    "more items than may be": answered(
        400, Row(batch(b"[" + b"{}," * 1_300_000 + b"{}]"), batch_of(500, "x" * 7800), 1)
    ),
    # Many requests at once, against as many one after the other.
    "pipelined reads": Row(get(b"/chat/nobody") * 500, get(b"/chat/nobody"), 750, 500),
    "pipelined paths that are none": answered(
        404, Row(get(b"/nowhere") * 500, get(b"/nowhere"), 750, 500)
    ),
    # Streams that are opened again and again.
    "a stream that goes on behind nothing": stream(b"Last-Event-ID: " + b"x" * 6000, 2),
    "a stream that goes on behind an unknown id": stream(b"Last-Event-ID: " + b"0" * 32, 3),
    # WebSockets.
    "a flood of pings": answered(101, flood(Frame(Opcode.PING, b""), 10)),
    "a flood of pongs": answered(101, flood(Frame(Opcode.PONG, b""), 10)),
    "a flood of long pings": answered(101, flood(Frame(Opcode.PING, b"x" * 125), 12)),
    "a flood of nonsense": answered(101, flood(Frame(Opcode.TEXT, b"x"), 10)),
    "a flood of unknown ids": answered(
        101, flood(Frame(Opcode.TEXT, b'{"type":"ack","id":"x"}'), 10)
    ),
    "a flood of closes": answered(101, flood(Frame(Opcode.CLOSE, b"\x03\xe8"), 3)),
    "offers of compression": answered(
        101, handshake(b"Sec-WebSocket-Extensions", b"permessage-deflate;a=b, ", 2)
    ),
    "a handshake of many tokens": answered(400, handshake(b"Connection", b"a,", 2)),
    "offers of protocols": answered(101, handshake(b"Sec-WebSocket-Protocol", b"a,", 2)),
}


@pytest.fixture(scope="module")
def server(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service, for all rows."""
    folder = tmp_path_factory.mktemp("cost")
    names = {"CHAT_MONGO_DATABASE": "test_proportional_cost", "CHAT_ALLOWED_HOSTS": "good.test"}
    server = Server(folder, "--mongo-uri", mongo_uri)
    server.environ |= names
    with server:
        yield server


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A connection to it."""
    opened = Wire(server.port)
    yield opened
    opened.close()


def processor_s(server: Server) -> float:
    """The processor time that the service's process has had, of all its threads."""
    # The clock counts what a thread has had when the thread goes to sleep, or at the next tick.
    time.sleep(TICK_S)
    # Linux has a clock for each process; this is how `clock_getcpuclockid` names it.
    return time.clock_gettime((~server.process.pid << 3) | 2)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_it_costs_in_proportion(server: Server, wire: Wire, row: Row) -> None:
    def measure(ask: Callable[[], int], repeats: int) -> float:
        before = processor_s(server)
        for _ in range(repeats):
            ask()
        return (processor_s(server) - before) / repeats

    sent, model, times, answers, opens, repeats, status = row
    dear: Callable[[], int] = partial(wire.ask, sent, answers)
    honest: Callable[[], int] = partial(wire.ask, model)
    if opens:
        dear, honest = partial(wire.open_some, sent), partial(wire.open_some, model)
    # Once for what is made once, for a length of a body, a header or a route that is new.
    assert dear() == status
    assert honest() in (101, 200, 201, 404)
    repeats = 1 if opens else max(repeats // answers, 1)
    as_many = 1 if opens else AT_ONCE
    rounds = [(measure(dear, repeats), measure(honest, as_many)) for _ in range(ROUNDS)]
    dear_s, honest_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    assert dear_s / honest_s <= times, f"{dear_s * 1000:.2f} ms against {honest_s * 1000:.2f} ms"
