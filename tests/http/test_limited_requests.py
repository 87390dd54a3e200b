"""A client's requests beyond its rate are refused, on both paths, and each request counts.

Rates are so low that nothing accrues during a test.
"""

from pathlib import Path
from typing import Final, NoReturn

import pytest

from chat_service.handlers.batch import BatchHandlers
from chat_service.service import Service
from tests.conftest import StartService
from tests.support.cases import each_case
from tests.support.client_limits import (
    BOB,
    EVE,
    FIVE,
    PROXIED,
    WAYS,
    assert_limited,
    connected,
    each_way,
    exhaust,
    is_left,
)
from tests.support.raw import Answer, Wire, get, message, post, request, texts_of


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


async def test_a_batch_of_nobody_counts(start_service: StartService, access_file: Path) -> None:
    service = await start_service(**FIVE, access="tokens", access_file=str(access_file))
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
