"""Bodies that are not a JSON object are refused. Unknown members of an object are ignored."""

import gzip
from typing import Final

from chat_service.service import Service
from tests.support.cases import each_case
from tests.support.raw import accepted, assert_problem, get, message, post, unharmed

GOOD: Final = message("bob", "hi")


def around(text: bytes) -> bytes:
    """Return a valid body, except for these bytes in its text."""
    return b'{"text": "%b", "username": "bob"}' % text


def beside(member: bytes) -> bytes:
    """Return a valid message with one more member."""
    return b'{"text": "hi", %b, "username": "bob"}' % member


NOT_AN_OBJECT: Final = {
    "an empty body": b"",
    "a space": b" ",
    "a NUL": b"\0",
    "an unterminated object": b"{",
    "data after the object": b"{}x",
    "two objects": GOOD + GOOD,
    "a truncated literal": b"nul",
    "single quotes": b"{'text': 'hi', 'username': 'bob'}",
    "a trailing comma": b'{"text": "hi", "username": "bob",}',
    "a comment": beside(b'/* no */ "x": 1'),
    "null": b"null",
    "an array": b"[" + GOOD + b"]",
    "a string": b'"hi"',
    "a number": b"1",
    "true": b"true",
    "a form": b"text=hi&username=bob",
    "a form of 1001 fields": b"&".join(b"a%d=1" % number for number in range(1001)),
    "a multipart form": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--x--\r\n',
    "undeclared gzip": gzip.compress(GOOD),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + GOOD,
    "ten thousand byte order marks": b"\xef\xbb\xbf" * 10_000 + GOOD,
    "only a byte order mark": b"\xef\xbb\xbf",
    "a byte order mark at the end": GOOD + b"\xef\xbb\xbf",
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-16 without a byte order mark": GOOD.decode().encode("utf-16-le"),
    "big-endian UTF-16": GOOD.decode().encode("utf-16-be"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "UTF-32 without a byte order mark": GOOD.decode().encode("utf-32-le"),
    "Latin-1": around("é".encode("latin-1")),
    "a byte that never occurs in UTF-8": around(b"\xff"),
    "an overlong NUL": around(b"\xc0\x80"),
    "a truncated character": around(b"\xe2\x82"),
    "a surrogate in UTF-8": around(b"\xed\xa0\x80"),
    "a code point above U+10FFFF": around(b"\xf4\x90\x80\x80"),
    "bad UTF-8 in an ignored field": beside(b'"x": "\xff"'),
    "bad UTF-8 in the name of an ignored field": beside(b'"\xff": 1'),
    "a raw control character": around(b"\x01"),
    "a raw newline": around(b"\n"),
    "an unknown escape": around(b"\\x41"),
    "a lone high surrogate": around(b"\\ud800"),
    "a lone low surrogate": around(b"\\udc00x"),
    "a surrogate in the username": b'{"text": "hi", "username": "\\ud800"}',
    "unclosed brackets": b"[" * 100_000,
    "unclosed objects": b'{"a":' * 80_000,
    "an ignored field nested too deeply": beside(b'"x": ' + b"[" * 100_000 + b"]" * 100_000),
}


@each_case(NOT_AN_OBJECT)
async def test_a_body_that_is_no_json_object_is_refused(body: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        assert_problem(await wire.ask(post(body)), 400, "invalid-json")
        assert await wire.texts("bob") == []


UNUSUAL: Final = {
    "a byte order mark, as Windows programs write it": b"\xef\xbb\xbf" + GOOD,
    "whitespace around everything": b' \r\n\t{ "text" : "hi" , "username" : "bob" } \n',
    "the id of another message": beside(b'"_id": "0", "id": "0"'),
    "the store's own fields": beside(b'"unread": false, "claim": "x", "expires_at": 0, "batch": 1'),
    "names with a meaning in MongoDB": beside(b'"$set": {"text": "no"}, "a.b": 1, "": 2'),
    "names with a meaning in JavaScript or Python": beside(
        b'"__proto__": {"text": "no"}, "__class__": 1'
    ),
    "an ignored field 900 levels deep": beside(b'"x": ' + b"[" * 900 + b"]" * 900),
    "an ignored field with a huge number": beside(b'"x": 1e400, "y": ' + b"9" * 5000),
    "a repeated field: the last value wins": b'{"text": "no", "username": "bob", "text": "hi"}',
    "an invalid value, then a valid one": b'{"text": 1, "username": "bob", "text": "hi"}',
    "a thousand fields": beside(b",".join(b'"a%d": %d' % (n, n) for n in range(1000))),
    "escapes in the names": b'{"te\\u0078t": "hi", "usernam\\u0065": "b\\u006fb"}',
}


@each_case(UNUSUAL)
async def test_an_object_is_a_message_whatever_else_it_holds(body: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        message_id = accepted(await wire.ask(post(body)))
        read = await wire.ask(get(b"/chat/bob"))
        assert read.document == [{"text": "hi", "id": message_id}]


async def test_the_error_names_half_a_surrogate_pair(service: Service) -> None:
    async with unharmed(service) as wire:
        for half in (rb"\ud800", rb"\udc00x", rb"\uD83D\u0041"):
            answer = await wire.ask(post(around(half)))
            assert_problem(answer, 400, "invalid-json")
            assert "half of a surrogate pair" in answer.document["detail"]
        for other in (rb"\uzzzz", rb"\ud83d\ude00 C:\work", rb"\\ud83d \w"):
            malformed = await wire.ask(post(around(other)))
            assert "surrogate" not in malformed.document["detail"]


CONTENT_TYPES: Final = {
    "none": (),
    "JSON in UTF-8": (b"Content-Type: application/json; charset=utf-8",),
    "JSON declared as UTF-16": (b"Content-Type: application/json; charset=utf-16",),
    "plain text": (b"Content-Type: text/plain",),
    "a form": (b"Content-Type: application/x-www-form-urlencoded",),
    "multipart without a boundary": (b"Content-Type: multipart/form-data",),
    "two types": (b"Content-Type: text/html", b"Content-Type: image/png"),
    "nonsense": (b"Content-Type: \xff;;=/",),
}


@each_case(CONTENT_TYPES)
async def test_any_content_type_is_read_as_json(
    headers: tuple[bytes, ...], service: Service
) -> None:
    form = b"text=hi&username=bob"
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(GOOD, *headers)))
        assert_problem(await wire.ask(post(form, *headers)), 400, "invalid-json")
        assert await wire.texts("bob") == ["hi"]


ENCODED: Final = {
    "gzip": (b"gzip", gzip.compress(GOOD)),
    "a zip bomb": (b"gzip", gzip.compress(b" " * (64 << 20), 9)),
    "declared gzip that is none": (b"GZIP", b"\x1f\x8bjunk"),
    "gzip in an identity list": (b"identity, gzip", gzip.compress(GOOD)),
    "another encoding": (b"br", GOOD),
}


@each_case(ENCODED)
async def test_a_compressed_body_is_never_unpacked(
    case: tuple[bytes, bytes], service: Service
) -> None:
    encoding, body = case
    async with unharmed(service) as wire:
        answer = await wire.ask(post(body, b"Content-Encoding: " + encoding))
        assert_problem(answer, 415, "content-encoding")
        assert await wire.texts("bob") == []


async def test_an_encoding_that_changes_nothing_is_no_encoding(service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(GOOD, b"Content-Encoding: identity")))
        assert await wire.texts("bob") == ["hi"]
