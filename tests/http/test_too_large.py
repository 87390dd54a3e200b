"""A body over the limit is refused before it is read, and no part of it is run as a request."""

from typing import Final

from chat_service.service import Service
from tests.support.cases import each_case
from tests.support.raw import (
    Connection,
    accepted,
    assert_problem,
    chunked,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)

LIMIT: Final = 512 * 1024
CHUNKED: Final = b"Transfer-Encoding: chunked"
#: A request inside a body. A server that loses track of the body would execute it.
HIDDEN: Final = get(b"/chat/bob")


def padded(size: int) -> bytes:
    """Return the body of a valid post, of this size."""
    return message("bob", "hi").ljust(size)


def hiding(size: int) -> bytes:
    """Return a body of this size that consists of requests."""
    return (HIDDEN * (size // len(HIDDEN) + 1))[:size]


async def refused(connection: Connection, method: bytes = b"POST") -> None:
    """Assert that the next answer is 413."""
    answer = await connection.answer(method)
    assert answer is not None
    assert answer.status == 413, answer
    if method != b"HEAD":
        assert_problem(answer, 413, "too-large")


async def test_a_body_may_be_as_large_as_the_limit(service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(padded(LIMIT))))
        whole = request(b"POST", b"/chat", CHUNKED) + chunked(padded(LIMIT))
        accepted(await wire.ask(whole))
        assert await wire.texts("bob") == ["hi", "hi"]


@each_case({f"{size} bytes": size for size in (LIMIT + 1, 1 << 20, 4 << 20)})
async def test_a_declared_length_over_the_limit_is_refused(size: int, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        body = hiding(size)
        # The answer arrives before the body is sent.
        await connection.send(post(body)[: -len(body)])
        await refused(connection)
        # A client that sends the body anyway can go on using its connection.
        await connection.send(body)
        assert texts_of(await connection.ask(HIDDEN)) == ["hi"]


HUGE: Final = {
    "more than the service discards": b"%d" % ((4 << 20) + 1),
    "a terabyte": b"%d" % (1 << 40),
    "30 digits": b"9" * 30,
    "5000 digits": b"9" * 5000,
    "leading zeros": b"0" * 10 + b"%d" % (1 << 30),
}


@each_case(HUGE)
async def test_for_a_huge_length_the_connection_is_closed(length: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(request(b"POST", b"/chat", b"Content-Length: " + length))
        await refused(connection)
        assert not connection.is_kept
        assert await connection.answer() is None
        assert await wire.texts("bob") == ["hi"]


DISGUISED: Final = {
    "chunks": request(b"POST", b"/chat", CHUNKED) + chunked(hiding(LIMIT), b"x"),
    "one chunk": request(b"POST", b"/chat", CHUNKED) + chunked(hiding(1 << 20)),
    "small chunks": request(b"POST", b"/chat", CHUNKED) + chunked(*[hiding(1000)] * 600),
    "a list of lengths": request(b"POST", b"/chat", b"Content-Length: 600000, 600000")
    + hiding(600_000),
    "many leading zeros": request(b"POST", b"/chat", b"Content-Length: " + b"0" * 30 + b"600000")
    + hiding(600_000),
    "50,000 names in a megabyte": post(
        b"{%b}" % b",".join(b'"name-%d": "value-%d"' % (n, n) for n in range(50_000))
    ),
}


@each_case(DISGUISED)
async def test_a_body_that_grows_over_the_limit_is_refused(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        await refused(connection)
        assert texts_of(await connection.ask(HIDDEN)) == ["hi"]


async def test_chunks_over_the_limit_are_refused_before_they_end(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(request(b"POST", b"/chat", CHUNKED) + chunked(hiding(1 << 20))[:-5])
        await refused(connection)
        await connection.close()


async def test_chunks_without_an_end_are_cut_off(service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        chunk = chunked(hiding(1 << 16))[:-5]
        await connection.send(request(b"POST", b"/chat", CHUNKED), *[chunk] * 100)
        # A client that keeps sending without reading may only see the connection close.
        answer = await connection.answer()
        assert answer is None or answer.status == 413
        assert await connection.answer() is None
        assert await wire.texts("bob") == ["hi"]


EVERYWHERE: Final = (
    *((method, b"/chat/bob") for method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"POST")),
    *((method, b"/chat/bob/read") for method in (b"POST", b"HEAD")),
    *((method, b"/nowhere") for method in (b"GET", b"HEAD", b"POST")),
    (b"GET", b"/livez"),
)
#: The method, the target, and whether the body is sent in chunks.
FORMS: Final = {
    f"{method.decode()} {target.decode()} {form}": (method, target, form == "in chunks")
    for method, target in EVERYWHERE
    for form in ("declared", "in chunks")
}


@each_case(FORMS)
async def test_a_body_is_too_large_for_any_path_and_method(
    case: tuple[bytes, bytes, bool], service: Service
) -> None:
    method, target, in_chunks = case
    body = hiding(LIMIT + 1)
    if in_chunks:
        sent = request(method, target, CHUNKED) + chunked(body)
    else:
        sent = request(method, target, body=body)
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        await refused(connection, method)
        assert await wire.texts("bob") == ["hi"]


async def test_expect_100_continue_spares_sending_a_too_large_body(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        headers = (b"Content-Length: %d" % (LIMIT + 1), b"Expect: 100-continue")
        await connection.send(request(b"POST", b"/chat", *headers))
        await refused(connection)
        assert await connection.answer() is None


async def test_a_request_after_a_body_too_large_is_answered(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        body = hiding(LIMIT + 1)
        await connection.send(post(padded(100)) + post(body) + get(b"/chat/bob"))
        first = await connection.answer()
        assert first is not None
        accepted(first)
        await refused(connection)
        last = await connection.answer()
        assert last is not None
        assert texts_of(last) == ["hi"]
