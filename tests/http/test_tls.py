"""The service's own TLS: both request paths, the handshake, and a certificate that changes."""

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from tornado.ioloop import IOLoop
from websockets.asyncio.client import connect as open_websocket

from chat_service.server.tls import Files, Tls, TlsUnusable, load_context
from chat_service.service import Service
from tests.conftest import StartService
from tests.faults.mongod_cluster import free_port
from tests.support.access import bearer, everybody, write
from tests.support.cases import each_case
from tests.support.certificates import Authority, Pair
from tests.support.raw import (
    Connection,
    Wire,
    accepted,
    assert_not_http,
    chunked,
    errors_logged,
    get,
    message,
    post,
    request,
    texts_of,
)
from tests.support.waiting import eventually

#: Takes a connection to Tornado, and changes nothing else.
TO_TORNADO: Final = b"TE: trailers"
#: More than the kernel takes at once, and than one slice of a long read.
LONG: Final = "x" * 60_000


class Site(NamedTuple):
    """A service with TLS, the files of its certificate, and the authority that issued it."""

    service: Service
    files: Pair
    authority: Authority

    def trusting(self) -> ssl.SSLContext:
        """Return the context of a client that trusts the authority."""
        return ssl.create_default_context(cafile=str(self.authority.certificate))

    async def open(self, context: ssl.SSLContext | None = None) -> Connection:
        """Connect with TLS."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.service.port, ssl=context or self.trusting()
        )
        return Connection(reader, writer)

    async def serial(self) -> int:
        """Return the number of the certificate that a new connection gets."""
        _, writer = await asyncio.open_connection(
            "127.0.0.1", self.service.port, ssl=self.trusting()
        )
        certificate = writer.get_extra_info("peercert")
        writer.close()
        return int(certificate["serialNumber"], 16)

    def replace(self, pair: Pair) -> None:
        """Replace the files in use."""
        for new, old in zip(pair, self.files, strict=True):
            shutil.copy(new, old)

    async def metric(self, name: str) -> float:
        """Return a metric of the service."""
        connection = await self.open()
        lines = (await connection.ask(get(b"/metrics"))).body.decode().splitlines()
        await connection.close()
        (value,) = [line.split(" ")[1] for line in lines if line.split(" ")[0] == name]
        return float(value)

    async def becomes(self, name: str, value: float) -> None:
        """Wait until a metric has this value."""

        async def has_it() -> bool:
            return await self.metric(name) == value

        await eventually(has_it)


@pytest.fixture
def site(
    io_loop: IOLoop,
    start_service: StartService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    """One service with TLS, which looks often whether its files have changed."""
    monkeypatch.setattr("chat_service.server.tls._CHECK_EVERY_S", 0.1)
    authority = Authority(tmp_path)
    files = Pair(tmp_path / "tls.pem", tmp_path / "tls.key")
    for new, old in zip(authority.issue("good.test"), files, strict=True):
        shutil.copy(new, old)
    start = partial(start_service, tls_certificate=str(files[0]), tls_key=str(files[1]))
    started: Service = io_loop.run_sync(start, timeout=120)
    return Site(started, files, authority)


@pytest.mark.parametrize("extra", [(), (TO_TORNADO,)], ids=["fast path", "Tornado"])
async def test_both_paths_serve_over_tls(site: Site, extra: tuple[bytes, ...]) -> None:
    connection = await site.open()
    for number in range(3):
        accepted(await connection.ask(post(message("bob", f"{number}"), *extra)))
    assert texts_of(await connection.ask(get(b"/chat/bob", *extra))) == ["0", "1", "2"]
    handoffs = await site.metric("chat_http_handovers_total")
    # The connections of `metric` are the only others that left the fast path.
    assert handoffs == (2 if extra else 1)
    await connection.close()


async def test_requests_sent_at_once_are_answered_in_order(site: Site) -> None:
    connection = await site.open()
    count = 40
    texts = [f"{number}-{'y' * 3000}" for number in range(count)]
    # Records of 16 KiB begin and end anywhere in these requests.
    await connection.send(b"".join(post(message("bob", text)) for text in texts))
    for _ in range(count):
        answer = await connection.answer(b"POST")
        assert answer is not None
        accepted(answer)
    assert texts_of(await connection.ask(get(b"/chat/bob"))) == texts
    await connection.close()


@pytest.mark.parametrize("extra", [(), (TO_TORNADO,)], ids=["fast path", "Tornado"])
async def test_requests_behind_a_long_poll_are_not_forgotten(
    site: Site, extra: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tornado, which would get a body that is slow to arrive, reads without being told that it can.
    monkeypatch.setattr("chat_service.server.fast_connection._PARTIAL_S", 1e9)
    connection = await site.open()
    await connection.send(get(b"/chat/nobody?wait=1", *extra))
    await site.becomes("chat_waiters", 1)
    # All of it is in one record. More than what is read ahead would stay in the TLS socket, where
    # the loop does not see it.
    await connection.send(b"".join(post(message("bob", "y" * 3000), *extra) for _ in range(4)))
    for method in (b"GET", b"POST", b"POST", b"POST", b"POST"):
        answer = await connection.answer(method)
        assert answer is not None
        assert answer.status == (200 if method == b"GET" else 201)
    await connection.close()


async def test_a_request_may_arrive_byte_by_byte(site: Site) -> None:
    connection = await site.open()
    sent = post(message("bob", "slow"), TO_TORNADO)
    await connection.send(*(sent[at : at + 1] for at in range(len(sent))))
    answer = await connection.answer(b"POST")
    assert answer is not None
    accepted(answer)
    await connection.close()


async def test_long_bodies_pass_in_both_directions(site: Site) -> None:
    connection = await site.open()
    many = [{"username": "bob", "text": f"{number}{LONG}"} for number in range(40)]
    body = json.dumps(many).encode()
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    answer = await connection.ask(
        request(b"POST", b"/chat/batch", b"Transfer-Encoding: chunked") + chunked(*pieces)
    )
    assert answer.status == 200, answer
    # It is sent in slices, and leaves the fast path with the first.
    read = await connection.ask(get(b"/chat/bob"))
    assert texts_of(read) == [str(each["text"]) for each in many]
    await connection.close()


async def test_a_slow_reader_gets_every_answer_whole(site: Site) -> None:
    # More than the kernel keeps for a client that does not read.
    names = [f"user-{number}" for number in range(120)]
    poster = await site.open()
    for start in range(0, len(names), 40):
        some = [{"username": name, "text": f"{name}{LONG}"} for name in names[start : start + 40]]
        posted = request(b"POST", b"/chat/batch", body=json.dumps(some).encode())
        assert (await poster.ask(posted)).status == 200
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", site.service.port))
    slow.setblocking(False)
    reader, writer = await asyncio.open_connection(
        sock=slow, ssl=site.trusting(), server_hostname="localhost", limit=1 << 12
    )
    connection = Connection(reader, writer)
    await connection.send(b"".join(get(f"/chat/{name}".encode()) for name in names))

    async def is_stuck() -> bool:
        claimed = await site.metric("chat_messages_read_total")
        await asyncio.sleep(0.2)
        return 0 < claimed == await site.metric("chat_messages_read_total") < len(names)

    # An answer waits for its client to read.
    await eventually(is_stuck)
    for name in names:
        answer = await connection.answer()
        assert answer is not None
        assert texts_of(answer) == [f"{name}{LONG}"]
    await connection.close()
    await poster.close()


async def test_streams_and_websockets_work_over_tls(site: Site) -> None:
    url = f"wss://localhost:{site.service.port}/chat/bob/stream"
    context = site.trusting()
    async with open_websocket(url, ssl=context, host="127.0.0.1") as websocket:
        connection = await site.open()
        first = accepted(await connection.ask(post(message("bob", "one"))))
        received = json.loads(await websocket.recv())
        assert (received["id"], received["text"]) == (first, "one")
        await websocket.send(json.dumps({"type": "ack", "id": first}))
        await site.becomes("chat_messages_read_total", 1)
    stream = await site.open()
    await stream.send(get(b"/chat/eve/stream"))
    await site.becomes("chat_waiters", 1)
    accepted(await connection.ask(post(message("eve", "two"))))
    await site.becomes("chat_waiters", 1)
    await stream.close()
    await site.becomes("chat_waiters", 0)
    read = await connection.ask(get(b"/chat/eve?wait=5"))
    assert texts_of(read) == ["two"]
    await connection.close()


async def test_the_service_ends_connections_with_close_notify(site: Site) -> None:
    context = site.trusting()
    # Otherwise an end that a network made up would look the same.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF

    def ask() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", site.service.port)) as plain,
            context.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            ) as secure,
        ):
            secure.sendall(get(b"/chat/bob", b"Connection: close"))
            received = b""
            while data := secure.recv(4096):
                received += data
            return received

    assert (await asyncio.to_thread(ask)).endswith(b"[]")


async def test_plain_http_is_told_to_use_https(site: Site) -> None:
    wire = Wire(site.service.port)
    connection = await wire.connect()
    await connection.send(get(b"/chat/bob"))
    answer = await connection.answer()
    assert_not_http(answer)
    assert answer is not None
    assert "https://" in answer.document["detail"]
    assert await connection.answer() is None
    await wire.close()
    await site.becomes("chat_http_connections", 1)


@each_case({"nothing": b"", "half a handshake": b"\x16\x03\x01\x02\x00\x01", "no TLS": b"\x00\x16"})
async def test_a_broken_handshake_ends_its_connection_alone(case: bytes, site: Site) -> None:
    with errors_logged() as errors:
        _, writer = await asyncio.open_connection("127.0.0.1", site.service.port)
        writer.write(case)
        await writer.drain()
        writer.close()
        await site.becomes("chat_http_connections", 1)
    assert errors == []


async def test_a_client_that_resets_its_connection_harms_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = site.service._tls.context  # type: ignore[union-attr]
    wrap = context.wrap_socket

    def reset(sock: socket.socket, **options: bool) -> ssl.SSLSocket:
        # The reset arrives after the service has looked at the first byte.
        linger = struct.pack("ii", 1, 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.close()
        return wrap(sock, **options)  # type: ignore[arg-type]

    async def is_reset() -> bool:
        return client.fileno() < 0

    with errors_logged() as errors:
        client = socket.create_connection(("127.0.0.1", site.service.port))
        monkeypatch.setattr(context, "wrap_socket", reset)
        client.send(b"\x16\x03\x01\x02\x00\x01")
        await eventually(is_reset)
        monkeypatch.undo()
        await site.becomes("chat_http_connections", 1)
    assert errors == []


async def test_a_client_that_trusts_nobody_harms_nothing(site: Site) -> None:
    with errors_logged() as errors:
        for _ in range(3):
            with pytest.raises(ssl.SSLError):
                await site.open(ssl.create_default_context())
        await site.becomes("chat_http_connections", 1)
    assert errors == []


def _allow_only_old(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1


async def test_old_versions_of_tls_are_refused(site: Site) -> None:
    context = site.trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    # To name these versions warns.
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        _allow_only_old(context)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await site.open(context)
    context = site.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    connection = await site.open(context)
    assert (await connection.ask(get(b"/livez"))).status == 200
    await connection.close()


async def test_a_stalled_handshake_blocks_nobody_and_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.server.handshake.HANDSHAKE_S", 0.3)
    stalled = [await asyncio.open_connection("127.0.0.1", site.service.port) for _ in range(20)]
    for number, (_, writer) in enumerate(stalled):
        # A record of 512 bytes, of which a few are sent, or none at all.
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01" if number % 2 else b"")
    connection = await site.open()
    accepted(await connection.ask(post(message("bob", "hi"))))
    # They count as connections while they last.
    for reader, writer in stalled:
        assert await reader.read() == b""
        writer.close()
    await site.becomes("chat_http_connections", 2)
    await connection.close()


async def test_a_handshake_in_progress_counts_as_a_connection(site: Site) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.service.port)
    writer.write(b"\x16\x03\x01")
    await site.becomes("chat_http_connections", 2)
    writer.transport.abort()
    await site.becomes("chat_http_connections", 1)


async def test_new_connections_get_a_new_certificate(site: Site) -> None:
    old = await site.open()
    before = await site.serial()
    site.replace(site.authority.issue("good.test", days=60))
    end = await site.metric("chat_tls_certificate_expires_seconds")

    async def is_new() -> bool:
        return await site.serial() != before

    await eventually(is_new)
    assert await site.metric("chat_tls_certificate_expires_seconds") > end
    accepted(await old.ask(post(message("bob", "still here"))))
    await old.close()


async def test_the_dashboard_warns_of_the_end_of_a_certificate(site: Site) -> None:
    history = site.service._history

    async def state() -> str:
        document = json.loads(await history.document(0, time.time()))
        return " ".join(each["name"] for each in document["state"]["conditions"])

    assert await state() == ""
    site.replace(site.authority.issue("good.test", days=13))

    async def is_ending() -> bool:
        return await state() == "certificate-expires"

    await eventually(is_ending)


def test_files_that_still_change_are_not_read(site: Site) -> None:
    told: list[bool] = []
    tls = Tls(Files(*map(str, site.files)), lambda is_current, expires_at: told.append(is_current))
    before, new = tls.context, site.authority.issue("good.test")
    tls.check()
    shutil.copy(new.certificate, site.files.certificate)
    tls.check()
    shutil.copy(new.key, site.files.key)
    for _ in range(3):
        tls.check()
    assert told == [True, True]
    assert tls.context is not before


@pytest.mark.parametrize("broken", ["certificate", "key", "removed"])
async def test_a_broken_certificate_keeps_the_old_one(site: Site, broken: str) -> None:
    before = await site.serial()
    new = site.authority.issue("good.test")
    if broken == "removed":
        site.files.key.unlink()
    else:
        # Only one of the two is new.
        shutil.copy(getattr(new, broken), getattr(site.files, broken))
    await site.becomes("chat_tls_certificate_refused", 1)
    assert await site.serial() == before
    site.replace(new)
    await site.becomes("chat_tls_certificate_refused", 0)
    assert await site.serial() != before


async def test_no_request_fails_while_certificates_change(site: Site) -> None:
    serials: set[int] = set()
    sent = 0

    async def use(name: str) -> None:
        nonlocal sent
        kept = await site.open()
        while len(serials) < 3:
            fresh = await site.open()
            for connection in (kept, fresh):
                accepted(await connection.ask(post(message(name, "x"))))
                sent += 1
            await fresh.close()
        await kept.close()

    async def renew() -> None:
        while len(serials) < 3:
            serials.add(await site.serial())
            site.replace(site.authority.issue("good.test"))
            known = len(serials)
            while len(serials) == known:
                serials.add(await site.serial())

    await asyncio.gather(*(use(f"user-{number}") for number in range(4)), renew())
    assert await site.metric("chat_messages_accepted_total") == sent > 0


async def test_a_drain_serves_a_client_in_its_handshake(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.service.port)
    await site.becomes("chat_http_connections", 2)
    drained = asyncio.create_task(site.service.drain())
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = site.trusting().wrap_bio(received, sent, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            # The whole takes longer than a drain waits for a client that does nothing.
            hello = sent.read()
            for start in range(0, len(hello), 100):
                await asyncio.sleep(0.1)
                writer.write(hello[start : start + 100])
            received.write(await reader.read(1 << 16))
    client.write(get(b"/chat/bob"))
    writer.write(sent.read())
    received.write(await reader.read())
    answer = b""
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
        while data := client.read():
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert await drained
    writer.close()


async def test_the_operators_port_has_tls_too(start_service: StartService, site: Site) -> None:
    port = free_port()
    service = await start_service(
        tls_certificate=str(site.files.certificate),
        tls_key=str(site.files.key),
        ops_port=port,
    )
    ops = Site(service, site.files, site.authority)
    connection = Connection(*await asyncio.open_connection("127.0.0.1", port, ssl=ops.trusting()))
    answer = await connection.ask(get(b"/metrics"))
    assert b"chat_tls_certificate_refused 0.0" in answer.body
    await connection.close()
    wire = Wire(port)
    plain = await wire.connect()
    await plain.send(get(b"/metrics"))
    assert_not_http(await plain.answer())
    await wire.close()


def _missing(authority: Authority) -> Pair:
    pair = authority.issue("good.test")
    pair.key.unlink()
    return pair


#: Files that cannot be used, and what the error says.
UNUSABLE: Final[dict[str, tuple[Callable[[Authority], Pair], str]]] = {
    "a file that is missing": (_missing, "tls_key: .*No such file"),
    "the key of another certificate": (
        lambda authority: Pair(authority.issue("a").certificate, authority.issue("b").key),
        "not the key of the certificate",
    ),
    "an encrypted key": (
        lambda authority: authority.issue("good.test", password=b"hunter2"),
        "encrypted",
    ),
    "a key in place of the certificate": (
        lambda authority: Pair(*[authority.issue("good.test").key] * 2),
        "PEM",
    ),
}


@each_case(UNUSABLE)
async def test_an_error_says_why_a_certificate_is_unusable(
    case: tuple[Callable[[Authority], Pair], str], tmp_path: Path
) -> None:
    make, reason = case
    pair = make(Authority(tmp_path))
    with pytest.raises(TlsUnusable, match=reason):
        load_context(Files(str(pair.certificate), str(pair.key)))


async def test_a_session_over_tls_has_a_secure_cookie(
    start_service: StartService, site: Site, tmp_path: Path
) -> None:
    write(tmp_path / "access.toml", everybody())
    service = await start_service(
        tls_certificate=str(site.files.certificate),
        tls_key=str(site.files.key),
        access="tokens",
        access_file=str(tmp_path / "access.toml"),
    )
    own = Site(service, site.files, site.authority)
    connection = await own.open()
    origin, host = b"Origin: https://good.test", b"Host: good.test"
    answer = await connection.ask(
        request(b"POST", b"/session", bearer("bob"), origin, body=b"", host=host)
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-chat=")
    assert "; Secure" in cookie
    sent = b"Cookie: " + cookie.partition(";")[0].encode()
    assert texts_of(await connection.ask(get(b"/chat/bob", sent, origin, host=host))) == []
    assert (await connection.ask(get(b"/chat/eve", sent, origin, host=host))).status == 403
    await connection.close()
