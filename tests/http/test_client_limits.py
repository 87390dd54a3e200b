"""One client's share of the service: requests, bytes, waits and connections, on both paths.

Rates are so low that nothing accrues during a test. All clients come through one trusted proxy,
except in the tests about addresses that cannot be chosen.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from chat_service.handlers.batch import BatchHandlers
from chat_service.service import Service
from tests.conftest import StartService
from tests.support import access
from tests.support.cases import each_case
from tests.support.client import ChatClient
from tests.support.raw import (
    Answer,
    Connection,
    Wire,
    accepted,
    assert_problem,
    chunked,
    errors_logged,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)
from tests.support.waiting import eventually

PROXIED: Final[dict[str, Any]] = {"trusted_proxies": ("127.0.0.0/8",)}
#: A request in a thousand seconds, and five at once.
FIVE: Final[dict[str, Any]] = {"client_requests_per_s": 0.001, "client_burst": 5}
#: A line that takes a request to Tornado, or changes nothing.
WAYS: Final = {"the fast path": b"X-Nothing: x", "Tornado": b"TE: trailers"}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())

UPGRADE: Final = (
    *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def of(address: str) -> bytes:
    """The line in which a proxy says for whom it sends a request."""
    return b"X-Forwarded-For: " + address.encode()


EVE, BOB = of("198.51.100.7"), of("198.51.100.8")


def assert_limited(answer: Answer, effect: str = "claimed") -> None:
    """Assert that a request was refused because of its client's rate, with nothing done."""
    assert_problem(answer, 429, "rate-limited")
    assert answer.document[effect] is False
    assert int(answer.headers["retry-after"]) >= 1
    assert set(answer.headers) >= {"ratelimit", "ratelimit-policy"}


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Wire]:
    """Connections to the service, which logs no error meanwhile."""
    wire = Wire(service.port)
    with errors_logged() as errors:
        try:
            yield wire
        finally:
            await wire.close()
    assert not errors, errors


async def exhaust(connection: Connection, way: bytes, client: bytes = EVE) -> None:
    """Send as many reads as a client may."""
    for _ in range(5):
        assert (await connection.ask(get(b"/chat/nobody", way, client))).status == 200


def is_left(header: str, seconds: int, prefix: str = "") -> bool:
    """Whether a header says this time, less what a busy machine has taken since the start of it."""
    return header.startswith(prefix) and 0.9 * seconds < int(header[len(prefix) :]) <= seconds


@pytest.mark.settings(**PROXIED, **FIVE)
@each_way
async def test_requests_beyond_the_rate_are_refused(way: bytes, service: Service) -> None:
    async with connected(service) as wire:
        connection = await wire.connect()
        await exhaust(connection, way)
        read = await connection.ask(get(b"/chat/nobody", way, EVE))
        assert_limited(read)
        assert is_left(read.headers["retry-after"], 1000)
        assert is_left(read.headers["ratelimit"], 1000, '"requests";r=0;t=')
        assert read.headers["ratelimit-policy"] == '"requests";q=5;w=5000'
        assert_limited(await connection.ask(post(message("bob", "no"), way, EVE)), "stored")
        # Another client is served, on the same connection.
        answer = await connection.ask(get(b"/chat/bob", way, BOB))
        assert texts_of(answer) == []
        assert "ratelimit" not in answer.headers


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_both_paths_draw_on_the_same_bucket(service: Service) -> None:
    async with connected(service) as wire:
        connection = await wire.connect()
        for way in (*WAYS.values(), *WAYS.values(), WAYS["Tornado"]):
            assert (await connection.ask(get(b"/chat/nobody", way, EVE))).status == 200
        for way in WAYS.values():
            assert_limited(await (await wire.connect()).ask(get(b"/chat/nobody", way, EVE)))


