"""Limits of one client, for tests: who sends a request, on which path, and how it is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from chat_service.service import Service
from tests.support.raw import Answer, Connection, Wire, assert_problem, errors_logged, get
from tests.support.waiting import eventually

#: The requests come through a trusted proxy, which names the client.
PROXIED: Final[dict[str, Any]] = {"trusted_proxies": ("127.0.0.0/8",)}
#: A request in a thousand seconds, and five at once.
FIVE: Final[dict[str, Any]] = {"client_requests_per_s": 0.001, "client_burst": 5}
#: A line that takes a request to Tornado, or changes nothing.
WAYS: Final = {"the fast path": b"X-Nothing: x", "Tornado": b"TE: trailers"}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


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


async def eventually_waits(service: Service, count: int) -> None:
    """Wait until the service counts so many waits."""

    async def waits() -> bool:
        return service._client_policy.waits._counts.total == count

    await eventually(waits)
