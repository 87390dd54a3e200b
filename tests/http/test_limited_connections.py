"""Connections of one client are bounded, except those of a trusted proxy."""

from collections.abc import Sequence

import pytest
from websockets.asyncio.client import connect

from chat_service.service import Service
from tests.support.client_limits import PROXIED
from tests.support.raw import Wire, assert_problem, get
from tests.support.waiting import eventually


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