@pytest.mark.settings(**FIVE)
async def test_health_pages_and_metrics_are_never_limited(service: Service) -> None:
    wire = Wire(service.port)
    connection = await wire.connect()
    await exhaust(connection, WAYS["the fast path"])
    assert_limited(await connection.ask(get(b"/chat/nobody")))
    for target in (b"/livez", b"/readyz", b"/metrics", b"/", b"/assets/base.css", b"/ops"):
        for _ in range(7):
            assert (await connection.ask(get(target))).status == 200
    assert_limited(await connection.ask(get(b"/chat/nobody")))
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_a_client_without_requests_left_can_end_leases(service: Service) -> None:
    async with connected(service) as wire:
        connection = await wire.connect()

        async def ask(path: bytes, lease: str, rest: str = "") -> Answer:
            body = b'{"lease":"%s"%s}' % (lease.encode(), rest.encode())
            return await connection.ask(request(b"POST", path, EVE, body=body))

        leases = []
        for name in ("first", "second"):
            await connection.ask(post(message(name, "x"), BOB))
            taken = await connection.ask(request(b"POST", b"/chat/%s/lease" % name.encode(), EVE))
            leases.append(taken.document["lease"])
        for _ in range(3):
            assert (await connection.ask(get(b"/chat/nobody", EVE))).status == 200
        assert_limited(await connection.ask(get(b"/chat/nobody", EVE)))
        # These are served, repeats as well, until it owes a whole burst.
        assert (await ask(b"/chat/first/extend", leases[0], ',"ttl":60')).status == 200
        assert (await ask(b"/chat/first/ack", leases[0])).document == {"acknowledged": 1}
        assert_limited(await connection.ask(get(b"/chat/nobody", EVE)))
        assert (await ask(b"/chat/second/release", leases[1])).document == {"released": 1}
        for _ in range(2):
            assert (await ask(b"/chat/first/ack", leases[0])).document == {"acknowledged": 1}
        for path in (b"/chat/first/ack", b"/chat/first/release", b"/chat/first/extend"):
            refused = await ask(path, leases[0])
            assert_limited(refused, "changed")
            assert is_left(refused.headers["retry-after"], 1000)
        # All that it owes must be paid first.
        assert is_left(
            (await connection.ask(get(b"/chat/nobody", EVE))).headers["retry-after"], 6000
        )


#: Requests that are refused or unknown count as well: each costs as much as another.
USELESS: Final = {
    "an unknown path": (404, get(b"/nowhere")),
    "a method that is not allowed": (405, request(b"PUT", b"/chat/nobody")),
    "no JSON": (400, post(b"{")),
    "a bad batch": (400, request(b"POST", b"/chat/batch", body=b"{")),
    "an empty batch": (200, request(b"POST", b"/chat/batch", body=b"[]")),
    "a batch in a coding": (
        415,
        request(b"POST", b"/chat/batch", b"Content-Encoding: gzip", body=b"[]"),
    ),
    "a page of another origin": (403, get(b"/chat/nobody", b"Sec-Fetch-Site: cross-site")),
    "an unknown lease": (410, request(b"POST", b"/chat/bob/ack", body=b'{"lease":"ab"}')),
    "a post": (201, post(message("useless", "x"))),
}


@each_case(USELESS)
async def test_every_request_of_a_client_counts(
    case: tuple[int, bytes], start_service: StartService
) -> None:
    status, sent = case
    service = await start_service(**FIVE)
    wire = Wire(service.port)
    for _ in range(5):
        assert (await wire.ask(sent)).status == status
    assert_limited(await wire.ask(get(b"/chat/nobody")))
    await wire.close()
    await service.stop()


