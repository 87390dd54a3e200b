"""Posts to an inbox: the body is the text, byte for byte, unless its type is JSON's."""

import asyncio
import json
from datetime import datetime, timedelta
from typing import Final

import pytest
from pymongo import MongoClient

from chat_service.service import Service
from tests.http.test_request_policy import BROWSER
from tests.support.access import ask, bearer
from tests.support.cases import by_text, each_case
from tests.support.client import ChatClient
from tests.support.raw import accepted, assert_problem, chunked, get, request, unharmed

JSON: Final = b"Content-Type: application/json"
PLAIN: Final = b"Content-Type: text/plain"


def plain(body: bytes, *headers: bytes, query: bytes = b"", to: bytes = b"bob") -> bytes:
    """Return a post to an inbox."""
    return request(b"POST", b"/chat/" + to + query, *headers, body=body)


#: Types that are not JSON's, as clients send them.
TYPES: Final = {
    "none": [],
    "empty": [b"Content-Type:"],
    "plain text": [PLAIN],
    "curl -d": [b"Content-Type: application/x-www-form-urlencoded"],
    "bytes": [b"Content-Type: application/octet-stream"],
    "HTML": [b"Content-Type: text/html"],
    "JSON in lines": [b"Content-Type: application/x-ndjson"],
    "almost JSON": [b"Content-Type: application/jsonx"],
    "JSON in a parameter": [b"Content-Type: text/plain; was=application/json"],
    "a charset": [b"Content-Type: text/plain; charset=utf-8"],
    "a charset in quotes": [b'Content-Type: text/plain;Charset="UTF-8"; format=flowed'],
    "a part of UTF-8": [b"Content-Type: text/plain; charset=US-ASCII"],
    "no type at all": [b"Content-Type: ;;;"],
}


@each_case(TYPES)
async def test_the_body_is_the_text_whatever_its_type(
    headers: list[bytes], service: Service
) -> None:
    async with unharmed(service) as wire:
        message_id = accepted(await wire.ask(plain(b"Backup ok", *headers)))
        (read,) = (await wire.ask(request(b"GET", b"/chat/bob"))).document
        assert read == {"text": "Backup ok", "id": message_id}


TEXTS: Final = {
    "nothing": "",
    "a form": "a=1&b=%20+c",
    "a message in JSON": '{"text": "hi", "username": "eve"}',
    "a batch": '[{"text": "hi", "username": "eve"}]',
    "lines of Windows": "a\r\nb\r\n",
    "spaces around": "  a \n\n",
    "a byte order mark": "\ufeffa",
    "a NUL": "a\0b",
    "every control character": "".join(map(chr, range(32))) + "\x7f\x85\x9b",
    "an emoji": "\U0001f469\u200d\U0001f467",
    "half a request": "GET /chat/eve HTTP/1.1\r\n\r\n",
    "the longest text": "x" * 65536,
    "the longest text in letters of two bytes": "\u00e9" * 32768,
}


@each_case(TEXTS)
async def test_a_text_comes_back_byte_for_byte(text: str, service: Service) -> None:
    body = text.encode()
    async with unharmed(service) as wire:
        accepted(await wire.ask(plain(body)))
        in_chunks = request(b"POST", b"/chat/bob", PLAIN, b"Transfer-Encoding: chunked")
        pieces = chunked(*[each for each in (body[:3], body[3:]) if each])
        accepted(await wire.ask(in_chunks + pieces))
        assert await wire.texts("bob") == [text, text]


