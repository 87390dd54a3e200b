"""JSON Web Tokens over HTTP: who gets in, who does not, and what a flood of tokens costs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import connect as open_socket

from chat_service.access.control import AccessUnusable
from chat_service.access.gate import Gate
from chat_service.access.jwks import KeyRing
from chat_service.access.jwt import LEEWAY_S, JwtVerifier
from chat_service.service import Service
from tests.conftest import StartService
from tests.support.access import ask, everybody, write
from tests.support.access import bearer as opaque
from tests.support.cases import each_case
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    KEYS,
    KeyServer,
    claims,
    key_set,
    public_jwk,
    signed,
    token,
)
from tests.support.raw import (
    Wire,
    assert_problem,
    get,
    message,
    post,
    request,
    texts_of,
)
from tests.support.waiting import eventually

_HEADER: Final = {"alg": "EdDSA", "kid": "EdDSA"}


class Clock:
    """The clock by which tokens end, which a test can set forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return time.time() + self.ahead_s


@pytest.fixture
def clock_of_tokens(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the services that a test starts."""
    clock = Clock()
    for kind in (Gate, JwtVerifier):
        defaults = kind.__init__.__defaults__ or ()
        assert time.time in defaults
        changed = tuple(clock if each is time.time else each for each in defaults)
        monkeypatch.setattr(kind.__init__, "__defaults__", changed)
    return clock


@pytest.fixture
def verifiers(monkeypatch: pytest.MonkeyPatch) -> list[JwtVerifier]:
    """The verifiers of the services that a test starts."""
    made: list[JwtVerifier] = []
    make = JwtVerifier.__init__

    def remember(self: JwtVerifier, *given: Any, **more: Any) -> None:
        make(self, *given, **more)
        made.append(self)

    monkeypatch.setattr(JwtVerifier, "__init__", remember)
    return made


@asynccontextmanager
async def guarded(
    start_service: StartService, *algorithms: str, **changes: Any
) -> AsyncIterator[tuple[Service, KeyServer]]:
    """Run a service that takes JSON Web Tokens, and the server of its keys."""
    async with KeyServer() as keys:
        keys.documents["/keys"] = key_set(*algorithms)
        usual = {
            "access": "jwt",
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
            "jwt_keys": f"{keys.base}/keys",
        }
        service = await start_service(**{**usual, **changes})
        try:
            yield service, keys
        finally:
            # The end of a service is not delayed by its keys.
            await service.stop()


def bearer(given: str) -> bytes:
    """Return the header with a token."""
    return f"Authorization: Bearer {given}".encode()


def ring_of(verifier: JwtVerifier) -> KeyRing:
    """Return the keys that a service uses."""
    return verifier._ring


async def test_users_post_to_all_and_read_their_own(
    start_service: StartService, path: bytes
) -> None:
    async with guarded(start_service) as (service, _):
        for algorithm in KEYS:
            bob = bearer(token(algorithm))
            assert (await ask(service, post(message("bob", "hi"), bob, path))).status == 201
            assert (await ask(service, post(message("ann", "hi"), bob, path))).status == 201
            assert texts_of(await ask(service, get(b"/chat/bob", bob, path))) == ["hi"]
            answer = await ask(service, get(b"/chat/ann", bob, path))
            assert_problem(answer, 403, "forbidden")


async def test_the_claim_limits_what_a_token_permits(
    start_service: StartService, path: bytes
) -> None:
    async with guarded(start_service) as (service, _):
        team = bearer(token(chat={"read": ["team-*"]}))
        assert texts_of(await ask(service, get(b"/chat/team%2Da", team, path))) == []
        assert (await ask(service, get(b"/chat/Team-a", team, path))).status == 403
        assert (await ask(service, post(message("bob", "hi"), team, path))).status == 403
        assert (await ask(service, get(b"/metrics", team))).status == 403
        operator = bearer(token(chat={"ops": True}))
        assert (await ask(service, get(b"/metrics", operator))).status == 200


def forgeries() -> dict[str, str]:
    """Return tokens that nobody may use."""
    data = token().rpartition(".")[0]
    none = signed({"alg": "none"}, claims()).rpartition(".")[0]
    return {
        "expired": token(exp=int(time.time()) - LEEWAY_S - 1),
        "not yet valid": token(nbf=int(time.time()) + 100),
        "alg none": f"{none}.",
        "alg none with a signature": signed({"alg": "none", "kid": "EdDSA"}, claims()),
        "HS256 with the public key": signed({"alg": "HS256", "kid": "RS256"}, claims()),
        "another algorithm": signed({"alg": "ES256", "kid": "EdDSA"}, claims(), KEYS["ES256"]),
        "another key": signed(_HEADER, claims(), Ed25519PrivateKey.generate()),
        "no signature": f"{data}.",
        "another audience": token(aud="other"),
        "another issuer": token(iss="https://evil.example"),
        "crit": signed({**_HEADER, "crit": ["exp"]}, claims()),
        "its own key": signed({**_HEADER, "jwk": public_jwk(KEYS["EdDSA"], "x")}, claims()),
        "another key's place": signed({**_HEADER, "jku": "https://evil.example"}, claims()),
        "an unknown key": token(kid="unknown"),
        "5 KB": token(pad="x" * 3500),
        "a malformed claim": token(chat={"read": "*"}),
        "no subject": signed(_HEADER, claims(sub=None)),
    }


async def test_a_token_that_is_not_valid_is_refused(
    start_service: StartService, path: bytes, subtests: pytest.Subtests
) -> None:
    async with guarded(start_service) as (service, _):
        for name, given in forgeries().items():
            with subtests.test(name):
                for sent in (get(b"/chat/bob", bearer(given), path),
                             post(message("bob", "x"), bearer(given), path)):  # fmt: skip
                    answer = await ask(service, sent)
                    assert_problem(answer, 401, "unauthorized")
                    expected = 'Bearer error="invalid_token"'
                    assert answer.headers["www-authenticate"] == expected
                    assert given.encode() not in answer.body
        assert texts_of(await ask(service, get(b"/chat/bob", bearer(token()), path))) == []


async def test_a_token_of_8_kb_is_refused(start_service: StartService, path: bytes) -> None:
    async with guarded(start_service) as (service, _):
        answer = await ask(service, get(b"/chat/bob", bearer(token(pad="x" * 6000)), path))
        assert answer.status == 431


async def test_an_expired_token_says_so(start_service: StartService, path: bytes) -> None:
    async with guarded(start_service) as (service, _):
        given = bearer(token(exp=int(time.time()) - LEEWAY_S - 1))
        answer = await ask(service, get(b"/chat/bob", given, path))
        assert answer.document["detail"] == "the token has expired"


async def test_a_signature_is_checked_once_for_all_requests(
    start_service: StartService, verifiers: list[JwtVerifier], path: bytes
) -> None:
    async with guarded(start_service) as (service, _):
        bob, forged = bearer(token()), bearer(signed(_HEADER, claims(jti=7), KEYS["EdDSA"])[:-4])
        for number in range(20):
            # Other header lines make another entry in the cache of heads.
            other = f"X-Number: {number}".encode()
            assert (await ask(service, get(b"/chat/bob", bob, other, path))).status == 200
            assert (await ask(service, get(b"/chat/bob", forged, other, path))).status == 401
        (verifier,) = verifiers
        assert verifier.signatures == 2


async def test_a_flood_of_unknown_keys_causes_one_fetch(
    start_service: StartService, verifiers: list[JwtVerifier], path: bytes
) -> None:
    async with guarded(start_service) as (service, keys):
        wire = Wire(service.port)
        connection = await wire.connect()
        for number in range(50):
            unknown = bearer(token(kid=f"unknown {number}"))
            assert (await connection.ask(get(b"/chat/bob", unknown, path))).status == 401
        assert len(keys.requests) == 1
        (verifier,) = verifiers
        ring_of(verifier)._next_at = 0.0
        flood = [get(b"/chat/bob", bearer(token(kid=f"key {n}")), path) for n in range(50)]
        answers = await asyncio.gather(*(ask(service, each) for each in flood))
        assert {answer.status for answer in answers} == {401}
        assert len(keys.requests) == 2
        assert verifier.signatures == 0
        await wire.close()


async def test_a_new_key_is_fetched_for_its_first_token(
    start_service: StartService, verifiers: list[JwtVerifier], path: bytes
) -> None:
    async with guarded(start_service, "EdDSA") as (service, keys):
        keys.documents["/keys"] = key_set("EdDSA", "ES256")
        new = bearer(token("ES256"))
        assert (await ask(service, get(b"/chat/bob", new, path))).status == 401
        ring_of(verifiers[0])._next_at = 0.0
        assert (await ask(service, get(b"/chat/bob", new, path))).status == 200
        assert (await ask(service, post(message("bob", "x"), new, path))).status == 201
        assert (await ask(service, get(b"/chat/bob", bearer(token()), path))).status == 200


async def test_a_removed_key_ends_its_tokens(
    start_service: StartService, verifiers: list[JwtVerifier], path: bytes
) -> None:
    async with guarded(start_service) as (service, keys):
        old, new = bearer(token("EdDSA")), bearer(token("ES256"))
        for each in (old, new):
            assert (await ask(service, get(b"/chat/bob", each, path))).status == 200
        waiting = asyncio.create_task(ask(service, get(b"/chat/bob?wait=25", old, path)))
        kept = asyncio.create_task(ask(service, get(b"/chat/bob?wait=25", new, path)))
        keys.documents["/keys"] = key_set("ES256")
        ring_of(verifiers[0])._next_at = 0.0
        await verifiers[0].fetch_keys()
        assert_problem(await waiting, 401, "unauthorized")
        assert (await ask(service, get(b"/chat/bob", old, path))).status == 401
        assert (await ask(service, post(message("bob", "x"), new, path))).status == 201
        assert texts_of(await kept) == ["x"]


@each_case({"a late end": 249_999_999_999, "a fraction": 4_000_000_000.25})
async def test_a_session_shows_any_end_that_is_accepted(
    exp: float, start_service: StartService
) -> None:
    async with guarded(start_service) as (service, _):
        answer = await ask(service, get(b"/session", bearer(token(exp=exp))))
        assert (answer.status, answer.document["subject"]) == (200, "bob")
        later = bearer(token(exp=253_402_300_799))
        assert (await ask(service, get(b"/session", later))).status == 401


async def test_a_stream_ends_when_its_token_expires(
    start_service: StartService, clock_of_tokens: Clock
) -> None:
    async with guarded(start_service) as (service, _):
        bob = token()
        url = f"ws://127.0.0.1:{service.port}/chat/bob/stream"
        headers = {"Authorization": f"Bearer {bob}"}
        async with open_socket(url, additional_headers=headers) as socket:
            await ask(service, post(message("bob", "in time"), bearer(token("ES256"))))
            assert json.loads(await socket.recv())["text"] == "in time"
            clock_of_tokens.ahead_s = 1000.0
            await socket.wait_closed()
            assert socket.close_code == 1008


async def test_a_long_poll_ends_when_its_token_expires(
    start_service: StartService, clock_of_tokens: Clock, path: bytes
) -> None:
    async with guarded(start_service) as (service, _):
        bob, later = bearer(token()), bearer(token(exp=int(time.time()) + 2000))
        waiting = asyncio.create_task(ask(service, get(b"/chat/bob?wait=25", bob, path)))
        await eventually(lambda: asyncio.sleep(0, service._tracker.open_requests == 1))
        clock_of_tokens.ahead_s = 1000.0
        answer = await waiting
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert (await ask(service, get(b"/chat/bob", bob, path))).status == 401
        assert (await ask(service, post(message("bob", "later"), later, path))).status == 201
        assert texts_of(await ask(service, get(b"/chat/bob", later, path))) == ["later"]


async def test_revocation_ends_older_tokens(
    start_service: StartService, tmp_path: Any, path: bytes
) -> None:
    file = tmp_path / "access.toml"
    file.write_text("", encoding="utf-8")
    file.chmod(0o600)
    async with guarded(start_service, access_file=str(file)) as (service, _):
        now = int(time.time())
        old = bearer(token(iat=now - 100))
        undated = bearer(signed(_HEADER, claims(iat=None)))
        new = bearer(token(iat=now))
        eve = bearer(token(iat=now - 100, sub="eve"))
        for each in (old, undated, new):
            assert (await ask(service, get(b"/chat/bob", each, path))).status == 200
        before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 50))
        file.write_text(f'[[revoked]]\nsub = "bob"\nbefore = {before}\n', encoding="utf-8")

        async def is_refused() -> bool:
            return (await ask(service, get(b"/chat/bob", old, path))).status == 401

        await eventually(is_refused)
        assert (await ask(service, get(b"/chat/bob", undated, path))).status == 401
        assert (await ask(service, get(b"/chat/bob", new, path))).status == 200
        assert (await ask(service, get(b"/chat/eve", eve, path))).status == 200


async def test_access_both_accepts_both_kinds_of_tokens(
    start_service: StartService, tmp_path: Any, path: bytes
) -> None:
    file = tmp_path / "access.toml"
    write(file, everybody())
    async with guarded(start_service, access="both", access_file=str(file)) as (service, _):
        listed, user = opaque("bob"), bearer(token())
        assert (await ask(service, post(message("bob", "hi"), user, path))).status == 201
        # They are the same subject.
        assert texts_of(await ask(service, get(b"/chat/bob", listed, path))) == ["hi"]
        assert (await ask(service, get(b"/chat/ann", user, path))).status == 403
        for name, given in forgeries().items():
            answer = await ask(service, get(b"/chat/bob", bearer(given), path))
            assert answer.status == 401, name


async def test_a_browsers_session_takes_the_token(start_service: StartService, path: bytes) -> None:
    async with guarded(start_service) as (service, _):
        bob = token(exp=int(time.time()) + 100)
        local = f"Host: 127.0.0.1:{service.port}".encode()
        begin = request(b"POST", b"/session", bearer(bob), host=local, body=b"")
        cookie = (await ask(service, begin)).headers["set-cookie"].partition(";")[0]
        own = b"Sec-Fetch-Site: same-origin"
        sent = get(b"/chat/bob", f"Cookie: {cookie}".encode(), own, path, host=local)
        assert texts_of(await ask(service, sent)) == []
        other = get(b"/chat/ann", f"Cookie: {cookie}".encode(), own, path, host=local)
        assert (await ask(service, other)).status == 403


async def test_an_outage_of_the_issuer_refuses_nobody(
    start_service: StartService, verifiers: list[JwtVerifier], path: bytes
) -> None:
    async with guarded(start_service) as (service, keys):
        keys.documents["/keys"] = 503
        ring_of(verifiers[0])._next_at = 0.0
        assert (await ask(service, get(b"/chat/bob", bearer(token(kid="x")), path))).status == 401
        assert (await ask(service, get(b"/chat/bob", bearer(token()), path))).status == 200
        metrics = get(b"/metrics", bearer(token(chat={"ops": True})))
        assert b"chat_jwt_keys_broken 1.0" in (await ask(service, metrics)).body
        keys.documents["/keys"] = key_set()
        ring_of(verifiers[0])._next_at = 0.0
        await verifiers[0].fetch_keys()
        assert b"chat_jwt_keys_broken 0.0" in (await ask(service, metrics)).body


@each_case({"a status": 503, "no keys": {"keys": []}, "a secret": {"keys": [{"kty": "oct"}]}})
async def test_a_service_without_keys_does_not_start(
    document: Any, start_service: StartService
) -> None:
    async with KeyServer() as keys:
        keys.documents["/keys"] = document
        with pytest.raises(AccessUnusable, match="keys of tokens cannot be used"):
            await start_service(
                access="jwt",
                jwt_issuer=ISSUER,
                jwt_audience=AUDIENCE,
                jwt_keys=f"{keys.base}/keys",
                mongo_wait_s=0.0,
            )
