"""Behind a trusted proxy, the service knows the real client, on the fast path and on Tornado's."""

import asyncio
from typing import Final

import pytest
from structlog.testing import capture_logs

from chat_service.service import Service
from tests.support.cases import each_case
from tests.support.raw import get

#: A line that takes a request to Tornado, or changes nothing.
WAYS: Final = {"the fast path": b"X-Nothing: x", "Tornado": b"TE: trailers"}
FORGED: Final = b"X-Forwarded-For: 203.0.113.9"
HEADS: Final = {
    "one line": ((b"X-Forwarded-For: 203.0.113.9, 198.51.100.7",), "198.51.100.7"),
    "two lines": ((FORGED, b"X-Forwarded-For: 198.51.100.7"), "198.51.100.7"),
    "Forwarded": ((b'forwarded: for=x, for="[2001:db8::7]:1"',), "2001:db8::7"),
    "both": ((FORGED, b"Forwarded: for=198.51.100.7"), "127.0.0.1"),
    "unknown": ((b"X-Forwarded-For: 203.0.113.9, unknown",), "127.0.0.1"),
    "bytes that are not ASCII": ((b"X-Forwarded-For: \xe9, 198.51.100.7",), "198.51.100.7"),
    "neither": ((), "127.0.0.1"),
}


async def client_logged(service: Service, *lines: bytes) -> object:
    """Return the client in the access log's line of a read with these header lines."""
    with capture_logs() as entries:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(get(b"/chat/nobody", *lines))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    (entry,) = [each for each in entries if each["event"] == "request"]
    return entry["client"]


@pytest.mark.settings(
    log_requests_per_s=1000, log_clients="clear", trusted_proxies=("127.0.0.0/8",)
)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@each_case(HEADS)
async def test_the_log_names_the_client_behind_a_proxy(
    case: tuple[tuple[bytes, ...], str], way: bytes, service: Service
) -> None:
    lines, client = case
    assert await client_logged(service, way, *lines) == client
    assert await client_logged(service, way, *lines) == client


@pytest.mark.settings(log_requests_per_s=1000, log_clients="clear", trusted_proxies=("10.0.0.1",))
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_headers_of_an_untrusted_peer_are_ignored(way: bytes, service: Service) -> None:
    assert await client_logged(service, way, FORGED) == "127.0.0.1"


@pytest.mark.settings(log_requests_per_s=1000, log_clients="clear")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_without_the_setting_proxy_headers_are_ignored(way: bytes, service: Service) -> None:
    assert await client_logged(service, way, FORGED) == "127.0.0.1"
