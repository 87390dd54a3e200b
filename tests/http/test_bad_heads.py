"""Headers: some are refused, the rest change nothing, and none makes a message disappear."""

from typing import Final

import pytest

from chat_service.service import Service
from tests.support.cases import by_text, each_case
from tests.support.raw import (
    assert_problem,
    get,
    message,
    post,
    request,
    texts_of,
    unharmed,
)

EVERY_ACCESS: Final = {
    "GET": get(b"/chat/bob", b"%b"),
    "HEAD": request(b"HEAD", b"/chat/bob", b"%b"),
    "a read by POST": request(b"POST", b"/chat/bob/read", b"%b"),
    "a post": post(message("bob", "another"), b"%b"),
}

# Headers that change the answer of many other servers.

CHANGES_NOTHING: Final = {
    "If-None-Match with any ETag": b"If-None-Match: *",
    "If-None-Match with ETags": b'If-None-Match: W/"x", "y"',
    "If-Match": b'If-Match: "x"',
    "If-Modified-Since": b"If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT",
    "If-Unmodified-Since": b"If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
    "a range: the first byte": b"Range: bytes=0-0",
    "a conditional range": b'Range: bytes=5-\r\nIf-Range: "x"',
    "another media type": b"Accept: text/html, image/*",
    "no acceptable media type": b"Accept: */*;q=0",
    "a content coding": b"Accept-Encoding: gzip, br",
    "a method override": b"X-HTTP-Method-Override: DELETE",
    "a path override": b"X-Original-URL: /chat/alice",
    "a host override": b"X-Forwarded-Host: evil.test",
    "an upgrade to HTTP/2": (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"
    ),
    "an unknown expectation": b"Expect: foo",
    "a Last-Event-ID": b"Last-Event-ID: \xff junk",
    "cookies": b"Cookie: a=b; c; =; \xff",
    # With the `Host`, these are as many as a request may have.
    "one header 99 times": b"\r\n".join([b"A: 1"] * 99),
    "100 headers": b"\r\n".join(b"A%d: 1" % number for number in range(99)),
    "an empty header": b"A:",
    "tabs around a value": b"A:\t1\t",
    "a request from the same site": b"Sec-Fetch-Site: same-origin",
    "a request from the address bar": b"Sec-Fetch-Site: none",
    "the identity encoding": b"Content-Encoding: identity",
}


