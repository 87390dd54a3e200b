"""A client's bytes beyond its rate are refused, in each form of a body.

The rates are so low that nothing accrues during a test.
"""

from typing import Any, Final

from tests.conftest import StartService
from tests.support.cases import each_case
from tests.support.client_limits import BOB, EVE, PROXIED, WAYS, assert_limited
from tests.support.raw import Wire, assert_problem, chunked, get, message, post, request

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


async def test_a_body_that_is_only_announced_costs_at_most_one(start_service: StartService) -> None:
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
