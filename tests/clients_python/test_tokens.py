"""The client's token: sent with every request, renewed once, and shown nowhere."""

import asyncio
import base64
import logging
import traceback
from collections.abc import Callable
from typing import TypeAlias

import pytest

from chat_inbox import (
    ChatClient,
    ChatError,
    Forbidden,
    InboxFull,
    OutcomeUnknown,
    Posted,
    ProblemError,
    RateLimited,
    SyncChatClient,
    TokenUnavailable,
    Unauthorized,
)
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.support.middleman import Middleman, answer

SECRET = "cht_A-secret.that~must+never/appear=="
BEARER = b'WWW-Authenticate: Bearer error="invalid_token"'
Kind: TypeAlias = type[ChatClient] | type[SyncChatClient]
each_kind = pytest.mark.parametrize("kind", [ChatClient, SyncChatClient])
REFUSED = answer(401, b'{"type": "urn:chat:problem:unauthorized", "status": 401}', BEARER)


def tokens_of(heads: list[str]) -> list[str]:
    """Return the token of each request, or an empty string."""
    found = []
    for head in heads:
        lines = [line for line in head.split("\r\n") if line.startswith("Authorization: ")]
        assert len(lines) < 2
        found.append(lines[0].removeprefix("Authorization: Bearer ") if lines else "")
    return found


def counting(*tokens: str) -> tuple[Callable[[], str], list[str]]:
    """Return a function that returns these tokens in turn, and those that it has returned."""
    given: list[str] = []

    def token() -> str:
        given.append(tokens[min(len(given), len(tokens) - 1)])
        return given[-1]

    return token, given


