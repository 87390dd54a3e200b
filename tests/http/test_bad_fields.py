"""Fields of a message: an invalid value is refused by name, a valid one is returned unchanged."""

import json
from typing import Final
from urllib.parse import quote

from chat_service.service import Service
from tests.support.cases import by_text, each_case
from tests.support.raw import (
    accepted,
    assert_problem,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)


def raw_message(text: str, username: str) -> bytes:
    """Return a body that escapes only what JSON requires."""
    fields = {"text": text, "username": username}
    return json.dumps(fields, ensure_ascii=False).encode()


def path_of(username: str) -> bytes:
    """Return the path of an inbox."""
    return b"/chat/" + quote(username, safe="").encode()


# Fields that are missing or of the wrong type.

WRONG: Final = {
    "no fields": (b"{}", {"text", "username"}),
    "no text": (b'{"username": "bob"}', {"text"}),
    "no username": (b'{"text": "hi"}', {"username"}),
    "everything wrong": (
        b'{"text": 1, "username": 1, "timeout": "1"}',
        {"text", "username", "timeout"},
    ),
    **{
        f"text {value.decode()}": (b'{"username": "bob", "text": %b}' % value, {"text"})
        for value in (b"null", b"1", b"1.5", b"true", b"[]", b"{}", b'["hi"]')
    },
    **{
        f"username {value.decode()}": (b'{"text": "hi", "username": %b}' % value, {"username"})
        for value in (
            *(b"null", b"1", b"true", b"[]", b"{}"),
            *(b'{"$gt": ""}', b'{"$ne": null}', b'{"$regex": ".*"}'),
        )
    },
}


@each_case(WRONG)
async def test_a_field_of_the_wrong_type_is_named(
    case: tuple[bytes, set[str]], service: Service
) -> None:
    body, fields = case
    async with unharmed(service) as wire:
        assert_problem(await wire.ask(post(body)), 400, "invalid-request", fields)
        assert await wire.texts("bob") == []


# Text.

TEXTS: Final = {
    "empty": "",
    "a space": " ",
    "a newline": "\n",
    "a tab": "\t",
    "a NUL": "a\0b",
    "every control character": "".join(map(chr, range(32))) + "\x7f\x85\x9b",
    "a MongoDB operator": '{"$where": "1"}',
    "the end of a JSON string": '"}, {"text": "\\',
    "markup": "<script>alert(1)</script>&amp;",
    "line separators of JavaScript": "\u2028\u2029",
    "right to left": "\u202eabc",
    "joined emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "a surrogate pair": "\U0001f600",
    "a combining accent": "e\u0301\u00e9",
    "a thousand accents": "e" + "\u0301" * 1000,
    "a byte order mark": "\ufeffa",
    "the last code point": "\U0010ffff",
    "no characters at all": "\ufffe\uffff",
    "the longest": "a" * 65536,
    "the longest, in bytes": "a" * 65533 + "\u20ac",
    "the longest, of NULs": "\0" * 65536,
}


@each_case(TEXTS)
async def test_any_text_is_returned_unchanged(text: str, service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(raw_message(text, "bob"))))
        accepted(await wire.ask(post(message("bob", text))))
        assert await wire.texts("bob") == [text, text]


@each_case({"letters": "a" * 65537, "bytes": "a" * 65534 + "\u20ac"})
async def test_a_text_one_byte_too_long_is_refused(text: str, service: Service) -> None:
    async with unharmed(service) as wire:
        answer = await wire.ask(post(raw_message(text, "bob")))
        assert_problem(answer, 413, "too-large")
        assert answer.document["detail"].startswith("text ")
        assert await wire.texts("bob") == []


# Usernames.

USERNAMES: Final = {
    "a MongoDB operator": "$where",
    "another MongoDB operator": "$gt",
    "the path of a document field": "a.b",
    "three dots": "...",
    "a keyword of JavaScript": "__proto__",
    "another keyword of JavaScript": "constructor",
    "null": "null",
    "undefined": "undefined",
    "true": "true",
    "a path of the service": "metrics",
    "the path of a read": "read",
    "the path of all inboxes": "chat",
    "the route's parameter": ":username",
    "a slash": "a/b",
    "a backslash": "a\\b",
    "an escaped slash": "a%2Fb",
    "an incomplete escape": "%zz",
    "a query": "a?limit=0#b",
    "a plus": "a+b c",
    "a leading space": " a",
    "a trailing space": "a ",
    "a no-break space": "\u00a0",
    "a zero-width space": "\u200b",
    "right to left": "\u202ebob",
    "quotes": "\"'`",
    "the longest": "\U0001f600" * 128,
}


