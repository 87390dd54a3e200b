"""Bytes that are no HTTP message, partial messages, slow ones, and pipelined ones."""

from typing import Final

import pytest

from chat_service.service import Service
from tests.support.cases import each_case
from tests.support.raw import (
    HOST,
    accepted,
    assert_not_http,
    assert_problem,
    chunked,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)

GOOD: Final = message("bob", "another")
CHUNKED: Final = b"Transfer-Encoding: chunked"


def post_of(body: bytes, *headers: bytes) -> bytes:
    """Return a post whose framing is only in these headers."""
    return request(b"POST", b"/chat", *headers) + body


def read_with(header: bytes) -> bytes:
    """Return a read with this header line, written as given."""
    return b"GET /chat/bob HTTP/1.1\r\n%b\r\n%b\r\n\r\n" % (HOST, header)


NOT_A_MESSAGE: Final = {
    "HTTP/0.9": b"GET /chat/bob\r\n\r\n",
    "HTTP/0.9, named": b"GET /chat/bob HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/2, named": b"GET /chat/bob HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"EHLO good.test\r\n\r\n",
    "random bytes": bytes(range(256)) + b"\r\n\r\n",
    "only spaces": b"   \r\n\r\n",
    "no method": b" /chat/bob HTTP/1.1\r\nHost: a\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  /chat/bob HTTP/1.1\r\nHost: a\r\n\r\n",
    "data after the version": b"GET /chat/bob HTTP/1.1 x\r\nHost: a\r\n\r\n",
    "a version in lower case": b"GET /chat/bob http/1.1\r\nHost: a\r\n\r\n",
    "a method that is no token": b"G(E)T /chat/bob HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header without a colon": read_with(b"X"),
    "a header without a name": read_with(b": a"),
    "a space after a name": read_with(b"X : a"),
    "a folded header": read_with(b"X: a\r\n b"),
    "a tab before the first header": b"GET /chat/bob HTTP/1.1\r\n\tHost: a\r\n\r\n",
    "a NUL in a name": read_with(b"X\0: a"),
    "a NUL in a value": read_with(b"X: a\0b"),
    "a CR in a value": read_with(b"X: a\rb"),
    "a name that is not ASCII": read_with(b"\xe9: a"),
}


@each_case(NOT_A_MESSAGE)
async def test_malformed_http_is_refused_and_the_connection_closed(
    sent: bytes, service: Service
) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        assert_not_http(await connection.answer())
        assert await wire.texts("bob") == ["hi"]


def lengths(*values: bytes) -> bytes:
    """Return a valid post with these values of Content-Length."""
    return post_of(GOOD, *(b"Content-Length: " + value for value in values))


