"""Tokens of an OpenID Connect provider that others made: programs, people, and new keys."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.httpclient import HTTPResponse

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.issuer import KEYS
from tests.support.provider import Provider, Tokens, install
from tests.support.waiting import eventually

AUDIENCE = "https://chat.example"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the provider is installed."""
    return install(tmp_path_factory.mktemp("oidc"))


@pytest.fixture
def provider(installed: Path) -> Iterator[Provider]:
    """The provider, not started."""
    with Provider(installed, AUDIENCE) as made:
        yield made


def bearer(tokens: Tokens, kind: str = "access_token") -> str:
    """Return the value of `Authorization` with a token."""
    return f"Bearer {tokens[kind]}"


async def post(chat: ChatClient, name: str, tokens: Tokens) -> int:
    """Post to a name with an access token. Return the status."""
    body = json.dumps({"text": "hello", "username": name}).encode()
    return (await chat.request("POST", "/chat", body, Authorization=bearer(tokens))).code


async def read(chat: ChatClient, name: str, tokens: Tokens) -> HTTPResponse:
    """Read a name with an access token."""
    return await chat.request("GET", f"/chat/{name}", Authorization=bearer(tokens))


async def start(start_service: StartService, provider: Provider) -> Service:
    """Start a service that finds the keys through the provider's own document."""
    return await start_service(
        access="jwt", jwt_issuer=provider.issuer, jwt_audience=AUDIENCE, jwt_keys=""
    )


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_program_uses_its_access_token(
    start_service: StartService, connect: Connect, provider: Provider, algorithm: str
) -> None:
    provider.start(algorithm)
    chat = connect(await start(start_service, provider))
    tokens = await provider.tokens_of_worker()
    assert await post(chat, "jobs-7", tokens) == 201
    assert (await read(chat, "jobs-7", tokens)).code == 200
    assert (await read(chat, "worker", tokens)).code == 403
    assert (await chat.request("GET", "/chat/jobs-7")).code == 401


async def test_a_person_reads_only_their_own_inbox(
    start_service: StartService, connect: Connect, provider: Provider
) -> None:
    provider.start("ES256")
    chat = connect(await start(start_service, provider))
    tokens = await provider.tokens_of("bob")
    assert await post(chat, "alice", tokens) == 201
    assert await post(chat, "bob", tokens) == 201
    answer = await read(chat, "bob", tokens)
    assert [each["text"] for each in json.loads(answer.body)] == ["hello"]
    assert (await read(chat, "alice", tokens)).code == 403
    again = await provider.refreshed(tokens)
    assert again["access_token"] != tokens["access_token"]
    assert (await read(chat, "bob", again)).code == 200
    # It says who bob is to the page, and is not for this service.
    answer = await chat.request("GET", "/chat/bob", Authorization=bearer(tokens, "id_token"))
    assert answer.code == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


async def test_the_providers_keys_rotate_without_a_refusal(
    start_service: StartService,
    connect: Connect,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The provider's keys may be fetched at any time, and are fetched again soon.
    monkeypatch.setattr("chat_service.access.jwks._Url.apart_s", 0.0)
    monkeypatch.setattr("chat_service.access.jwks._Url.every_s", 0.1)
    provider.start("RS256")
    chat = connect(await start(start_service, provider))
    old = await provider.tokens_of_worker()
    assert await post(chat, "bob", old) == 201
    provider.start("EdDSA", "RS256")
    new = await provider.tokens_of_worker()
    assert await post(chat, "bob", new) == 201
    assert await post(chat, "bob", old) == 201
    provider.stop()
    assert await post(chat, "bob", new) == 201
    provider.start("EdDSA")

    async def is_old_key_gone() -> bool:
        return await post(chat, "bob", old) == 401

    await eventually(is_old_key_gone)
    assert await post(chat, "bob", new) == 201