async def test_a_batch_of_nobody_counts(start_service: StartService, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    access.write(file, access.everybody())
    service = await start_service(**FIVE, access="tokens", access_file=str(file))
    wire = Wire(service.port)
    sent = request(b"POST", b"/chat/batch", body=b"[]")
    for _ in range(5):
        assert (await wire.ask(sent)).status == 401
    assert_limited(await wire.ask(sent), "stored")
    await wire.close()
    await service.stop()


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_a_count_costs_as_much_as_five_reads(service: Service) -> None:
    wire = Wire(service.port)
    assert (await wire.ask(request(b"HEAD", b"/chat/nobody", EVE))).status == 200
    assert_limited(await wire.ask(get(b"/chat/nobody", EVE)))
    await wire.close()


def batch(count: int, client: bytes = EVE) -> bytes:
    """A batch of so many messages."""
    body = b"[%b]" % b",".join([message("batch", "x")] * count)
    return request(b"POST", b"/chat/batch", client, body=body)


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_each_message_of_a_batch_counts(service: Service) -> None:
    wire = Wire(service.port)
    assert len((await wire.ask(batch(3))).document["results"]) == 3
    refused = await wire.ask(batch(3))
    assert_limited(refused, "stored")
    assert is_left(refused.headers["ratelimit"], 1000, '"requests";r=2;t=')
    # Nothing of it was stored, and what is left can be used.
    assert len((await wire.ask(batch(2))).document["results"]) == 2
    assert len(await wire.texts("batch")) == 5
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_a_batch_that_cannot_be_paid_is_not_decoded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(service.port)
    assert len((await wire.ask(batch(5))).document["results"]) == 5

    def split(*_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(BatchHandlers, "_split", split)
    assert_limited(await wire.ask(batch(1)), "stored")
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
async def test_a_batch_beyond_the_burst_is_stored_and_paid_off(service: Service) -> None:
    wire = Wire(service.port)
    assert len((await wire.ask(batch(50))).document["results"]) == 50
    refused = await wire.ask(get(b"/chat/nobody", EVE))
    assert_limited(refused)
    assert is_left(refused.headers["retry-after"], 46000)
    await wire.close()


BODIES: Final = {
    "a post": lambda body, *lines: post(body, *lines),
    "a post by Tornado": lambda body, *lines: post(body, *lines, WAYS["Tornado"]),
    "a post in chunks": lambda body, *lines: (
        request(b"POST", b"/chat", b"Transfer-Encoding: chunked", *lines) + chunked(body)
    ),
    "a batch": lambda body, *lines: request(
        b"POST", b"/chat/batch", *lines, body=b"[" + body + b"]"
    ),
}


@each_case(BODIES)
async def test_bytes_beyond_the_rate_are_refused(case: Any, start_service: StartService) -> None:
    service = await start_service(**PROXIED, client_bytes_per_s=1)
    wire = Wire(service.port)
    body = message("bytes", "x" * 1000)
    sent = case(body, EVE)
    assert (await wire.ask(sent)).status in (200, 201)
    refused = await wire.ask(sent)
    assert_limited(refused, "stored")
    assert refused.headers["ratelimit"].startswith('"bytes";r=0;t=')
    assert refused.headers["ratelimit-policy"] == '"bytes";q=10;qu="content-bytes";w=10'
    # What has no body costs none. Another client has its own.
    assert (await wire.ask(get(b"/chat/bytes", EVE))).status == 200
    assert (await wire.ask(case(body, BOB))).status in (200, 201)
    await wire.close()
    await service.stop()


CHUNKED: Final = (EVE, b"Transfer-Encoding: chunked")
#: Refused requests whose length is not known before their body has arrived.
REFUSED_CHUNKS: Final = {
    "too large": (413, request(b"POST", b"/chat", *CHUNKED)),
    "in a coding": (415, request(b"POST", b"/chat", *CHUNKED, b"Content-Encoding: gzip")),
}


@each_case(REFUSED_CHUNKS)
async def test_refused_bytes_in_chunks_count(
    case: tuple[int, bytes], start_service: StartService
) -> None:
    status, head = case
    service = await start_service(**PROXIED, client_bytes_per_s=1, max_body_bytes=5000)
    wire = Wire(service.port)
    sent = head + chunked(b"x" * (6000 if status == 413 else 4000))
    assert (await wire.ask(sent)).status == status
    assert_limited(await wire.ask(post(message("bob", "hi"), EVE)), "stored")
    assert (await wire.ask(post(message("bob", "hi"), BOB))).status == 201
    await wire.close()
    await service.stop()


async def test_a_body_that_is_only_announced_costs_at_most_one(
    start_service: StartService,
) -> None:
    # Somebody else may have the same address.
    service = await start_service(client_bytes_per_s=100_000)
    wire = Wire(service.port)
    connection = await wire.connect()
    await connection.send(request(b"POST", b"/chat", b"Content-Length: 999999999999999"))
    answer = await connection.answer()
    assert answer is not None
    assert_problem(answer, 413, "too-large")
    assert (await wire.ask(post(message("bob", "hi")))).status == 201
    await wire.close()


# Attacks: addresses that a client chooses.


@pytest.mark.settings(**FIVE)
@each_way
async def test_a_forged_address_gets_no_bucket_of_its_own(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    answers = [
        await wire.ask(get(b"/chat/nobody", way, of(f"198.51.100.{number}"))) for number in range(6)
    ]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
@each_way
async def test_addresses_left_of_the_proxys_are_ignored(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    heads = [
        *(of(f"203.0.113.{number}, 198.51.100.7") for number in range(3)),
        b"Forwarded: for=198.51.100.7",
        b'Forwarded: for=203.0.113.9, for="198.51.100.7:99"',
        of("198.51.100.7") + b"\r\nForwarded: for=198.51.100.7",
    ]
    answers = [await wire.ask(get(b"/chat/nobody", way, head)) for head in heads]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
@each_way
async def test_rotation_inside_an_ipv6_network_helps_nobody(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    answers = [
        await wire.ask(get(b"/chat/nobody", way, of(f"2001:db8:0:7:{number:x}::{number:x}")))
        for number in range(6)
    ]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    assert (await wire.ask(get(b"/chat/nobody", way, of("2001:db8:0:8::1")))).status == 200
    await wire.close()


# Waits.


@pytest.mark.settings(**PROXIED, client_waiters_max=2)
@each_way
async def test_a_client_has_a_bounded_number_of_long_polls(way: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        waiting = [await wire.connect() for _ in range(2)]
        for connection in waiting:
            await connection.send(get(b"/chat/bob?wait=20", way, EVE))
        await eventually_waits(service, 2)
        refused = await wire.ask(get(b"/chat/other?wait=20", way, EVE))
        assert_problem(refused, 429, "rate-limited")
        assert refused.headers["retry-after"] == "1"
        # Others may wait, and the client may do all else.
        assert (await wire.ask(get(b"/chat/other?wait=0.01", way, BOB))).status == 200
        assert (await wire.ask(get(b"/chat/other", way, EVE))).status == 200
        for connection in waiting:
            accepted(await wire.ask(post(message("bob", "hi"), EVE)))
            answer = await connection.answer()
            assert answer is not None
            assert texts_of(answer) == ["hi"]
        assert (await wire.ask(get(b"/chat/other?wait=0.01", way, EVE))).status == 200


@pytest.mark.settings(**PROXIED, client_waiters_max=2)
@each_way
async def test_a_wait_that_was_broken_off_counts_no_more(way: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        for _ in range(5):
            gone = await wire.connect()
            await gone.send(get(b"/chat/bob?wait=20", way, EVE))
            await eventually_waits(service, 1)
            await gone.close()
            await eventually_waits(service, 0)
        # A request that is refused does not count either.
        for _ in range(5):
            answer = await wire.ask(get(b"/chat/bob?wait=1&limit=0", way, EVE))
            assert answer.status == 400
        assert (await wire.ask(get(b"/chat/bob?wait=0.01", way, EVE))).status == 200


@pytest.mark.settings(**PROXIED, client_waiters_max=3)
async def test_streams_count_with_long_polls(service: Service) -> None:
    wire = Wire(service.port)
    poll, events, socket = [await wire.connect() for _ in range(3)]
    await poll.send(get(b"/chat/a?wait=20", EVE))
    await events.send(get(b"/chat/b/stream", EVE))
    await socket.send(get(b"/chat/c/stream", *UPGRADE, EVE))
    await eventually_waits(service, 3)
    for sent in (
        get(b"/chat/d?wait=20", EVE),
        get(b"/chat/d?w%61it=20", EVE),
        get(b"/chat/d/stream", EVE),
        get(b"/chat/d/stream", *UPGRADE, EVE),
        request(b"POST", b"/chat/d/lease?wait=20", EVE),
        get(b"/chat/d", b"Prefer: wait=20", EVE),
    ):
        assert_problem(await wire.ask(sent), 429, "rate-limited")
    await socket.close()
    await eventually_waits(service, 2)
    again = await wire.connect()
    await again.send(get(b"/chat/d/stream", EVE))
    await eventually_waits(service, 3)
    await wire.close()


async def eventually_waits(service: Service, count: int) -> None:
    """Wait until the service counts so many waits."""

    async def waits() -> bool:
        return service._client_policy.waits._counts.total == count

    await eventually(waits)


# Connections.


async def statuses(wire: Wire, count: int) -> Sequence[int | None]:
    """Open so many connections and send a request on each. Return the statuses of the answers."""
    found = []
    for _ in range(count):
        connection = await wire.connect()
        await connection.send(get(b"/livez"))
        answer = await connection.answer()
        found.append(answer.status if answer is not None else None)
    return found


@pytest.mark.settings(client_connections_max=3)
async def test_a_client_has_a_bounded_number_of_connections(service: Service) -> None:
    wire = Wire(service.port)
    assert await statuses(wire, 5) == [200, 200, 200, 429, 429]
    await wire.connections[0].close()

    async def is_free() -> bool:
        return service._tracker.connections.open == 2

    await eventually(is_free)
    assert await statuses(wire, 2) == [200, 429]
    await wire.close()


@pytest.mark.settings(client_connections_max=2)
async def test_a_connection_too_many_is_told_so_and_closed(service: Service) -> None:
    wire = Wire(service.port)
    for _ in range(2):
        assert (await (await wire.connect()).ask(get(b"/chat/nobody"))).status == 200
    late = await wire.connect()
    # It is told before it asks.
    answer = await late.answer()
    assert answer is not None
    assert_problem(answer, 429, "rate-limited")
    assert answer.headers["connection"] == "close"
    assert await late.answer() is None
    await wire.close()


@pytest.mark.settings(client_connections_max=2)
async def test_a_websocket_counts_as_a_connection_until_it_ends(service: Service) -> None:
    wire = Wire(service.port)

    async def is_free() -> bool:
        return service._tracker.connections.open == 0

    for _ in range(3):
        async with connect(f"ws://127.0.0.1:{service.port}/chat/bob/stream"):
            assert await statuses(wire, 2) == [200, 429]
            await wire.close()
            wire.connections.clear()
        await eventually(is_free)


@pytest.mark.settings(**PROXIED, client_connections_max=2)
async def test_a_trusted_proxy_has_as_many_connections_as_it_needs(service: Service) -> None:
    wire = Wire(service.port)
    assert await statuses(wire, 10) == [200] * 10
    await wire.close()


# What operators see.


@pytest.mark.settings(**FIVE, client_waiters_max=1, client_bytes_per_s=1000, ops="on")
async def test_refusals_are_counted_by_limit(service: Service, chat: ChatClient) -> None:
    wire = Wire(service.port)
    waiting = await wire.connect()
    await waiting.send(get(b"/chat/bob?wait=20"))
    await eventually_waits(service, 1)
    assert (await wire.ask(get(b"/chat/bob?wait=20"))).status == 429
    assert (await wire.ask(post(message("bob", "x" * 20_000)))).status == 201
    assert (await wire.ask(post(message("bob", "x")))).status == 429
    answers = [await wire.ask(get(b"/chat/nobody")) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 2 + [429] * 4
    lines = (await chat.request("GET", "/metrics")).body.decode().splitlines()
    name = "chat_http_requests_limited_total"
    counts = {"waits": 1, "bytes": 1, "requests": 4, "connections": 0}
    for limit, count in counts.items():
        assert f'{name}{{limit="{limit}"}} {count}.0' in lines
    await wire.close()


# Tokens.

#: The holders of five invalid tokens and a good one.
NAMES: Final = ("nobody",) * 5 + ("alice",)


@pytest.fixture
def access_file(tmp_path: Path) -> str:
    """An access file with all holders."""
    path = tmp_path / "access.toml"
    access.write(path, access.everybody())
    return str(path)


@each_way
async def test_a_token_is_one_client_wherever_it_comes_from(
    way: bytes, start_service: StartService, access_file: str
) -> None:
    service = await start_service(**PROXIED, **FIVE, access="tokens", access_file=access_file)
    async with connected(service) as wire:
        alice, bob = access.bearer("alice"), access.bearer("bob")
        answers = [
            await wire.ask(get(b"/chat/alice", way, alice, of(f"198.51.100.{number}")))
            for number in range(6)
        ]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        # Another token from the same address is another client.
        assert (await wire.ask(get(b"/chat/bob", way, bob, of("198.51.100.1")))).status == 200


@each_way
async def test_failed_logins_are_charged_to_their_address(
    way: bytes, start_service: StartService, access_file: str
) -> None:
    rates = {"client_requests_per_s": 0.001, "client_burst": 40}
    service = await start_service(**PROXIED, **rates, access="tokens", access_file=access_file)
    async with connected(service) as wire:
        wrong, alice = access.bearer("nobody"), access.bearer("alice")
        answers = [await wire.ask(get(b"/chat/alice", way, wrong, EVE)) for _ in range(5)]
        assert [answer.status for answer in answers] == [401] * 3 + [429] * 2
        assert is_left(answers[-1].headers["retry-after"], 20000)
        # A good token from there goes on working, and so do other addresses.
        assert (await wire.ask(get(b"/chat/alice", way, alice, EVE))).status == 200
        assert (await wire.ask(get(b"/chat/alice", way, wrong, BOB))).status == 401


async def test_failed_sign_ins_are_charged_to_their_address(
    start_service: StartService, access_file: str
) -> None:
    rates = {"client_requests_per_s": 0.001, "client_burst": 40}
    service = await start_service(**PROXIED, **rates, access="tokens", access_file=access_file)
    async with connected(service) as wire:
        begin = [request(b"POST", b"/session", access.bearer(name), EVE) for name in NAMES]
        answers = [await wire.ask(sent) for sent in begin]
        assert [answer.status for answer in answers] == [401] * 3 + [429] * 2 + [200]


async def test_the_audit_log_names_who_was_limited(
    start_service: StartService, access_file: str
) -> None:
    service = await start_service(
        **PROXIED, **FIVE, access="tokens", access_file=access_file, log_clients="clear"
    )
    async with connected(service) as wire:
        with capture_logs() as entries:
            for line in (access.bearer("alice"), WAYS["the fast path"]):
                for _ in range(6):
                    answer = await wire.ask(get(b"/chat/alice", line, EVE))
                assert answer.status == 429
        limited = [each for each in entries if each["event"] == "limited"]
        assert [each.get("subject") for each in limited] == ["alice", None]
        assert limited[1]["client"] == "198.51.100.7"
        assert {each["limit"] for each in limited} == {"requests"}


async def test_the_address_pays_for_requests_without_a_token(
    start_service: StartService, access_file: str
) -> None:
    service = await start_service(**PROXIED, **FIVE, access="tokens", access_file=access_file)
    async with connected(service) as wire:
        answers = [await wire.ask(get(b"/chat/alice", EVE)) for _ in range(6)]
        assert [answer.status for answer in answers] == [401] * 5 + [429]
        assert (await wire.ask(get(b"/chat/alice", access.bearer("alice"), EVE))).status == 200