@each_case({"Latin-1": b"caf\xe9", "half a letter": b"\xc3", "a surrogate": b"\xed\xa0\x80"})
async def test_a_text_that_is_not_utf_8_is_refused(body: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        assert_problem(await wire.ask(plain(body)), 400, "invalid-request", {"text"})
        assert await wire.texts("bob") == []


REFUSED_TYPES: Final = (
    b"text/plain; charset=iso-8859-1",
    b'text/plain; charset="UTF-16"',
    b"text/plain; charset=",
    b"text/plain; charset=utf-8; charset=latin1",
    b"application/json; charset=utf-16",
)


@each_case(by_text(REFUSED_TYPES))
async def test_another_charset_is_refused(content_type: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        answer = await wire.ask(plain(b'{"text":"x"}', b"Content-Type: " + content_type))
        assert_problem(answer, 400, "invalid-request", {"Content-Type"})
        assert await wire.texts("bob") == []


async def test_a_form_with_a_file_is_told_how_to_send_it(service: Service) -> None:
    async with unharmed(service) as wire:
        form = b"Content-Type: Multipart/Form-Data; boundary=x"
        answer = await wire.ask(plain(b"--x--\r\n", form))
        assert_problem(answer, 400, "invalid-request", {"Content-Type"})
        assert "--data-binary @" in answer.document["detail"]
        assert await wire.texts("bob") == []


# JSON.

JSON_TYPES: Final = (
    b"application/json",
    b"Application/JSON ; charset=utf-8",
    b"application/vnd.chat+json",
    b"text/json",
)


@each_case(by_text(JSON_TYPES))
async def test_a_json_body_is_an_object_with_a_text(content_type: bytes, service: Service) -> None:
    header = b"Content-Type: " + content_type
    async with unharmed(service) as wire:
        for body in (b'{"text":"hi"}', b'\xef\xbb\xbf{"text":"hi","username":"b/b","x":1}'):
            accepted(await wire.ask(plain(body, header, to=b"b%2Fb")))
        for body in (b'"hi"', b"hi", b"", b"[]"):
            answer = await wire.ask(plain(body, header, to=b"b%2Fb"))
            assert_problem(answer, 400, "invalid-json")
        assert await wire.texts("b/b") == ["hi", "hi"]


FIELDS: Final = {
    "no text": (b"{}", {"text"}),
    "another name": (b'{"text":"hi","username":"eve"}', {"username"}),
    "the name in escapes": (b'{"text":"hi","username":"%62ob"}', {"username"}),
    "a number as the name": (b'{"text":"hi","username":1}', {"username"}),
    "a bad timeout": (b'{"text":"hi","timeout":0}', {"timeout"}),
    "a bool that equals the query": (b'{"text":"hi","timeout":true}', {"timeout"}),
    "another timeout than the query's": (b'{"text":"hi","timeout":2}', {"timeout"}),
}


@each_case(FIELDS)
async def test_a_wrong_field_of_a_json_body_is_named(
    case: tuple[bytes, set[str]], service: Service
) -> None:
    body, fields = case
    async with unharmed(service) as wire:
        answer = await wire.ask(plain(body, JSON, query=b"?timeout=1"))
        assert_problem(answer, 400, "invalid-request", fields)
        for name in ("bob", "eve"):
            assert await wire.texts(name) == []


# The lifetime.

LIFETIMES: Final = {
    "the default": (60, plain(b"x")),
    "a query": (77, plain(b"x", query=b"?timeout=77")),
    "an escaped query": (77, plain(b"x", query=b"?t%69meout=%377")),
    "a header": (77, plain(b"x", b"x-timeout: 77")),
    "both": (77, plain(b"x", b"X-Timeout: 77.0", query=b"?timeout=077")),
    "JSON": (77, plain(b'{"text":"x","timeout":77}', JSON)),
    "JSON and a query": (77, plain(b'{"text":"x"}', JSON, query=b"?timeout=77")),
    "null and a header": (77, plain(b'{"text":"x","timeout":null}', JSON, b"X-Timeout: 77")),
    "all three": (77, plain(b'{"text":"x","timeout":77}', JSON, b"X-Timeout: 77")),
}


@each_case(LIFETIMES)
async def test_a_lifetime_may_be_in_the_query_or_a_header(
    case: tuple[int, bytes], service: Service, mongo_uri: str, database: str
) -> None:
    timeout_s, sent = case
    async with unharmed(service) as wire:
        message_id = accepted(await wire.ask(sent))
        with MongoClient[dict[str, datetime]](mongo_uri) as client:
            (stored,) = client[database].messages.find({"_id": message_id})
        assert stored["expires_at"] - stored["created_at"] == timedelta(seconds=timeout_s)
        assert await wire.texts("bob") == ["x"]


BAD_NUMBERS: Final = {
    "nothing": b"",
    "zero": b"0",
    "a word": b"never",
    "a unit": b"60s",
    "a sign": b"-1",
    "a fraction": b"1.5",
    "an exponent": b"1e3",
    "NaN": b"NaN",
    "more than 30 days": b"2592001",
    "a thousand digits": b"1" * 1000,
}


#: Those that are no delay either.
BAD_DELAYS: Final = ("nothing", "a word", "a unit", "a sign", "an exponent", "NaN")


@each_case(BAD_NUMBERS)
async def test_a_bad_lifetime_is_refused(value: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        for sent in (
            plain(b"x", query=b"?timeout=" + value),
            plain(b"x", b"X-Timeout: " + value),
            plain(b'{"text":"x"}', JSON, query=b"?timeout=" + value),
        ):
            assert_problem(await wire.ask(sent), 400, "invalid-request", {"timeout"})
        assert await wire.texts("bob") == []


# The delay.

DELAYS: Final = {
    "a query": plain(b"x", b"Prefer: receipt", query=b"?delay=600.5&timeout=77"),
    "a header": plain(b"x", b"Prefer: receipt", b"X-Delay: 600.5", b"X-Timeout: 77"),
    "both": plain(b"x", b"Prefer: receipt", b"X-Delay: 600.50", query=b"?delay=600.5&timeout=77"),
    "JSON": plain(b'{"text":"x","timeout":77,"delay":600.5}', JSON, b"Prefer: receipt"),
    "JSON and a query": plain(
        b'{"text":"x","timeout":77}', JSON, b"Prefer: receipt", query=b"?delay=600.5"
    ),
}


@each_case(DELAYS)
async def test_a_text_can_be_scheduled(
    sent: bytes, service: Service, mongo_uri: str, database: str
) -> None:
    async with unharmed(service) as wire:
        answer = await wire.ask(sent)
        message_id, receipt = accepted(answer), answer.headers["x-receipt"].encode()
        path = b"/messages/" + message_id.encode()
        status = await wire.ask(get(path + b"/status", b"X-Receipt: " + receipt))
        assert status.document["status"] == "scheduled"
        with MongoClient[dict[str, datetime]](mongo_uri) as client:
            (stored,) = client[database].messages.find({"_id": message_id})
        assert stored["due_at"] - stored["created_at"] == timedelta(seconds=600.5)
        assert stored["expires_at"] - stored["due_at"] == timedelta(seconds=77)
        assert await wire.texts("bob") == []
        revoked = await wire.ask(request(b"DELETE", path, b"X-Receipt: " + receipt))
        assert revoked.status == 204


async def test_a_scheduled_text_arrives(service: Service) -> None:
    async with unharmed(service) as wire:
        waiting = asyncio.create_task(wire.ask(get(b"/chat/bob?wait=20")))
        message_id = accepted(await wire.ask(plain(b"later", b"X-Delay: 0.2")))
        assert (await waiting).document == [{"text": "later", "id": message_id}]
        accepted(await wire.ask(plain(b"now", query=b"?delay=0")))
        assert await wire.texts("bob") == ["now"]


@each_case({**{name: BAD_NUMBERS[name] for name in BAD_DELAYS}, "31 days": b"2678400"})
async def test_a_bad_delay_is_refused(value: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        for sent in (
            plain(b"x", query=b"?delay=" + value),
            plain(b"x", b"X-Delay: " + value),
            plain(b'{"text":"x","delay":"%b"}' % value, JSON),
        ):
            assert_problem(await wire.ask(sent), 400, "invalid-request", {"delay"})
        assert await wire.texts("bob") == []


#: Queries and headers, and the field that the answer names.
UNCLEAR: Final = {
    "a misspelled parameter": (b"?timout=5", b"X: y", "timout"),
    "a parameter of reads": (b"?limit=5", b"X: y", "limit"),
    "a parameter that comes again": (b"?timeout=5&timeout=5", b"X: y", "timeout"),
    "a header that comes again": (b"", b"X-Timeout: 5\r\nX-Timeout: 5", "timeout"),
    "two that differ": (b"?timeout=5", b"X-Timeout: 6", "timeout"),
    "two delays that differ": (b"?delay=5", b"X-Delay: 6", "delay"),
    "a delay that comes again": (b"?delay=5&delay=5", b"X: y", "delay"),
}


@each_case(UNCLEAR)
async def test_an_unclear_option_stores_nothing(
    case: tuple[bytes, bytes, str], service: Service
) -> None:
    query, header, field = case
    async with unharmed(service) as wire:
        answer = await wire.ask(plain(b"x", header, query=query))
        assert_problem(answer, 400, "invalid-request", {field})
        assert await wire.texts("bob") == []


# Names.


async def test_every_name_can_be_in_the_path(service: Service) -> None:
    async with unharmed(service) as wire:
        for segment, name in ((b"a%2Fb", "a/b"), (b"%C3%A9", "\u00e9"), (b"%62atch", "batch")):
            accepted(await wire.ask(plain(b"hi", to=segment)))
            assert await wire.texts(name) == ["hi"]


# What holds for POST /chat.


async def test_a_repeat_with_its_key_is_one_message(chat: ChatClient) -> None:
    answers = [
        await chat.request("POST", "/chat/bob", b"pay 10", Idempotency_Key="k") for _ in range(2)
    ]
    body = b'{"text": "pay 10", "username": "bob"}'
    answers.append(await chat.request("POST", "/chat", body, Idempotency_Key="k"))
    assert {(answer.code, answer.body) for answer in answers} == {(201, answers[0].body)}
    replayed = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert replayed == [None, "true", "true"]
    other = await chat.request("POST", "/chat/bob?timeout=5", b"pay 10", Idempotency_Key="k")
    assert other.code == 422
    assert await chat.texts("bob") == ["pay 10"]


async def test_a_sender_who_prefers_it_gets_a_receipt(chat: ChatClient) -> None:
    answer = await chat.request("POST", "/chat/bob", b"hi", Prefer="receipt")
    assert (answer.code, answer.headers["Preference-Applied"]) == (201, "receipt")
    path = f"/messages/{json.loads(answer.body)['id']}"
    receipt = answer.headers["X-Receipt"]
    assert (await chat.request("DELETE", path, X_Receipt=receipt)).code == 204
    assert await chat.texts("bob") == []


#: Headers of browsers, which send the types of forms without asking the service first.
PAGES: Final = {
    "a page of another site": {"Sec-Fetch-Site": "cross-site"},
    "another origin": {"Origin": "http://evil.test"},
    "an opaque origin": {"Origin": "null"},
    "a browser that hides its page": BROWSER,
}


@each_case(PAGES)
async def test_a_foreign_page_cannot_post_a_text(headers: dict[str, str], chat: ChatClient) -> None:
    given = {name.replace("-", "_"): value for name, value in headers.items()}
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        answer = await chat.request(
            "POST", "/chat/bob", b'{"text":"hi"}', Content_Type=content_type, **given
        )
        assert answer.code == 403
        assert json.loads(answer.body)["type"].endswith("cross-origin")
    assert await chat.texts("bob") == []


async def test_the_right_to_send_to_the_name_is_needed(guarded: Service) -> None:
    assert_problem(await ask(guarded, plain(b"hi")), 401, "unauthorized")
    for holder, status in (("eve", 403), ("idle", 403), ("alice", 201)):
        answer = await ask(guarded, plain(b"hi", bearer(holder)))
        assert answer.status == status
        # A reader of the inbox may not post to it.
        if status == 403:
            assert_problem(answer, 403, "forbidden")
    # Who may not post learns nothing about the request.
    bad = plain(b"\xff", bearer("eve"), b"X-Timeout: never", query=b"?x=y")
    assert_problem(await ask(guarded, bad), 403, "forbidden")
    assert_problem(
        await ask(guarded, plain(b"hi", bearer("bob"), to=b"%zz")),
        400,
        "invalid-request",
        {"username"},
    )
    read = await ask(guarded, request(b"GET", b"/chat/bob", bearer("bob")))
    assert [each["text"] for each in read.document] == ["hi"]


async def test_a_long_text_or_body_is_refused(service: Service) -> None:
    async with unharmed(service) as wire:
        for body in (b"x" * 65537, "\u00e9".encode() * 32769, b"x" * (512 << 10)):
            answer = await wire.ask(plain(body))
            assert_problem(answer, 413, "too-large")
            assert answer.document["detail"].startswith("text ")
        answer = await wire.ask(plain(b"x" * ((512 << 10) + 1)))
        assert answer.document["detail"].startswith("the body ")
        encoded = await wire.ask(plain(b"x", b"Content-Encoding: gzip"))
        assert_problem(encoded, 415, "content-encoding")
        assert await wire.texts("bob") == []


@pytest.mark.settings(inbox_messages_max=8)
async def test_a_full_inbox_refuses_a_text(service: Service) -> None:
    answers = [await ask(service, plain(b"hi")) for _ in range(10)]
    assert [answer.status for answer in answers] == [201] * 8 + [429] * 2
    assert answers[-1].document["stored"] is False


@pytest.mark.settings(client_requests_per_s=0.001, client_burst=5)
async def test_a_text_costs_its_client_one_request(service: Service) -> None:
    answers = [await ask(service, plain(b"hi")) for _ in range(6)]
    assert [answer.status for answer in answers] == [201] * 5 + [429]
    assert answers[-1].document["stored"] is False


async def test_the_inbox_allows_posts_and_names_them(service: Service) -> None:
    async with unharmed(service) as wire:
        for method, status in ((b"OPTIONS", 204), (b"PUT", 405)):
            answer = await wire.ask(request(method, b"/chat/bob", body=b"hi"))
            assert answer.status == status
            assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
        assert "POST" in answer.document["detail"]
        assert (await wire.ask(request(b"HEAD", b"/chat/bob"))).headers["x-unread-count"] == "0"


async def test_a_post_is_counted_under_its_route(chat: ChatClient) -> None:
    await chat.request("POST", "/chat/bob", b"hi")
    text = (await chat.request("GET", "/metrics")).body.decode()
    assert 'chat_http_requests_total{code="201",method="POST",route="/chat/:username"} 1.0' in text