@each_case(CHANGES_NOTHING)
async def test_a_read_is_whole_whatever_its_head_wishes(header: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        message_id = await wire.post("bob", "hi")
        answer = await wire.ask(get(b"/chat/bob", header))
        assert answer.status == 200
        assert answer.document == [{"text": "hi", "id": message_id}]
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        validators = {"etag", "last-modified", "content-encoding", "content-range", "vary"}
        assert not validators & set(answer.headers)


@each_case(
    {
        "junk": b"\xff\0{",
        "a message": message("alice", "no"),
        "a request": get(b"/chat/alice"),
    }
)
async def test_the_body_of_a_get_is_ignored(body: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("alice", "still here")
        await wire.post("bob", "hi")
        answer = await wire.ask(request(b"POST", b"/chat/bob/read", body=body))
        assert_problem(answer, 400, "invalid-request", {"body"})
        assert texts_of(await wire.ask(request(b"GET", b"/chat/bob", body=body))) == ["hi"]
        assert await wire.texts("alice") == ["still here"]


# Requests that no user intended.

UNASKED: Final = {
    "a prefetch": b"Sec-Purpose: prefetch",
    "a prerender": b"Sec-Purpose: prefetch;prerender",
    "a prefetch, older header": b"Purpose: prefetch",
    "a prefetch in capitals": b"purpose: Prefetch",
    "Firefox's prefetch": b"X-Moz: prefetch",
    "a preview": b"X-Purpose: preview",
}
OF_OTHER_PAGES: Final = {
    "a page of another site": b"Sec-Fetch-Site: cross-site",
    "an image on another site": b"sec-fetch-site:  Cross-Site \r\nSec-Fetch-Dest: image",
    "a page on another port": b"Sec-Fetch-Site: same-site",
    "a page with an origin": b"origin:  http://evil.test ",
    "two origins": b"Origin: http://good.test\r\nOrigin: http://evil.test",
    "a referrer": b"referer: http://evil.test/good.test",
}


async def assert_forbidden(service: Service, header: bytes, kind: str) -> None:
    """Assert that every request with this header gets 403, and reads and writes nothing."""
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for access, sent in EVERY_ACCESS.items():
            answer = await wire.ask(sent.replace(b"%b", header))
            if access != "HEAD":
                assert_problem(answer, 403, kind)
            assert answer.status == 403, access
        assert await wire.texts("bob") == ["hi"]


@each_case(UNASKED)
async def test_a_speculative_request_reads_and_writes_nothing(
    header: bytes, service: Service
) -> None:
    await assert_forbidden(service, header, "speculative")


@each_case(OF_OTHER_PAGES)
async def test_a_page_of_another_origin_reads_and_writes_nothing(
    header: bytes, service: Service
) -> None:
    await assert_forbidden(service, header, "cross-origin")


# Host.

BAD_HOSTS: Final = {
    "none": b"",
    "two": b"Host: good.test\r\nHost: evil.test",
    "the same twice": b"Host: good.test\r\nHost: good.test",
    "a list": b"Host: good.test, evil.test",
    "two words": b"Host: good test",
    "a path": b"Host: good.test/chat",
    "a user": b"Host: bob@good.test",
    "a non-ASCII letter": b"Host: g\xf6\xf6d.test",
    "markup": b"Host: <good.test>",
}


@each_case(BAD_HOSTS)
async def test_there_must_be_one_host(host: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        assert_problem(await wire.ask(get(b"/chat/bob", host=host)), 400, "bad-request")
        answer = await wire.ask(post(message("bob", "another"), host=host))
        assert_problem(answer, 400, "bad-request")
        assert await wire.texts("bob") == ["hi"]


ANY_HOST: Final = (b"127.0.0.1:8080", b"[::1]:8080", b"EVIL.test", b"x_y.internal", b"")


@pytest.mark.settings(host="0.0.0.0", ops="on", allowed_hosts=())
@each_case(by_text(ANY_HOST))
async def test_any_host_is_served_if_none_is_configured(host: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        answer = await wire.ask(get(b"/chat/bob", host=b"Host: " + host))
        assert texts_of(answer) == ["hi"]


OURS: Final = {
    "the name": get(b"/chat/bob", host=b"Host: good.test"),
    "with a port": get(b"/chat/bob", host=b"Host: good.test:8080"),
    "with an empty port": get(b"/chat/bob", host=b"Host: good.test:"),
    "in capitals": get(b"/chat/bob", host=b"host: Good.TEST"),
    "an absolute URL": get(b"http://good.test/chat/bob"),
    "an absolute URL overrides the Host": get(
        b"http://good.test:80/chat/bob", host=b"Host: evil.test"
    ),
}
NOT_OURS: Final = {
    "another name": get(b"/chat/bob", host=b"Host: evil.test"),
    "another name with the right port": get(b"/chat/bob", host=b"Host: evil.test:8080"),
    "a name that begins with the host": get(b"/chat/bob", host=b"Host: good.test.evil.test"),
    "a name that ends with the host": get(b"/chat/bob", host=b"Host: evil-good.test"),
    "two ports": get(b"/chat/bob", host=b"Host: good.test:80:80"),
    "a number": get(b"/chat/bob", host=b"Host: 127.0.0.1"),
    "an empty name": get(b"/chat/bob", host=b"Host:"),
    "no name": b"GET /chat/bob HTTP/1.0\r\n\r\n",
    "another name in an absolute URL": get(b"http://evil.test/chat/bob"),
    "a read by POST": request(b"POST", b"/chat/bob/read", host=b"Host: evil.test"),
    "a post": post(message("bob", "another"), host=b"Host: evil.test"),
}


@pytest.mark.settings(host="0.0.0.0", ops="on", allowed_hosts=("good.test",))
@each_case(OURS)
async def test_a_configured_host_is_served(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        assert texts_of(await wire.ask(sent)) == ["hi"]


@pytest.mark.settings(host="0.0.0.0", ops="on", allowed_hosts=("good.test",))
@each_case(NOT_OURS)
async def test_any_other_host_is_refused(sent: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        assert_problem(await wire.ask(sent), 421, "wrong-host")
        assert await wire.texts("bob") == ["hi"]


WHOLE_ADDRESSES: Final = (
    b"http://good.test/chat/bob",
    b"http://good.test:8080/chat/bob?limit=5",
    b"https://good.test/chat/bob",
    b"HTTP://GOOD.TEST/chat/bob",
)


@each_case(by_text(WHOLE_ADDRESSES))
async def test_a_target_may_be_a_whole_address(target: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        assert texts_of(await wire.ask(get(target))) == ["hi"]


# The id of a request.

NO_IDS: Final = {
    "empty": b"",
    "two words": b"a b",
    "65 characters": b"a" * 65,
    "quotes": b'"a"',
    "markup": b"<script>",
    "non-ASCII": b"\xe9",
    "two": b"a\r\nX-Request-ID: b",
}


@each_case(NO_IDS)
async def test_an_id_that_could_do_harm_is_replaced(request_id: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        first, second = [
            await wire.ask(get(b"/chat/", b"X-Request-ID: " + request_id)) for _ in "12"
        ]
        assert_problem(first, 404, "not-found")
        assert first.headers["x-request-id"].replace("-", "").isalnum()
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
