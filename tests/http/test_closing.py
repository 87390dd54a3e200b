"""Closing a connection: the client can read one last answer, and the service counts it."""

import asyncio
import http.client
import socket
import ssl
from typing import Final

import pytest
from structlog.testing import capture_logs

from chat_service.server.lingering import LINGERING_MAX, Lingering
from chat_service.service import Service
from tests.conftest import StartService
from tests.fuzz.inside import requests_counted
from tests.support.cases import each_case
from tests.support.raw import (
    assert_not_http,
    assert_problem,
    chunked,
    get,
    post,
    request,
    unharmed,
)
from tests.support.waiting import PATIENCE, eventually

CHUNKED: Final = b"Transfer-Encoding: chunked"
LIMIT: Final = 512 * 1024


#: The rest of a body that was refused as too long after its beginning.
AFTER_A_REFUSAL: Final = {
    "an invalid chunk size": b"zz\r\n",
    "a chunk longer than its size": b"1\r\nxxx",
    "a trailer": b"0\r\nX: a\r\n\r\n",
    "one-byte chunks": b"1\r\nx\r\n" * 200_000,
}


@each_case(AFTER_A_REFUSAL)
async def test_a_bad_chunk_after_a_413_gets_no_second_answer(rest: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        too_long = chunked(b"x" * (LIMIT + 1))[:-5]
        await connection.send(request(b"POST", b"/chat", CHUNKED) + too_long)
        answer = await connection.answer()
        assert answer is not None
        assert_problem(answer, 413, "too-large")
        await connection.send(rest)
        assert await connection.answer() is None


async def test_a_bad_request_is_the_last_and_answered_once(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(b"no HTTP\r\n\r\n" * 1000)
        assert_not_http(await connection.answer())
        assert await connection.answer() is None


async def test_requests_after_the_last_one_are_not_counted(service: Service) -> None:
    async with unharmed(service) as wire:
        before = requests_counted(service)
        connection = await wire.connect()
        last = get(b"/chat/bob", b"Prefer: x", b"Connection: close")
        await connection.send(last + post(b"{}") * 20 + get(b"/chat/bob"))
        answer = await connection.answer()
        assert answer is not None
        assert answer.status == 200
        assert await connection.answer() is None
        # Let the loop run, so that Tornado could read on.
        await asyncio.sleep(0.1)
        after = requests_counted(service)
        new = {label: count - before.get(label, 0) for label, count in after.items()}
        assert {label: count for label, count in new.items() if count} == {
            "GET /chat/:username 200": 1
        }


def answer_to_all(port: int, sent: bytes) -> bytes:
    """Send everything, then read all answers. A reset connection is an error."""
    with socket.create_connection(("127.0.0.1", port), timeout=20 * PATIENCE) as client:
        client.sendall(sent)
        received = b""
        while piece := client.recv(65536):
            received += piece
        return received


SENT_WHOLE: Final = {
    "a body of 20 MiB": (413, request(b"POST", b"/chat", body=b"x" * (20 << 20))),
    "20 MiB in chunks": (
        413,
        request(b"POST", b"/chat", CHUNKED) + chunked(*[b"x" * (1 << 20)] * 20),
    ),
    "not HTTP": (400, b"no HTTP\r\n\r\n" + b"x" * (8 << 20)),
    "a bad chunk": (400, request(b"POST", b"/chat", CHUNKED) + b"zz\r\n" + b"x" * (8 << 20)),
    "a head of 8 MiB": (431, b"GET /chat/bob HTTP/1.1\r\nX: " + b"x" * (8 << 20)),
    "a request after the last one": (200, get(b"/livez", b"Connection: close") + b"x" * (8 << 20)),
    "TLS": (400, b"\x16\x03\x01" + b"x" * (8 << 20)),
}


@each_case(SENT_WHOLE)
async def test_a_client_that_sends_everything_first_sees_the_answer(
    case: tuple[int, bytes], service: Service
) -> None:
    status, sent = case
    async with unharmed(service):
        received = await asyncio.to_thread(answer_to_all, service.port, sent)
        assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
        assert received.count(b"HTTP/1.1 ") == 1


async def test_pythons_client_sees_why_20_mib_are_refused(service: Service) -> None:
    def ask() -> int:
        client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20 * PATIENCE)
        client.request("POST", "/chat", b"x" * (20 << 20))
        status = client.getresponse().status
        client.close()
        return status

    assert await asyncio.to_thread(ask) == 413


async def test_sockets_linger_within_a_bound(service: Service) -> None:
    lingering, clients = Lingering(), []
    for _ in range(LINGERING_MAX + 5):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(b"x")
        lingering.close(ours, is_sending=True)
        clients.append(theirs)
    assert len(lingering) == LINGERING_MAX
    clients[-1].close()

    async def it_is_forgotten() -> bool:
        return len(lingering) == LINGERING_MAX - 1

    await eventually(it_is_forgotten)
    await lingering.end(0)
    assert len(lingering) == 0
    for client in clients:
        client.close()


async def test_a_tls_client_fails_at_once(start_service: StartService) -> None:
    service = await start_service(idle_timeout_s=600, ops_port=free_port())
    context = ssl.create_default_context()

    def shake_hands(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20 * PATIENCE) as client:
            context.wrap_socket(client, server_hostname="localhost")

    for port in (service.port, service.settings.ops_port):
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shake_hands, port)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


COUNTED: Final = {
    "not HTTP": (400, b"no HTTP\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01"),
    "two lengths": (400, request(b"POST", b"/chat", b"Content-Length: 1", b"Content-Length: 2")),
    "a bad chunk": (400, request(b"POST", b"/chat", CHUNKED) + b"zz\r\n"),
    "tiny chunks": (400, request(b"POST", b"/chat", CHUNKED) + chunked(*[b"x"] * 20_000)),
    "a long head": (431, b"GET /chat/bob HTTP/1.1\r\nX: " + b"x" * 9000),
    "a long body": (413, request(b"POST", b"/chat", b"Content-Length: 999999")),
}


def count_of(service: Service, status: int) -> float:
    """Return how many answers with this status the service has counted."""
    return sum(
        sample.value
        for metric in service._http_metrics.requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["code"] == str(status)
    )


@pytest.mark.settings(log_requests_per_s=1000)
@each_case(COUNTED)
async def test_every_refusal_is_counted_and_logged(
    case: tuple[int, bytes], service: Service
) -> None:
    status, sent = case
    before = count_of(service, status)
    with capture_logs() as entries:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(sent)
        assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
        writer.close()
    assert count_of(service, status) == before + 1
    logged = [each for each in entries if each["event"] == "request"]
    assert [each["status"] for each in logged] == [status]


DATED: Final = {
    "a read on the fast path": get(b"/chat/dated"),
    "a read by Tornado": get(b"/chat/dated", b"TE: trailers"),
    "a refused post": request(b"POST", b"/chat", body=b"{"),
    "a page": get(b"/"),
    "an unknown path": get(b"/nowhere"),
    "a stream": get(b"/chat/dated/stream", b"Accept: text/event-stream"),
    "a WebSocket": get(
        b"/chat/dated/stream",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13",
    ),
    **{name: sent for name, (_, sent) in COUNTED.items()},
}


@each_case(DATED)
async def test_every_answer_has_a_date(sent: bytes, service: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    dates = [line for line in head.split(b"\r\n") if line.lower().startswith(b"date: ")]
    assert len(dates) == 1, head
    assert dates[0].endswith(b" GMT")