@each_case(USERNAMES)
async def test_any_username_can_be_posted_to_and_read(username: str, service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(raw_message("one", username))))
        accepted(await wire.ask(post(message(username, "two"))))
        head = await wire.ask(request(b"HEAD", path_of(username)))
        assert (head.status, head.headers["x-unread-count"]) == (200, "2")
        first = await wire.ask(get(path_of(username) + b"?limit=1"))
        assert texts_of(first) == ["one"]
        rest = await wire.ask(request(b"POST", path_of(username) + b"/read"))
        assert texts_of(rest) == ["two"]


TWINS: Final = {
    "upper case": ("bob", "Bob"),
    "a space": ("bob", "bob "),
    "a combining accent": ("\u00e9", "e\u0301"),
    "a dotted capital": ("\u0130", "i\u0307"),
    "a sharp s": ("\u00df", "SS"),
    "the Kelvin sign": ("\u212a", "K"),
    "a zero-width joiner": ("bob", "bob\u200b"),
    "another alphabet": ("bob", "b\u043eb"),
    "an escape": ("a/b", "a%2Fb"),
}


@each_case(TWINS)
async def test_names_that_look_alike_are_two_inboxes(
    case: tuple[str, str], service: Service
) -> None:
    username, twin = case
    async with unharmed(service) as wire:
        await wire.post(username, "hi")
        assert await wire.texts(twin) == []
        assert await wire.texts(username) == ["hi"]


NO_USERNAMES: Final = {
    "a dot": ".",
    "two dots": "..",
    "one character too long": "\U0001f600" * 129,
    "a NUL": "a\0",
    "a newline": "bob\n",
    "an injected header": "a\r\nX: 1",
    "a tab": "a\tb",
    "an escape sequence": "\x1b[2J",
    "a DEL": "\x7f",
    "a NEL": "a\x85",
    "a control sequence": "\x9b2J",
}


@each_case(NO_USERNAMES)
async def test_a_bad_username_is_refused_in_body_and_path(username: str, service: Service) -> None:
    async with unharmed(service) as wire:
        for sent in (
            post(message(username, "hi")),
            get(path_of(username)),
            request(b"POST", path_of(username) + b"/read"),
        ):
            assert_problem(await wire.ask(sent), 400, "invalid-request", {"username"})
        assert (await wire.ask(request(b"HEAD", path_of(username)))).status == 400


async def test_an_empty_username_is_refused(service: Service) -> None:
    async with unharmed(service) as wire:
        answer = await wire.ask(post(message("", "hi")))
        assert_problem(answer, 400, "invalid-request", {"username"})


# Timeouts.


def with_timeout(timeout: str) -> bytes:
    """Return the body of a post with this timeout, written as given."""
    return b'{"text": "hi", "username": "bob", "timeout": %b}' % timeout.encode()


@each_case(by_text(["null", "1", "60.0", "1e2", "2592000", "2592000.0"]))
async def test_a_timeout_may_be_absent_or_whole_seconds(seconds: str, service: Service) -> None:
    async with unharmed(service) as wire:
        accepted(await wire.ask(post(with_timeout(seconds))))
        assert await wire.texts("bob") == ["hi"]


TIMEOUTS: Final = {
    **{name: name for name in ("0", "-0", "-0.0", "-1", "0.5", "1.5", "1e-400")},
    **{name: name for name in ('"60"', '""', "[]", "{}", "true", "false")},
    "30 days and a second": "2592001",
    "2 to the 31st": str(2**31),
    "2 to the 53rd": str(2**53),
    "2 to the 63rd": str(2**63),
    "2 to the 64th": str(2**64),
    "below every 64-bit integer": str(-(2**63) - 1),
    "1e18": "1e18",
    "1e308": "1e308",
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "above the largest float": "1e400",
}


@each_case(TIMEOUTS)
async def test_a_timeout_out_of_bounds_is_refused(seconds: str, service: Service) -> None:
    async with unharmed(service) as wire:
        answer = await wire.ask(post(with_timeout(seconds)))
        assert_problem(answer, 400, "invalid-request", {"timeout"})
        assert await wire.texts("bob") == []


NO_NUMBERS: Final = ("NaN", "Infinity", "-Infinity", "060", "+60", "0x3c", "60.", ".5", "6e", "1_0")


@each_case(by_text(NO_NUMBERS))
async def test_a_number_that_json_does_not_have_is_refused(seconds: str, service: Service) -> None:
    async with unharmed(service) as wire:
        assert_problem(await wire.ask(post(with_timeout(seconds))), 400, "invalid-json")
        assert await wire.texts("bob") == []
