"""Which JSON Web Tokens are accepted, what they permit, and what a flood of them costs."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from chat_service.access import jwt
from chat_service.access.jwks import KeyRing, key_source, read_key_set
from chat_service.access.jwt import LEEWAY_S, TOKEN_MAX, JwtVerifier
from chat_service.access.verifier import InvalidToken, Reason
from tests.support.cases import without_keys
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    KEYS,
    claims,
    encoded,
    key_set,
    public_jwk,
    signature,
    signed,
    token,
)

_HEADER = {"alg": "EdDSA", "kid": "EdDSA"}


def ring_of(document: dict[str, Any]) -> KeyRing:
    """Return a ring with these keys, which is not started."""
    ring = KeyRing(key_source("unused", ISSUER))
    ring.keys = read_key_set(json.dumps(document).encode())
    return ring


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> JwtVerifier:
    return JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE, clock)


def refusal(verifier: JwtVerifier, given: str) -> Reason:
    """Return why a token is refused; fail if it is accepted."""
    with pytest.raises(InvalidToken) as caught:
        verifier.verify(given)
    return caught.value.reason


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_signed_token_names_its_subject(verifier: JwtVerifier, algorithm: str) -> None:
    given = claims()
    header = {"alg": algorithm, "kid": algorithm}
    identity = verifier.verify(signed(header, given, KEYS[algorithm]))
    assert identity.subject == "bob"
    assert identity.issued == given["iat"]
    assert identity.until == given["exp"] + LEEWAY_S


def test_the_newer_name_of_the_algorithm_is_accepted(verifier: JwtVerifier) -> None:
    assert verifier.verify(signed({**_HEADER, "alg": "Ed25519"}, claims())).subject == "bob"


def test_without_a_claim_bob_sends_to_all_and_reads_bob(verifier: JwtVerifier) -> None:
    rights = verifier.verify(token()).rights
    assert (rights.send, rights.read, rights.ops) == (("*",), ("bob",), False)


def test_the_claim_says_what_the_token_permits(verifier: JwtVerifier) -> None:
    chat = {"send": ["team-*", "ann"], "read": ["{sub}", "{sub}-*"], "ops": True}
    rights = verifier.verify(token(chat=chat)).rights
    assert (rights.send, rights.read) == (("team-*", "ann"), ("bob", "bob-*"))
    assert rights.ops


def test_an_empty_claim_permits_nothing(verifier: JwtVerifier) -> None:
    rights = verifier.verify(token(chat={})).rights
    assert (rights.send, rights.read, rights.ops) == ((), (), False)


@pytest.mark.parametrize(
    "chat",
    [
        None,
        [],
        "*",
        {"send": "*"},
        {"send": [""]},
        {"send": ["a*b"]},
        {"read": ["**"]},
        {"read": [1]},
        {"read": ["x" * 513]},
        {"ops": "yes"},
        {"ops": 1},
        {"write": ["*"]},
    ],
    ids=without_keys,
)
def test_a_malformed_claim_refuses_the_token(verifier: JwtVerifier, chat: Any) -> None:
    assert refusal(verifier, signed(_HEADER, {**claims(), "chat": chat})) == "claims"


@pytest.mark.parametrize("subject", ["*", "b*", "team-*", "{sub}", "}{", "{sub}*", "..", "a" * 255])
def test_a_subject_widens_no_pattern(verifier: JwtVerifier, subject: str) -> None:
    chat = {"send": ["{sub}", "x-{sub}", "{sub}{sub}"], "read": ["{sub}", "y-{sub}"]}
    rights = verifier.verify(token(sub=subject, chat=chat)).rights
    for name in ("bob", "b", "team-a", "x-bob", "y-team-a", "x-", "y-", "{", "{sub}x"):
        assert not rights.allow("send", name)
        assert not rights.allow("read", name)
    for pattern in (*rights.send, *rights.read):
        assert not pattern.endswith("*")


@pytest.mark.parametrize("subject", ["", "a\nb", "a\x00", "\x85", "a" * 256, 7, ["bob"], None])
def test_a_subject_that_names_nobody_is_refused(verifier: JwtVerifier, subject: Any) -> None:
    assert refusal(verifier, token(sub=subject)) == "claims"


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "", "HS256", "HS512", "PS256", "RS512"])
def test_other_algorithms_are_refused(verifier: JwtVerifier, name: str) -> None:
    for kid in KEYS:
        parts = signed({"alg": name, "kid": kid}, claims(), KEYS[kid]).rpartition(".")
        assert refusal(verifier, "".join(parts)) == "algorithm"
        assert refusal(verifier, f"{parts[0]}.") == "algorithm"
    assert verifier.signatures == 0


@pytest.mark.parametrize("kid", KEYS)
def test_a_public_key_is_no_secret_for_a_signature(verifier: JwtVerifier, kid: str) -> None:
    public = KEYS[kid].public_key()
    secrets = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(public_jwk(KEYS[kid], kid)).encode(),
    ]
    for name in ("HS256", kid):
        data = signed({"alg": name, "kid": kid}, claims(), KEYS[kid]).rpartition(".")[0]
        for secret in secrets:
            forged = hmac.new(secret, data.encode(), hashlib.sha256).digest()
            assert refusal(verifier, f"{data}.{encoded(forged)}") in ("algorithm", "signature")


def test_the_key_decides_the_algorithm_not_the_token(verifier: JwtVerifier) -> None:
    for kid in KEYS:
        for other in KEYS.keys() - {kid}:
            given = signed({"alg": other, "kid": kid}, claims(), KEYS[other])
            assert refusal(verifier, given) == "algorithm"
    assert verifier.signatures == 0


def test_a_key_may_name_its_algorithm(clock: Clock) -> None:
    named = {"keys": [public_jwk(KEYS["EdDSA"], "EdDSA", alg="EdDSA", use="sig")]}
    assert JwtVerifier(ring_of(named), ISSUER, AUDIENCE, clock).verify(token()).subject == "bob"


def test_the_signature_of_another_key_is_refused(verifier: JwtVerifier) -> None:
    assert refusal(verifier, signed(_HEADER, claims(), Ed25519PrivateKey.generate())) == "signature"


@pytest.mark.parametrize("audience", ["other", "Chat", "chat ", "", [], ["other"], ["chat*"]])
def test_a_token_for_another_service_is_refused(verifier: JwtVerifier, audience: Any) -> None:
    assert refusal(verifier, token(aud=audience)) == "audience"


def test_one_of_several_audiences_is_enough(verifier: JwtVerifier) -> None:
    assert verifier.verify(token(aud=["other", AUDIENCE])).subject == "bob"


@pytest.mark.parametrize("issuer", [f"{ISSUER}/", ISSUER.upper(), "", "https://evil.example"])
def test_a_token_of_another_issuer_is_refused(verifier: JwtVerifier, issuer: str) -> None:
    assert refusal(verifier, token(iss=issuer)) == "issuer"


@pytest.mark.parametrize("missing", ["iss", "aud", "exp", "sub"])
def test_a_required_claim_must_be_there(verifier: JwtVerifier, missing: str) -> None:
    assert refusal(verifier, signed(_HEADER, claims(**{missing: None}))) == "claims"


@pytest.mark.parametrize("date", ["soon", True, -1, 1e300, [1], "1e9"])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_claims_with_dates_must_be_numbers(verifier: JwtVerifier, name: str, date: Any) -> None:
    assert refusal(verifier, signed(_HEADER, claims(**{name: date}))) == "claims"


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_an_end_that_is_not_a_number_is_refused(verifier: JwtVerifier, literal: bytes) -> None:
    text = json.dumps(claims(exp=7)).encode().replace(b'"exp": 7', b'"exp": ' + literal)
    assert literal in text
    assert refusal(verifier, signed(_HEADER, text)) == "claims"


def test_a_token_ends_half_a_minute_late(verifier: JwtVerifier, clock: Clock) -> None:
    given = token(exp=int(clock.now) + 100)
    late = token(exp=int(clock.now) + 100, jti="another")
    clock.now = int(clock.now) + 100 + LEEWAY_S - 1
    assert verifier.verify(given).subject == "bob"
    clock.now += 1
    assert refusal(verifier, given) == "expired"
    assert refusal(verifier, late) == "expired"


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_from_the_future_waits(verifier: JwtVerifier, clock: Clock, name: str) -> None:
    begins = int(clock.now) + 100
    given = signed(_HEADER, claims(exp=begins + 100, **{name: begins}))
    assert refusal(verifier, given) == "not-yet"
    clock.now = begins - LEEWAY_S
    assert verifier.verify(given).subject == "bob"


@pytest.mark.parametrize(
    "field",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"jku": "https://evil.example/keys"},
        {"jwk": public_jwk(KEYS["EdDSA"], "EdDSA")},
        {"x5u": "https://evil.example/cert"},
        {"x5u": 1},
        {"zip": "DEF"},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": None},
        {"kid": 1},
        {"alg": None},
    ],
    ids=without_keys,
)
def test_a_header_that_changes_the_rules_is_refused(
    verifier: JwtVerifier, field: dict[str, Any]
) -> None:
    assert refusal(verifier, signed({**_HEADER, **field}, claims())) == "malformed"
    assert verifier.signatures == 0


def test_an_unknown_header_field_is_ignored(verifier: JwtVerifier) -> None:
    header = {**_HEADER, "nonce": "x", "x5t": "abc", "typ": "JWT"}
    assert verifier.verify(signed(header, claims())).subject == "bob"


@pytest.mark.parametrize(
    "given",
    ["", ".", "..", "...", "a.b.c", "e30.e30.e30", "bm90anNvbg.e30.e30", "bnVsbA.e30.e30",
     "WyJhbGciXQ.e30.e30", "ImFsZyI.e30.e30", "ImFsZyBiNjQi.e30.e30",
     "Nw.e30.e30", "eyJhbGciOiJFZERTQSJ9", "é.é.é",
     "eyJhbGciOiJkaXIifQ....", "cht_abc"],
)  # fmt: skip
def test_text_that_is_not_a_token_is_refused(verifier: JwtVerifier, given: str) -> None:
    assert refusal(verifier, given) == "malformed"


def test_an_encrypted_token_is_refused(verifier: JwtVerifier) -> None:
    header = encoded(b'{"alg":"RSA-OAEP","enc":"A256GCM","kid":"RS256"}')
    assert refusal(verifier, f"{header}.a2V5.aXY.dGV4dA.dGFn") == "malformed"


def test_deep_nesting_is_refused(verifier: JwtVerifier) -> None:
    deep = b"[" * 2900
    assert refusal(verifier, signed(_HEADER, b'{"chat":' + deep)) == "claims"
    assert refusal(verifier, signed(_HEADER, b'{"other":' + deep)) == "claims"
    assert refusal(verifier, signed(b'{"alg":' + deep[:370], claims())) == "malformed"


def test_a_token_has_at_most_4_kib(verifier: JwtVerifier) -> None:
    free = TOKEN_MAX - len(token(pad=""))
    fitting = token(pad="x" * (free * 3 // 4 - 2))
    assert TOKEN_MAX - 8 < len(fitting) <= TOKEN_MAX
    assert verifier.verify(fitting).subject == "bob"
    assert refusal(verifier, token(pad="x" * 6000)) == "malformed"
    assert verifier.signatures == 1


def test_a_token_that_is_bound_to_a_key_is_refused(verifier: JwtVerifier) -> None:
    assert refusal(verifier, token(cnf={"jkt": "thumbprint"})) == "claims"


def test_a_token_without_a_key_id_needs_a_single_key(clock: Clock) -> None:
    given = signed({"alg": "EdDSA"}, claims())
    one = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE, clock)
    assert one.verify(given).subject == "bob"
    keys = [public_jwk(KEYS["EdDSA"], "a"), public_jwk(KEYS["EdDSA"], "b")]
    two = JwtVerifier(ring_of({"keys": keys}), ISSUER, AUDIENCE, clock)
    assert refusal(two, given) == "unknown-key"


def test_a_signature_is_checked_once(verifier: JwtVerifier, clock: Clock) -> None:
    good, bad = token(), signed(_HEADER, claims(), Ed25519PrivateKey.generate())
    for _ in range(5):
        assert verifier.verify(good).subject == "bob"
        assert refusal(verifier, bad) == "signature"
    assert verifier.signatures == 2
    clock.now += 11
    assert refusal(verifier, bad) == "signature"
    assert verifier.verify(good).subject == "bob"
    assert verifier.signatures == 3


def test_a_flood_of_bad_tokens_evicts_no_good_one(
    verifier: JwtVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwt, "_BAD_MAX", 10)
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    good = [token(jti=str(number)) for number in range(5)]
    for each in good:
        verifier.verify(each)
    for number in range(100):
        assert refusal(verifier, token(iss="other", jti=str(number))) == "issuer"
    checked = verifier.signatures
    for each in good:
        verifier.verify(each)
    assert verifier.signatures == checked


def test_the_tokens_used_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt, "_GOOD_MAX", 3)
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    busy = token(jti="busy")
    for number in range(10):
        verifier.verify(busy)
        verifier.verify(token(jti=str(number)))
    assert verifier.signatures == 11


def test_a_refusal_says_nothing_of_the_token(verifier: JwtVerifier) -> None:
    for each in (token(iss="secret-issuer"), token(sub=7), "secret.secret.secret"):
        with pytest.raises(InvalidToken) as caught:
            verifier.verify(each)
        assert "secret" not in f"{caught.value}{caught.value!r}{caught.value.args}"
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


#: They last longer than the slowest run of all tests.
_GIVEN = {algorithm: token(algorithm, exp=int(time.time()) + 86_400) for algorithm in KEYS}
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(st.sampled_from(sorted(KEYS)), st.data())
def test_a_changed_token_is_never_accepted(algorithm: str, data: st.DataObject) -> None:
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    text = list(_GIVEN[algorithm])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.text(_ALPHABET + ".=+/ ", max_size=3)
        )
    changed = "".join(text)
    if changed == _GIVEN[algorithm]:
        assert verifier.verify(changed).subject == "bob"
    else:
        refusal(verifier, changed)


@given(st.data())
def test_parts_of_two_tokens_make_no_third(data: st.DataObject) -> None:
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    pool = [part for given in (*_GIVEN.values(), token(sub="eve")) for part in given.split(".")]
    parts = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=5))
    mixed = ".".join(parts)
    if mixed in _GIVEN.values() or mixed == token(sub="eve"):
        return
    try:
        identity = verifier.verify(mixed)
    except InvalidToken:
        return
    # The signature of eve's token is over these very bytes.
    assert identity.subject == "eve"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_NAMES = ("iss", "aud", "sub", "exp", "nbf", "iat", "chat", "cnf")


@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES, min_size=1, max_size=3))
def test_any_claims_are_refused_or_understood(changed: dict[str, Any]) -> None:
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    whole = {**claims(), **changed}
    given = signed(_HEADER, whole)
    try:
        identity = verifier.verify(given)
    except InvalidToken:
        return
    assert identity.subject == whole["sub"]
    assert identity.until > time.time()
    assert whole["iss"] == ISSUER
    assert AUDIENCE in (whole["aud"] if isinstance(whole["aud"], list) else [whole["aud"]])


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x5c", "jwk"]), _VALUES)
)
def test_any_header_is_refused_or_understood(changed: dict[str, Any]) -> None:
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    try:
        verifier.verify(signed({**_HEADER, **changed}, claims()))
    except InvalidToken:
        return
    assert {**_HEADER, **changed}["alg"] in ("EdDSA", "Ed25519")
    assert not changed.keys() & {"crit", "b64", "jwk"}


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_random_bytes_are_refused(header: bytes, payload: bytes) -> None:
    verifier = JwtVerifier(ring_of(key_set()), ISSUER, AUDIENCE)
    refusal(verifier, signed(header, payload))
    refusal(verifier, signed(_HEADER, payload))


def test_the_same_signature_in_another_form_is_refused(verifier: JwtVerifier) -> None:
    given = _GIVEN["ES256"]
    data, _, text = given.rpartition(".")
    raw = base64.urlsafe_b64decode(text + "==")
    assert len(raw) == len(signature(KEYS["ES256"], b""))
    for other in (raw[1:], raw + b"\0", b"\0" + raw, raw[:32], b"", b"\0" * 64, b"\xff" * 64):
        assert refusal(verifier, f"{data}.{encoded(other)}") == "signature"
    assert refusal(verifier, f"{given}==") == "signature"
