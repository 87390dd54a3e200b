"""The fast path and Tornado: a client cannot tell which of them served its request."""

import asyncio
import re
import socket
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.handoff import Handoff, PrefetchedStream
from chat_service.server.lingering import Lingering
from chat_service.server.request_tracker import RequestTracker
from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.cases import each_case
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.raw import accepted, get, message, post, texts_of, unharmed
from tests.support.waiting import eventually

#: Hands the connection off to Tornado, and changes nothing else.
TO_TORNADO: Final = b"TE: trailers"
ID: Final = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{12}-[0-9a-f]+")
DATE: Final = re.compile(rb"Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


async def raw_answers(service: Service, *requests: bytes) -> bytes:
    """Return everything that the service writes on one connection for these requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"".join(requests))
    writer.write(get(b"/livez", b"Connection: close"))
    answers = await reader.read()
    writer.close()
    return DATE.sub(b"Date: now", ID.sub(b"ID", answers))


PLAIN: Final = {
    "a post": post(message("eve", "hi")),
    "a read": get(b"/chat/eve"),
    "a read of an empty inbox": get(b"/chat/nobody"),
    "an escaped name": get(b"/chat/%C3%A9"),
    "an invalid escape": get(b"/chat/%zz"),
    "a body that is not JSON": post(b"{"),
    "a message without a text": post(b'{"username": "eve"}'),
    "a read with a body": get(b"/chat/eve", b"Content-Length: 2") + b"{}",
    "a limit": get(b"/chat/eve?limit=1"),
    "an invalid limit": get(b"/chat/eve?limit=0"),
    "a wait": get(b"/chat/eve?wait=0.01"),
    "a wait of zero": get(b"/chat/nobody?wait=0.01"),
    "an invalid limit and an invalid name": get(b"/chat/%00?limit=0"),
    "an unknown parameter": get(b"/chat/eve?x=%y&"),
    "a request id": get(b"/chat/eve", b"X-Request-ID: order-66"),
    "a keep-alive connection": get(b"/chat/eve", b"Connection: Keep-Alive"),
}


@each_case(PLAIN)
async def test_both_paths_give_the_same_bytes(
    sent: bytes, service: Service, chat: ChatClient
) -> None:
    line, _, rest = sent.partition(b"\r\n")
    answers = []
    for each in (sent, line + b"\r\n" + TO_TORNADO + b"\r\n" + rest):
        await chat.read("eve")
        await chat.post("eve", "hi")
        answers.append(await raw_answers(service, each))
    fast_path, tornado = answers
    assert fast_path == tornado


#: Requests with a program's name, and what their lines say: the inbox, if any, and the program.
NAMED: Final = {
    "a post": (post(message("é/%41", "hi"), b"User-Agent: curl/7.88.1"), "é/%41", "curl/7.88.1"),
    "a read": (get(b"/chat/%C3%A9", b"User-Agent: Mozilla/5.0 (X11)"), "é", "Mozilla/5.0"),
    "another spelling": (get(b"/chat/%c3%a9", b"User-Agent:  \xe9"), "é", None),
    "a refused post": (post(b"{", b"User-Agent: " + b"a" * 50), None, "a" * 40),
    "a terminal's command": (get(b"/chat/e", b"User-Agent: a\t\xc2\x9b2J"), "e", "a"),
}


@each_case(NAMED)
async def test_both_paths_log_the_same_inbox_and_program(
    case: tuple[bytes, str | None, str | None], start_service: StartService
) -> None:
    sent, inbox, agent = case
    service = await start_service(log_usernames="clear", log_requests_per_s=100)
    line, _, rest = sent.partition(b"\r\n")
    with capture_logs() as logs:
        await raw_answers(service, sent)
        await raw_answers(service, line + b"\r\n" + TO_TORNADO + b"\r\n" + rest)
    asked = [each for each in logs if str(each.get("route")).startswith("/chat")]
    assert [(each.get("inbox"), each.get("agent")) for each in asked] == [(inbox, agent)] * 2


#: The two endpoints of the original specification: requests, and the whole answers to them.
FROZEN: Final = {
    "a post": (
        post(message("frozen", "hi")),
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        b"X-Request-Id: ID\r\nX-Content-Type-Options: nosniff\r\n"
        b"Date: now\r\nContent-Length: 41\r\n\r\n"
        b'{"id":"ID"}',
    ),
    "a read": (
        get(b"/chat/eve"),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        b"X-Request-Id: ID\r\nX-Content-Type-Options: nosniff\r\n"
        b"Date: now\r\nContent-Length: 55\r\n\r\n"
        b'[{"text":"hi","id":"ID"}]',
    ),
    "a read of an empty inbox": (
        get(b"/chat/nobody"),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
        b"X-Request-Id: ID\r\nX-Content-Type-Options: nosniff\r\n"
        b"Date: now\r\nContent-Length: 2\r\n\r\n[]",
    ),
}


@each_case(FROZEN)
async def test_two_endpoints_answer_as_they_always_have(
    case: tuple[bytes, bytes], service: Service, chat: ChatClient
) -> None:
    sent, recorded = case
    line, _, rest = sent.partition(b"\r\n")
    for each in (sent, line + b"\r\n" + TO_TORNADO + b"\r\n" + rest):
        await chat.read("eve")
        await chat.post("eve", "hi")
        answer, _, _ = (await raw_answers(service, each)).rpartition(b"HTTP/1.1 ")
        assert answer == recorded


#: Requests, and whether they are handed off.
HANDED_OFF: Final = {
    **{name: (sent, False) for name, sent in PLAIN.items()},
    "another route": (get(b"/livez"), True),
    "an idempotency key": (get(b"/chat/eve", b"Idempotency-Key: " + b"k" * 22), True),
    "a preference": (get(b"/chat/eve", b"Prefer: wait=0"), True),
}


@each_case(HANDED_OFF)
async def test_only_unusual_requests_leave_the_fast_path(
    case: tuple[bytes, bool], service: Service, chat: ChatClient
) -> None:
    sent, is_handed_off = case
    before = await chat.metric("chat_http_handovers_total")
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.ask(sent)
        # The request for the metrics is handed off as well.
        after = await chat.metric("chat_http_handovers_total")
        assert after - before == 1 + is_handed_off


async def test_a_long_read_handed_to_tornado_is_timed_from_its_head(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, slice_max=5)
        chat = connect(service)
        for number in range(12):
            await chat.post("bob", str(number))
        before = await chat.metric("chat_http_request_duration_seconds_sum")
        proxy.hold["find"] = b"text"
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(get(b"/chat/bob", b"X-Request-ID: long-1"))
        await proxy.held.wait()
        held_for_s = 0.5
        await asyncio.sleep(held_for_s)
        proxy.release()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"X-Request-Id: long-1" in head
        assert b"Transfer-Encoding: chunked" in head
        assert (await reader.readuntil(b"0\r\n\r\n")).count(b'"id"') == 12
        writer.close()
        assert await chat.metric("chat_http_request_duration_seconds_sum") - before >= held_for_s
        await service.stop()


async def test_a_bug_in_an_answer_closes_only_its_connection(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    with monkeypatch.context() as patched:
        patched.setattr(RequestTracker, "account", fails)
        writer.write(get(b"/chat/bob"))
        assert (await reader.read()).endswith(b"[]")
    writer.close()
    assert await chat.metric("chat_http_requests_open") == 1


async def test_messages_of_a_failed_answer_count_as_undelivered(
    service: Service, chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    await chat.post("bob", "x")
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    with monkeypatch.context() as patched:
        patched.setattr(InboxHandlers, "render_read", fails)
        writer.write(get(b"/chat/bob"))
        assert await reader.read() == b""
    writer.close()
    assert await chat.metric("chat_messages_undelivered_total") == 1
    assert await chat.metric("chat_http_requests_open") == 1


async def test_the_first_unusual_request_moves_to_tornado(
    service: Service,
) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        kinds = (
            post(message("bob", "1")),
            get(b"/livez"),
            post(message("bob", "2")),
            get(b"/chat/bob?limit=1"),
            get(b"/chat/bob"),
        )
        answers = [await connection.ask(sent) for sent in kinds]
        assert [answer.status for answer in answers] == [201, 200, 201, 200, 200]
        assert [texts_of(answer) for answer in answers[3:]] == [["1"], ["2"]]


async def test_pipelined_requests_keep_their_order_across_a_handoff(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        posts = [post(message("bob", str(number))) for number in range(20)]
        bad = post(b"{")
        await connection.send(b"".join([*posts[:10], bad, get(b"/livez"), *posts[10:]]))
        statuses = []
        for _ in range(22):
            answer = await connection.answer()
            assert answer is not None
            statuses.append(answer.status)
        assert statuses == [*[201] * 10, 400, 200, *[201] * 10]
        assert sorted(await wire.texts("bob"), key=int) == [str(number) for number in range(20)]


async def test_tornado_answers_do_not_wait_for_tcp_acknowledgements() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, address = listening.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = PrefetchedStream(Handoff(server, address, b"", None, None), Lingering())
    # As Tornado does after each request.
    stream.set_nodelay(False)
    assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    stream.close()
    client.close()


async def test_requests_beyond_the_buffer_wait_in_the_kernel(
    service: Service,
) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(b"".join(post(message("bob", "x" * 3000)) for _ in range(100)))
        for _ in range(100):
            answer = await connection.answer()
            assert answer is not None
            accepted(answer)
        assert len(await wire.texts("bob")) == 100


IN_PIECES: Final = post(message("bob", "in pieces"))
END_OF_HEAD: Final = IN_PIECES.index(b"\r\n\r\n") + 4
#: Where the request is cut.
CUTS: Final = {
    "head, then body": [END_OF_HEAD],
    "in the middle of the body": [END_OF_HEAD + 5],
    "in three pieces": [END_OF_HEAD, END_OF_HEAD + 5],
    "in the head": [10],
    "after the request line": [IN_PIECES.index(b"\r\n") + 2],
    "byte by byte": list(range(1, len(IN_PIECES))),
}


@each_case(CUTS)
async def test_a_request_may_come_in_any_number_of_pieces(
    places: list[int], service: Service
) -> None:
    async with unharmed(service) as wire:
        pieces = [IN_PIECES[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
        connection = await wire.connect()
        await connection.send(*pieces)
        answer = await connection.answer()
        assert answer is not None
        accepted(answer)
        assert await wire.texts("bob") == ["in pieces"]


async def test_half_a_body_is_given_up_when_its_time_is_over(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(body_timeout_s=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(post(message("bob", "half"))[:-3])
    assert await reader.read() == b""
    writer.close()
    chat = connect(service)
    assert await chat.read("bob") == []

    async def only_this_is_open() -> bool:
        return await chat.metric("chat_http_requests_open") == 1

    await eventually(only_this_is_open)


async def test_an_idle_connection_is_closed(start_service: StartService) -> None:
    service = await start_service(idle_timeout_s=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(get(b"/chat/bob"))
    answer = await reader.read()
    assert answer.endswith(b"[]")
    writer.close()


async def stuck_reader(service: Service, chat: ChatClient) -> tuple[socket.socket, int]:
    """Return a client that does not read its answers, and how many requests it has sent."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", service.port))
    for asked in range(1, 1000):
        await chat.post("bob", "x" * 60_000)
        sock.sendall(get(b"/chat/bob"))

        async def is_claimed(asked: int = asked) -> bool:
            return await chat.metric("chat_messages_read_total") == asked

        await eventually(is_claimed)
        # The request for the metrics is open as well.
        if await chat.metric("chat_http_requests_open") == 2:
            return sock, asked
    raise AssertionError("the kernel takes everything")


async def test_a_stalled_reader_of_a_short_answer_is_cut_off(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(write_timeout_s=2)
    chat = connect(service)
    sock, asked = await stuck_reader(service, chat)

    async def is_cut_off() -> bool:
        return await chat.metric("chat_messages_undelivered_total") == 1

    await eventually(is_cut_off)
    assert await chat.metric("chat_http_requests_open") == 1
    assert await chat.metric("chat_messages_read_total") == asked
    sock.close()


async def test_a_reader_that_is_slow_gets_all_of_its_answers(
    service: Service, chat: ChatClient
) -> None:
    sock, asked = await stuck_reader(service, chat)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    received = b""
    await loop.sock_sendall(sock, get(b"/chat/bob"))
    while not received.endswith(b"\r\n\r\n[]"):
        chunk = await loop.sock_recv(sock, 1 << 20)
        assert chunk, "closed"
        received += chunk
    assert received.count(b"x" * 60_000) == asked
    assert await chat.metric("chat_messages_undelivered_total") == 0
    sock.close()