async def test_every_kind_of_request_carries_the_token(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        async with new_client(between.base, token=SECRET) as client:
            posted = await client.post("bob", "x", receipt=True)
            assert posted.receipt is not None
            await client.post_batch([("bob", "y")])
            await client.count("bob")
            await client.status(posted.id, posted.receipt)
            await client.revoke(posted.id, posted.receipt)
            async with client.lease("bob") as lease:
                assert len(lease.messages) == 1
                await lease.extend(5)
            await client.post("bob", "z")
            async with client.stream("bob") as messages:
                assert (await anext(messages)).text == "z"
                await messages.acknowledge()
            await client.read("bob")
        assert tokens_of(between.heads) == [SECRET] * len(between.heads)
        paths = {head.split("\r\n")[0] for head in between.heads}
        assert any("/stream" in path for path in paths)
        assert sum("/ack" in path for path in paths) == 1


async def test_without_a_token_no_header_is_sent(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between, new_client(between.base) as client:
        await client.count("bob")
        assert tokens_of(between.heads) == [""]


async def test_a_refused_token_is_asked_for_again_once(
    service: Service, new_client: NewClient
) -> None:
    token, given = counting("first", "second", "third")
    async with Middleman(service.port) as between, new_client(between.base, token=token) as client:
        await client.count("bob")
        await client.count("bob")
        assert given == ["first"]
        between.answers = [REFUSED]
        await client.count("bob")
        assert tokens_of(between.heads) == ["first", "first", "first", "second"]
        between.answers = [REFUSED, REFUSED]
        with pytest.raises(Unauthorized):
            await client.post("bob", "x")
        assert given == ["first", "second", "third"]
        assert await client.count("bob") == 0


async def test_a_fixed_token_that_is_refused_is_not_repeated(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        async with new_client(between.base, token=SECRET) as client:
            between.answers = [REFUSED]
            with pytest.raises(Unauthorized):
                await client.post("bob", "x")
            # The answer to HEAD has no document.
            between.answers = [answer(401, b"", BEARER)]
            with pytest.raises(Unauthorized):
                await client.count("bob")
            # This is from a proxy with a login of its own.
            between.answers = [answer(401, b"", b"WWW-Authenticate: Basic")]
            with pytest.raises(ProblemError) as raised:
                await client.count("bob")
            assert type(raised.value) is ProblemError
        assert len(between.heads) == 3


async def test_a_stream_goes_on_with_a_renewed_token(
    service: Service, new_client: NewClient
) -> None:
    token, given = counting("first", "second", "third", "fourth")
    async with Middleman(service.port) as between, new_client(between.base, token=token) as client:
        await client.post("bob", "x")
        between.answers = [REFUSED]
        async with client.stream("bob") as messages:
            assert (await anext(messages)).text == "x"
            assert given == ["first", "second"]
            await messages.acknowledge()
        between.answers = [REFUSED, REFUSED]
        async with client.stream("bob") as messages:
            with pytest.raises(Unauthorized):
                await anext(messages)
        assert given == ["first", "second", "third"]


async def test_a_function_that_fails_is_a_typed_error(
    service: Service, new_client: NewClient
) -> None:
    def fail() -> str:
        raise OSError("the issuer is away")

    def return_nonsense() -> str:
        return f"{SECRET}\r\nX-Injected: yes"

    async with Middleman(service.port) as between:
        for token in (fail, return_nonsense):
            async with new_client(between.base, token=token) as client:
                with pytest.raises(TokenUnavailable) as raised:
                    await client.post("bob", "x")
                assert SECRET not in "".join(traceback.format_exception(raised.value))
                (result,) = await client.post_batch([("bob", "x")])
                assert isinstance(result, TokenUnavailable)
                async with client.stream("bob") as messages:
                    with pytest.raises(TokenUnavailable):
                        await anext(messages)
        assert not between.heads


async def test_the_function_may_be_asynchronous(service: Service) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return SECRET

    async with Middleman(service.port) as between, ChatClient(between.base, token=token) as client:
        await asyncio.gather(*(client.count("bob") for _ in range(5)))
        assert tokens_of(between.heads) == [SECRET] * 5


async def test_one_refusal_asks_for_one_token(service: Service, new_client: NewClient) -> None:
    token, given = counting("first", "second", "third")
    async with Middleman(service.port) as between:
        client = new_client(between.base, token=token)
        await client.count("bob")
        between.refusals = {"Bearer first": REFUSED}
        await asyncio.gather(*(client.count("bob") for _ in range(4)))
        assert given == ["first", "second"]


async def test_a_password_in_an_address_is_sent_and_hidden(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        base = between.base.replace("http://", "http://us%20er:pass%2Fword@")
        client = new_client(base)
        await client.count("bob")
        expected = base64.b64encode(b"us er:pass/word").decode()
        assert f"Authorization: Basic {expected}\r\n" in between.heads[0]
        assert "word" not in repr(client)


async def test_a_redirect_never_carries_the_token(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as elsewhere, Middleman(service.port) as between:
        for status in (301, 302, 303, 307, 308):
            target = f"Location: {elsewhere.base}/chat/bob\r\n".encode()
            redirect = b"HTTP/1.1 %d No\r\n%bContent-Length: 0\r\n\r\n" % (status, target)
            between.answers = [redirect] * 3
            async with new_client(between.base, token=SECRET) as client:
                with pytest.raises(ChatError):
                    await client.count("bob")
                with pytest.raises(ChatError):
                    await client.post("bob", "x")
                with pytest.raises(ChatError):
                    await anext(client.stream("bob"))
        assert len(between.heads) == 15
        assert not elsewhere.heads


@each_kind
@pytest.mark.parametrize(
    "base",
    [
        "http://chat.example",
        "HTTP://10.0.0.1:8080",
        "http://127.0.0.1.example",
        "http://[2001:db8::1]",
        "http://localhost.example",
        "http://user@127.0.0.1:8080",
        "https://user:password@chat.example",
    ],
)
def test_an_address_that_would_show_the_token_is_refused(base: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match="token") as raised:
        kind(base, token=SECRET)
    assert SECRET not in str(raised.value)
    kind(base)


@each_kind
def test_plain_http_can_be_allowed(kind: Kind) -> None:
    kind("http://chat.example", token=SECRET, allow_plain_http=True)
    for base in ("https://chat.example", "http://localhost:1", "http://127.1.2.3", "http://[::1]"):
        kind(base, token=SECRET)


@each_kind
@pytest.mark.parametrize("token", ["", " ", "a b", "a\r\nX: y", "a\n", "\u00e9", "a=b", "a\0"])
def test_a_token_that_could_forge_a_header_is_refused(token: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match="the token is empty or has characters") as raised:
        kind("http://127.0.0.1:1", token=token)
    assert not token.strip() or token not in str(raised.value)


async def test_the_token_is_in_no_error_and_no_log(
    service: Service, caplog: pytest.LogCaptureFixture, new_client: NewClient
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    async with Middleman(service.port) as between:
        client = new_client(between.base, tries=2, token=SECRET)
        stream = client.stream("bob")
        shown += [repr(client), repr(stream), repr(client._address), repr(vars(client))]
        shown += [repr(client._credentials)]
        between.answers = [REFUSED, answer(403), answer(500), b"HTTP/1.1 nonsense\r\n\r\n", b""]
        for _ in range(4):
            with pytest.raises(ChatError) as raised:
                await client.read("bob")
            shown += traceback.format_exception(raised.value)
        between.answers = [answer(404)]
        with pytest.raises(ChatError) as raised:
            await anext(stream)
        shown += traceback.format_exception(raised.value)
        await client.close()
    assert SECRET not in "\n".join([*shown, caplog.text])


# Refusals


async def test_refusals_have_types(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between, new_client(between.base, tries=3) as client:
        for status, kind, error in (
            (401, "unauthorized", Unauthorized),
            (403, "forbidden", Forbidden),
            (429, "inbox-full", InboxFull),
        ):
            between.answers = [answer(status, b'{"type": "urn:chat:problem:%b"}' % kind.encode())]
            with pytest.raises(error) as raised:
                await client.post("bob", "x")
            assert (raised.value.status, raised.value.kind) == (status, kind)
        assert len(between.heads) == 3


def limited(retry_after_s: int) -> bytes:
    """Return an answer of a service whose client exceeds its rate."""
    body = b'{"type": "urn:chat:problem:rate-limited", "status": 429}'
    # The middleman closes the connection. A client that did not know would use it again.
    head = b"HTTP/1.1 429 No\r\nRetry-After: %d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % (retry_after_s, len(body)) + body


async def test_a_limited_client_waits_and_tries_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, new_client: NewClient
) -> None:
    waited: list[float] = []

    def no_pause(number: int, retry_after_s: float = 0.0) -> float:
        waited.append(retry_after_s)
        return 0.0

    monkeypatch.setattr("chat_inbox.sending.pause_s", no_pause)
    async with Middleman(service.port) as between, new_client(between.base, tries=3) as client:
        between.answers = [limited(7), limited(30)]
        assert isinstance(await client.post("bob", "x"), Posted)
        assert waited == [7.0, 30.0]
        between.answers = [limited(2)] * 3
        with pytest.raises(RateLimited) as raised:
            await client.post("bob", "x")
        assert raised.value.retry_after_s == 2


async def test_a_long_limit_is_reported_at_once(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between, new_client(between.base) as client:
        between.answers = [limited(3600)]
        with pytest.raises(RateLimited) as raised:
            await client.post("bob", "x")
        assert raised.value.retry_after_s == 3600
        assert len(between.heads) == 1


@pytest.mark.parametrize("refusal", [REFUSED, answer(403), limited(3600)])
async def test_a_refused_retry_does_not_settle_the_outcome(
    service: Service, refusal: bytes, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between, new_client(between.base, tries=3) as client:
        # The first try is sent, and its connection ends without an answer.
        between.answers = [b"", refusal]
        with pytest.raises(OutcomeUnknown) as raised:
            await client.post("bob", "x", key="order 66")
        assert raised.value.key == "order 66"


async def test_a_lease_is_settled_with_the_token(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between:
        async with new_client(between.base, token=SECRET) as client:
            await client.post("bob", "x")
            lease = await client.lease("bob")
            assert len(lease.messages) == 1
            assert lease.name is not None
            assert await client.acknowledge("bob", lease.name) == 1
        assert set(tokens_of(between.heads)) == {SECRET}
