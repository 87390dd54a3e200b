"""Which keys are used to check tokens, where they come from, and how they are kept up to date."""

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from chat_service.access import jwks
from chat_service.access.jwks import SIZE_MAX, KeyRing, key_source, read_key_set
from chat_service.access.jwt import JwtVerifier
from chat_service.access.loading import start_verifier
from chat_service.access.verifier import InvalidToken, KeysUnusable, UnknownKey
from tests.support.cases import without_keys
from tests.support.certificates import Authority
from tests.support.code_path import CODE_PATH
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
from tests.support.waiting import eventually

EDDSA = public_jwk(KEYS["EdDSA"], "EdDSA")
WEAK = public_jwk(rsa.generate_private_key(65537, 1024), "x")


@pytest.fixture
def rings(io_loop: IOLoop) -> Iterator[list[KeyRing]]:
    """The rings that a test starts, which are stopped at its end."""
    started: list[KeyRing] = []
    yield started
    for ring in started:
        io_loop.run_sync(ring.stop)


async def start(
    rings: list[KeyRing], keys: str, issuer: str = ISSUER, wait_s: float = 0
) -> KeyRing:
    """Start a ring with keys from a file or URL, or those of an issuer."""
    ring = KeyRing(key_source(keys, issuer))
    rings.append(ring)
    await ring.start(wait_s)
    return ring