SIZE: Final = b"%d" % len(GOOD)
NO_LENGTH: Final = {
    "a negative length": lengths(b"-1"),
    "a signed length": lengths(b"+" + SIZE),
    "a length with a separator": lengths(b"1_0"),
    "a length in hexadecimal": lengths(b"0x10"),
    "a fraction": lengths(SIZE + b".0"),
    "an empty length": lengths(b""),
    "a length in letters": lengths(b"ten"),
    "a superscript digit": lengths(b"\xb2"),
    "superscript digits": lengths(b"1\xb9\xb3"),
    "a list of lengths": lengths(SIZE + b", 2"),
    "two lengths": lengths(SIZE, b"2"),
    "a length, then chunked": post_of(chunked(GOOD), b"Content-Length: " + SIZE, CHUNKED),
    "chunked, then a length": post_of(chunked(GOOD), CHUNKED, b"Content-Length: " + SIZE),
    "chunked twice": post_of(chunked(GOOD), CHUNKED, CHUNKED),
    "compressed chunks": post_of(chunked(GOOD), b"Transfer-Encoding: gzip, chunked"),
    "another encoding": post_of(GOOD, b"Transfer-Encoding: identity"),
    "a chunk size with 0x": post_of(b"0x1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "a chunk size with a sign": post_of(b"+1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "a negative chunk size": post_of(b"-1\r\nx\r\n0\r\n\r\n", CHUNKED),
    "no chunk size": post_of(b"\r\nx\r\n0\r\n\r\n", CHUNKED),
    "an unterminated chunk size": post_of(b"1" * 100, CHUNKED),
    "a chunk longer than its size": post_of(b"1\r\nxx\r\n0\r\n\r\n", CHUNKED),
    "a chunk extension": post_of(b"1;a=b\r\nx\r\n0\r\n\r\n", CHUNKED),
    "a trailer": post_of(b"%x\r\n%b\r\n0\r\nX: a\r\n\r\n" % (len(GOOD), GOOD), CHUNKED),
}


@each_case(NO_LENGTH)
async def test_a_body_of_unclear_length_closes_the_connection(
    sent: bytes, service: Service
) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(sent)
        assert_not_http(await connection.answer())
        assert await connection.answer() is None
        assert await wire.texts("bob") == []


CLEAR_LENGTH: Final = {
    "the same length twice": lengths(SIZE, SIZE),
    "a list of equal lengths": lengths(SIZE + b", " + SIZE),
    "leading zeros": lengths(b"000" + SIZE),
    "one chunk": post_of(chunked(GOOD), CHUNKED),
    "one chunk per byte": post_of(chunked(*(bytes([byte]) for byte in GOOD)), CHUNKED),
    "chunked in capitals": post_of(
        b"%X\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD), b"transfer-encoding: Chunked"
    ),
    "an empty line before the request": b"\r\n" + post(GOOD),
    "an expectation": post(GOOD, b"Expect: foo"),
}  # fmt: skip


@each_case(CLEAR_LENGTH)
async def test_every_valid_framing_is_read(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(sent))
        assert await wire.texts("bob") == ["another"]


async def test_lines_may_end_without_cr_or_else_are_refused(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(request(b"GET", b"/chat/bob").replace(b"\r\n", b"\n"))
        answer = await connection.answer()
        if answer is None or answer.status == 400:
            assert_not_http(answer)
        else:
            assert texts_of(answer) == []


async def test_a_post_without_a_length_has_an_empty_body(service: Service) -> None:
    async with unharmed(service) as wire:
        assert_problem(await wire.ask(request(b"POST", b"/chat")), 400, "invalid-json")


async def test_the_rest_of_a_body_is_not_executed(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(post_of(GOOD + b"\r\n\r\n", b"Content-Length: 10"))
        answer = await connection.answer()
        assert answer is not None
        assert_problem(answer, 400, "invalid-json")
        assert_not_http(await connection.answer())
        assert await wire.texts("bob") == []


TOO_LONG_A_HEAD: Final = {
    "a long header": read_with(b"X: " + b"a" * 9000),
    "a long name": read_with(b"a" * 9000 + b": a"),
    "a long path": get(b"/chat/" + b"a" * 9000),
    "a long query": get(b"/chat/bob?" + b"a" * 9000),
    "a long method": request(b"A" * 9000, b"/chat/bob"),
    "101 headers": read_with(b"\r\n".join(b"A%d: 1" % n for n in range(100))),
    "a folded header of 101 lines": read_with(b"A: 1" + b"\r\n 1" * 100),
    "ten thousand headers": read_with(b"\r\n".join(b"A%d: 1" % n for n in range(10_000))),
    "one header, ten thousand times": read_with(b"\r\n".join([b"A: 1"] * 10_000)),
    "a megabyte without a line end": b"GET /chat/bob HTTP/1.1\r\nX: " + b"a" * (1 << 20),
}


@each_case(TOO_LONG_A_HEAD)
async def test_a_head_that_is_too_long_is_not_read_to_its_end(
    sent: bytes, service: Service
) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        answer = await connection.answer(sent.partition(b" ")[0])
        assert answer is not None
        assert_problem(answer, 431, "head-too-large")
        assert await connection.answer() is None
        assert await wire.texts("bob") == ["hi"]


# HTTP/1.0.

OLD_READ: Final = b"GET /chat/bob HTTP/1.0\r\n%b\r\n"


@each_case({"without Host": b"", "with Host": HOST + b"\r\n"})
async def test_http_1_0_is_answered_and_closed(header: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        assert texts_of(await connection.ask(OLD_READ % header)) == ["hi"]
        assert await connection.answer() is None


async def test_http_1_0_may_ask_to_go_on(service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send((OLD_READ % b"Connection: keep-alive\r\n") * 2)
        for texts in (["hi"], []):
            answer = await connection.answer()
            assert answer is not None
            assert answer.headers["connection"].lower() == "keep-alive"
            assert texts_of(answer) == texts


# Slow and pipelined requests.

SEVERAL: Final = (
    (post(GOOD), 201),
    (post(b"{"), 400),
    (request(b"HEAD", b"/chat/bob"), 200),
    (get(b"/chat/"), 404),
    (request(b"OPTIONS", b"/chat/bob"), 204),
    (post_of(chunked(GOOD[:9], GOOD[9:]), CHUNKED), 201),
    (request(b"DELETE", b"/chat/bob", body=b"GET / HTTP/1.1\r\n\r\n"), 405),
    (get(b"/chat/bob", b"Sec-Purpose: prefetch"), 403),
    (request(b"HEAD", b"/chat/bob/bob"), 404),
    (get(b"/chat/bob"), 200),
    (get(b"/chat/bob"), 200),
)
ALL_SEVERAL: Final = b"".join(each for each, _ in SEVERAL)


@each_case({"at once": len(ALL_SEVERAL), "byte by byte": 1})
async def test_pipelined_requests_are_answered_in_order(size: int, service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        starts = range(0, len(ALL_SEVERAL), size)
        await connection.send(*(ALL_SEVERAL[start : start + size] for start in starts))
        answers = [await connection.answer(each.split(b" ")[0]) for each, _ in SEVERAL]
        assert [answer and answer.status for answer in answers] == [status for _, status in SEVERAL]
        *_, full, empty = answers
        assert full is not None
        assert texts_of(full) == ["another", "another"]
        assert empty is not None
        assert texts_of(empty) == []


async def test_bytes_that_are_no_request_end_a_pipeline(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(post(GOOD) + b"no HTTP\r\n\r\n" + get(b"/chat/bob"))
        answer = await connection.answer()
        assert answer is not None
        accepted(answer)
        assert_not_http(await connection.answer())
        assert await connection.answer() is None
        assert await wire.texts("bob") == ["another"]


async def test_expect_100_continue_is_answered(service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        length = b"Content-Length: " + SIZE
        assert (await connection.ask(post_of(b"", length, b"Expect: 100-continue"))).status == 100
        accepted(await connection.ask(GOOD))
        assert await wire.texts("bob") == ["another"]


# Incomplete messages.

HALVES: Final = {
    "no byte of the body": post_of(b"", b"Content-Length: 10"),
    "three bytes of ten": post_of(b"abc", b"Content-Length: 10"),
    "all but the last byte": post(GOOD)[:-1],
    "no chunk": post_of(b"", CHUNKED),
    "half a chunk size": post_of(b"1", CHUNKED),
    "half a chunk": post_of(b"10\r\nabc", CHUNKED),
    "a chunk, but no last chunk": post_of(chunked(GOOD)[:-5], CHUNKED),
    "half a last chunk": post_of(chunked(GOOD)[:-1], CHUNKED),
}
HALF_HEADS: Final = {
    "nothing": b"",
    "half a method": b"GE",
    "an unterminated line": b"GET /chat/bob HTTP/1.1",
    "an unterminated head": read_with(b"X: a")[:-2],
    "random bytes without a line end": bytes(range(11, 256)),
}


@pytest.mark.settings(body_timeout_s=0.2)
@each_case(HALVES)
async def test_an_unfinished_body_ends_the_connection(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(sent)
        assert await connection.answer() is None
        assert await wire.texts("bob") == []


@pytest.mark.settings(idle_timeout_s=0.2)
@each_case(HALF_HEADS)
async def test_an_unfinished_head_ends_the_connection(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        assert await connection.answer() is None
        assert await wire.texts("bob") == ["hi"]


TLS: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200, 256))


@pytest.mark.settings(idle_timeout_s=600)
@each_case({"a TLS handshake": TLS, "the first byte of one": TLS[:1]})
async def test_a_tls_handshake_is_refused_at_its_first_byte(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        connection = await wire.connect()
        await connection.send(sent)
        assert_not_http(await connection.answer())
        assert await connection.answer() is None


@each_case({**HALVES, **HALF_HEADS})
async def test_half_a_message_is_no_message(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        connection = await wire.connect()
        await connection.send(sent)
        await connection.close()
        assert await wire.texts("bob") == ["hi"]
