"""Long polls and streams of one client are bounded, and an end frees a place."""

from typing import Final

import pytest

from chat_service.service import Service
from tests.support.client_limits import BOB, EVE, PROXIED, each_way, eventually_waits
from tests.support.raw import (
    Wire,
    accepted,
    assert_problem,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)

UPGRADE: Final = (
    *(b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


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