def table(*keys: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the algorithm and the id of each usable key."""
    return set(read_key_set(json.dumps({"keys": keys}).encode()))


def test_a_key_is_for_its_own_algorithm_only() -> None:
    assert table(*key_set()["keys"]) == {
        ("RS256", "RS256"),
        ("ES256", "ES256"),
        ("Ed25519", "EdDSA"),
    }


@pytest.mark.parametrize(
    "other",
    [
        {**EDDSA, "use": "enc"},
        {**EDDSA, "key_ops": ["encrypt"]},
        {**EDDSA, "alg": "ES256"},
        {**EDDSA, "crv": "Ed448"},
        {**EDDSA, "crv": "X25519"},
        {**EDDSA, "x": "AAAA"},
        {**EDDSA, "x": 7},
        {"kty": "OKP", "crv": "Ed25519"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
        {"kty": 7},
        {},
        public_jwk(KEYS["RS256"], "x", alg="RS512"),
        public_jwk(KEYS["RS256"], "x", alg="PS256"),
        public_jwk(KEYS["RS256"], "x", alg="RSA-OAEP"),
        WEAK,
        {**WEAK, "n": "A" * 344 + WEAK["n"]},
        {**public_jwk(KEYS["ES256"], "x"), "y": public_jwk(KEYS["ES256"], "x")["x"]},
        {**public_jwk(KEYS["ES256"], "x"), "crv": "P-384"},
    ],
    ids=without_keys,
)
def test_a_key_that_checks_no_tokens_is_ignored(other: dict[str, Any]) -> None:
    assert table({**other, "kid": "other"}, EDDSA) == {("Ed25519", "EdDSA")}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not valid"),
        (b"no JSON", "not valid"),
        (b"\xff", "not valid"),
        (b"[" * 100_000, "not valid"),
        (b"[]", "not valid"),
        (b"{}", "not valid"),
        (b'{"keys": [7]}', "not valid"),
        (b'{"keys": []}', "no key"),
        (json.dumps({"keys": [EDDSA] * 101}).encode(), "not valid"),
        (json.dumps({"keys": [EDDSA, {"kty": "oct", "k": "c2VjcmV0"}]}).encode(), "symmetric"),
        (json.dumps({"keys": [{**EDDSA, "d": "c2VjcmV0"}]}).encode(), "private"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_key_set_that_is_not_public_is_refused(document: bytes, reason: str) -> None:
    with pytest.raises(KeysUnusable, match=reason) as caught:
        read_key_set(document)
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/keys",
        "http://10.0.0.1/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost.example/keys",
        "ftp://login.example/keys",
        "file:///etc/keys",
        "https://",
        "https:///keys",
        "http://[::1/keys",
        "https://user:c2VjcmV0@login.example/keys",
    ],
)
def test_keys_come_over_https_from_other_machines(url: str) -> None:
    with pytest.raises(KeysUnusable) as caught:
        key_source(url, ISSUER)
    assert "c2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize("issuer", ["login.example", "http://login.example", ""])
def test_only_an_issuer_with_a_safe_url_is_asked(issuer: str) -> None:
    with pytest.raises(KeysUnusable):
        key_source("", issuer)


async def test_keys_are_fetched_from_a_url(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        assert ("ES256", "ES256") in ring.keys
        assert server.requests == ["/keys"]


async def test_keys_are_found_through_the_issuer(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/.well-known/openid-configuration"] = {
            "issuer": server.base,
            "jwks_uri": f"{server.base}/keys",
        }
        ring = await start(rings, "", server.base)
        assert ("RS256", "RS256") in ring.keys


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"issuer": "https://evil.example"}, "is of the issuer"),
        ({"jwks_uri": "http://evil.example/keys"}, "not an https URL"),
        ({"jwks_uri": "file:///etc/passwd"}, "not an https URL"),
        ({"jwks_uri": 7}, "jwks_uri"),
    ],
    ids=without_keys,
)
async def test_another_issuers_document_is_refused(
    rings: list[KeyRing], changed: dict[str, Any], reason: str
) -> None:
    async with KeyServer() as server:
        document = {"issuer": server.base, "jwks_uri": f"{server.base}/keys", **changed}
        server.documents["/.well-known/openid-configuration"] = document
        with pytest.raises(KeysUnusable, match=reason):
            await start(rings, "", server.base)
        assert "/keys" not in server.requests


async def test_a_redirect_is_not_followed(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/moved"] = f"{server.base}/keys"
        with pytest.raises(KeysUnusable, match=f"302.*{server.base}/keys"):
            await start(rings, f"{server.base}/moved")
        assert server.requests == ["/moved"]


async def test_a_key_set_that_is_too_large_is_refused(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/keys"] = {**key_set(), "pad": "x" * SIZE_MAX}
        with pytest.raises(KeysUnusable):
            await start(rings, f"{server.base}/keys")


async def test_a_server_that_does_not_answer_is_left(
    rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_FETCH_S", 0.05)
    async with KeyServer() as server:
        server.may_answer.clear()
        with pytest.raises(KeysUnusable, match="Timeout"):
            await start(rings, f"{server.base}/keys")


async def test_a_certificate_must_be_trusted(rings: list[KeyRing], tmp_path: Path) -> None:
    async with KeyServer(tls_of(Authority(tmp_path))) as server:
        with pytest.raises(KeysUnusable, match="CERTIFICATE_VERIFY_FAILED"):
            await start(rings, f"{server.base}/keys")
        assert not server.requests


async def test_an_authority_of_ones_own_can_be_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    program = (
        "import asyncio, sys; from chat_service.access.loading import start_verifier\n"
        "asyncio.run(start_verifier('issuer', 'audience', sys.argv[1], 0))"
    )
    environ = {"SSL_CERT_FILE": str(authority.certificate), "PYTHONPATH": CODE_PATH}
    async with KeyServer(tls_of(authority)) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, f"{server.base}/keys"), env={**os.environ, **environ}
        )
        assert await process.wait() == 0
        assert server.requests == ["/keys"]


async def test_the_start_waits_for_the_keys(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/keys"] = 503
        starting = asyncio.create_task(start(rings, f"{server.base}/keys", wait_s=60))
        await eventually(lambda: asyncio.sleep(0, bool(server.requests)))
        server.documents["/keys"] = key_set()
        assert (await starting).keys


async def test_a_start_without_keys_says_why(rings: list[KeyRing], tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match=r"missing\.json cannot be read: No such file"):
        await start(rings, str(tmp_path / "missing.json"))
    (tmp_path / "large.json").write_bytes(b" " * (SIZE_MAX + 1))
    with pytest.raises(KeysUnusable, match=r"large\.json has more than"):
        await start(rings, str(tmp_path / "large.json"))


async def test_a_file_is_read_again_when_it_changes(rings: list[KeyRing], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(key_set("EdDSA")), encoding="utf-8")
    ring = await start(rings, str(file))
    file.write_text("{", encoding="utf-8")
    await eventually(lambda: asyncio.sleep(0, bool(ring.fault)))
    assert set(ring.keys) == {("Ed25519", "EdDSA")}
    file.write_text(json.dumps(key_set("ES256")), encoding="utf-8")
    await eventually(lambda: asyncio.sleep(0, ("ES256", "ES256") in ring.keys))
    assert not ring.fault


async def test_a_flood_of_unknown_keys_causes_one_fetch(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/keys"] = key_set("EdDSA")
        ring = await start(rings, f"{server.base}/keys")
        verifier = JwtVerifier(ring, ISSUER, AUDIENCE)
        unknown = [token("ES256", kid=f"key {number}") for number in range(200)]
        for each in unknown:
            with pytest.raises(InvalidToken) as caught:
                verifier.verify(each)
            # The keys were fetched just now, at the start.
            assert not isinstance(caught.value, UnknownKey)
        assert len(server.requests) == 1
        ring._next_at = 0.0
        for each in unknown:
            with pytest.raises(UnknownKey):
                verifier.verify(each)
        await asyncio.gather(*(verifier.fetch_keys() for _ in unknown))
        for each in unknown:
            with pytest.raises(InvalidToken, match="does not know"):
                verifier.verify(each)
            await verifier.fetch_keys()
        assert len(server.requests) == 2
        assert verifier.signatures == 0


async def test_keys_rotate_by_overlap(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        server.documents["/keys"] = key_set("EdDSA")
        ring = await start(rings, f"{server.base}/keys")
        verifier = JwtVerifier(ring, ISSUER, AUDIENCE)
        old, new = token("EdDSA"), token("ES256")
        assert verifier.verify(old).subject == "bob"
        server.documents["/keys"] = key_set("EdDSA", "ES256")
        ring._next_at = 0.0
        with pytest.raises(UnknownKey):
            verifier.verify(new)
        await verifier.fetch_keys()
        assert verifier.verify(new).subject == "bob"
        assert verifier.verify(old).subject == "bob"
        # A key that is added voids no identity.
        assert (verifier.generation, verifier.signatures) == (0, 2)
        server.documents["/keys"] = key_set("ES256")
        ring._next_at = 0.0
        await verifier.fetch_keys()
        assert verifier.generation == 1
        assert verifier.verify(new).subject == "bob"
        with pytest.raises(InvalidToken, match="does not know"):
            verifier.verify(old)


async def test_a_key_under_an_old_id_voids_identities(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        verifier = JwtVerifier(ring, ISSUER, AUDIENCE)
        given, key = token("RS256"), rsa.generate_private_key(65537, 2048)
        new = signed({"alg": "RS256", "kid": "RS256"}, claims(), key)
        assert verifier.verify(given).subject == "bob"
        with pytest.raises(InvalidToken, match="signature"):
            verifier.verify(new)
        others = key_set("EdDSA", "ES256")["keys"]
        server.documents["/keys"] = {"keys": [public_jwk(key, "RS256"), *others]}
        ring._next_at = 0.0
        await verifier.fetch_keys()
        with pytest.raises(InvalidToken, match="signature"):
            verifier.verify(given)
        assert verifier.verify(new).subject == "bob"


@pytest.mark.parametrize(
    "broken", [503, 404, {"keys": []}, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}], ids=str
)
async def test_the_last_good_keys_stay(rings: list[KeyRing], broken: Any) -> None:
    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        verifier = JwtVerifier(ring, ISSUER, AUDIENCE)
        server.documents["/keys"] = broken
        ring._next_at = 0.0
        await verifier.fetch_keys()
        assert ring.fault
        assert verifier.verify(token()).subject == "bob"
    ring._next_at = 0.0
    await verifier.fetch_keys()
    assert verifier.verify(token()).subject == "bob"


async def test_no_error_ends_the_fetching_of_keys(
    rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError("unexpected")

    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        monkeypatch.setattr("chat_service.access.jwks.read_key_set", fail)
        server.documents["/keys"] = key_set("ES256")
        ring._next_at = 0.0
        with capture_logs() as logs:
            await ring.refresh()
        assert [each["log_level"] for each in logs] == ["error"]
        assert "ZeroDivisionError" in ring.fault
        monkeypatch.undo()
        ring._next_at = 0.0
        await ring.refresh()
        assert set(ring.keys) == {("ES256", "ES256")}
        assert not ring.fault


async def test_a_caller_that_leaves_does_not_end_a_fetch(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        ring._next_at = 0.0
        server.may_answer.clear()
        server.documents["/keys"] = key_set("ES256")
        leaving, staying = (asyncio.create_task(ring.refresh()) for _ in range(2))
        await eventually(lambda: asyncio.sleep(0, len(server.requests) == 2))
        leaving.cancel()
        await asyncio.wait((leaving,))
        server.may_answer.set()
        await staying
        assert set(ring.keys) == {("ES256", "ES256")}
        assert len(server.requests) == 2


async def test_a_stop_ends_a_fetch_and_its_callers(rings: list[KeyRing]) -> None:
    async with KeyServer() as server:
        ring = await start(rings, f"{server.base}/keys")
        ring._next_at = 0.0
        server.may_answer.clear()
        waiting = asyncio.create_task(ring.refresh())
        await eventually(lambda: asyncio.sleep(0, len(server.requests) == 2))
        await ring.stop()
        await waiting
        await ring.stop()


def tls_of(authority: Authority) -> ssl.SSLContext:
    """Return what a server needs that has a certificate of this authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("localhost"))
    return context


async def test_without_its_packages_the_start_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jwks", "jwt"):
        monkeypatch.delitem(sys.modules, f"chat_service.access.{name}")
    monkeypatch.setitem(sys.modules, "joserfc.jws", None)
    with pytest.raises(KeysUnusable, match=r"install chat-inbox\[jwt\]"):
        await start_verifier(ISSUER, AUDIENCE, "keys.json", 0)
