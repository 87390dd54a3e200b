"""Checks JSON Web Tokens by the rules of RFC 8725 and RFC 9068. Needs the extra `jwt`.

A token says who sends a request, and may say what they may do in its claim `chat`:
`{"send": ["*"], "read": ["{sub}"], "ops": false}`, with the patterns of the access file. Without
the claim, the sender may send to every name and read the name that equals `sub`.
"""

import time
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from joserfc.errors import JoseError
from joserfc.jws import extract_compact, validate_compact
from msgspec import Meta, Struct

from chat_service.access.jwks import KeyRing, PublicKey
from chat_service.access.patterns import pattern_fault, resolve
from chat_service.access.verifier import InvalidToken, Reason, UnknownKey
from chat_service.api.identity import Identity, Rights

#: The longest token, in bytes, and how far the clocks of issuer and service may differ, in seconds.
TOKEN_MAX, LEEWAY_S = 4096, 30
#: How many results are kept. A flood of bad tokens evicts no good one.
_GOOD_MAX, _BAD_MAX = 10_000, 10_000
#: How long a refusal is kept, in seconds.
_BAD_KEPT_S = 10.0
#: The algorithms by the names that tokens use: RFC 9864 names EdDSA with this curve Ed25519.
_ALGORITHMS = {"EdDSA": "Ed25519", "Ed25519": "Ed25519", "ES256": "ES256", "RS256": "RS256"}
#: Header fields that would make the token choose its key or its rules.
_FORBIDDEN = ("crit", "jku", "jwk", "x5u", "b64", "enc", "zip")
#: The types of access tokens. Others are for another purpose, such as a logout (RFC 8725, 3.11).
_TYPES = ("jwt", "at+jwt", "application/at+jwt")

V = TypeVar("V")
#: Seconds since 1970. Later than the year 9891 is a mistake, and could not be shown as a date.
_Date: TypeAlias = Annotated[float, Meta(ge=0, lt=250_000_000_000)]
#: Control characters would confuse logs. OpenID Connect has at most 255 characters.
_Subject: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")
]


class _Header(Struct):
    alg: str
    kid: str | None = None
    typ: str = "jwt"


class _Patterns(Struct, frozen=True, forbid_unknown_fields=True):
    """The claim `chat`. A misspelled right is refused, so that it is noticed."""

    send: list[str] = []
    read: list[str] = []
    ops: bool = False


class _Claims(Struct):
    iss: str
    sub: _Subject
    aud: str | list[str]
    exp: _Date
    nbf: _Date = 0.0
    iat: _Date = 0.0
    chat: _Patterns = _Patterns(["*"], ["{sub}"])
    #: A token that is bound to a key of its sender is no bearer token (RFC 7800).
    cnf: Literal[None] = None


_decode_claims = msgspec.json.Decoder(_Claims).decode


class JwtVerifier:
    """Checks the tokens of one issuer for one audience.

    The signature of a token is checked once, until the keys change; results are kept in bounded
    memory by the token's hash.
    """

    def __init__(
        self,
        ring: KeyRing,
        issuer: str,
        audience: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._issuer, self._audience = issuer, audience
        self._now = now
        self._generation = ring.generation
        self._good: _Recent[Identity] = _Recent(_GOOD_MAX)
        self._bad: _Recent[tuple[Reason, float]] = _Recent(_BAD_MAX)
        #: How many signatures were checked. Each costs 0.1 to 0.4 ms of processor time.
        self.signatures = 0

    async def start(self, wait_s: float) -> None:
        """Fetch the keys, trying again for `wait_s` seconds. Raises `KeysUnusable`."""
        await self._ring.start(wait_s)

    async def stop(self) -> None:
        """Stop fetching keys. Safe to call twice."""
        await self._ring.stop()

    @property
    def fault(self) -> str:
        """Return why the keys could not be fetched the last time; empty if they were."""
        return self._ring.fault

    @property
    def generation(self) -> int:
        """Return a number that changes when a key is removed: earlier identities may be void."""
        return self._ring.generation

    def verify(self, token: str) -> Identity:
        """Return the identity of a token, valid until `Identity.until`.

        Raises `InvalidToken` or, if the token's key is unknown and the keys were not fetched
        within the last 30 s, `UnknownKey`.
        """
        if len(token) > TOKEN_MAX or not token.isascii():
            raise InvalidToken("malformed")
        if self._generation != self._ring.generation:
            self._generation = self._ring.generation
            self._good.clear()
            self._bad.clear()
        data, now = token.encode(), self._now()
        digest = sha256(data).digest()
        if (identity := self._good.get(digest)) is not None:
            if identity.until <= now:
                raise InvalidToken("expired")
            return identity
        if (bad := self._bad.get(digest)) is not None and now < bad[1]:
            raise InvalidToken(bad[0])
        try:
            identity = self._check(data, now)
        except InvalidToken as refused:
            # An unknown key is cheap to find again, and may be known once the keys are fetched.
            if refused.reason != "unknown-key":
                self._bad.put(digest, (refused.reason, now + _BAD_KEPT_S))
            raise
        self._good.put(digest, identity)
        return identity

    async def fetch_keys(self) -> None:
        """Fetch the keys, unless that happened within the last 30 s. Raises nothing."""
        await self._ring.refresh()

    def _check(self, data: bytes, now: float) -> Identity:
        try:
            parsed = extract_compact(data)
            header = parsed.headers()
            fields = msgspec.convert(header, _Header)
        except (JoseError, ValueError, TypeError):
            raise InvalidToken("malformed") from None
        if any(name in header for name in _FORBIDDEN) or fields.typ.lower() not in _TYPES:
            raise InvalidToken("malformed")
        public = self._key_for(fields)
        self.signatures += 1
        try:
            is_signed = validate_compact(parsed, public.key, registry=public.registry)
        except JoseError:
            raise InvalidToken("malformed") from None
        if not is_signed:
            raise InvalidToken("signature")
        return self._identity_of(parsed.payload, now)

    def _key_for(self, fields: _Header) -> PublicKey:
        """Return the key that the token names, if it is for the algorithm that the token names."""
        keys = self._ring.keys
        algorithm = _ALGORITHMS.get(fields.alg)
        if algorithm is None:
            raise InvalidToken("algorithm")
        if fields.kid is None:
            # The token does not say which key it is, so there must be no choice.
            fitting = [key for (name, _), key in keys.items() if name == algorithm]
            if len(fitting) != 1:
                raise InvalidToken("unknown-key")
            return fitting[0]
        if key := keys.get((algorithm, fields.kid)):
            return key
        if any(kid == fields.kid for _, kid in keys):
            raise InvalidToken("algorithm")
        raise UnknownKey if self._ring.may_refresh else InvalidToken("unknown-key")

    def _identity_of(self, payload: Any, now: float) -> Identity:
        try:
            claims = _decode_claims(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise InvalidToken("claims") from None
        if claims.iss != self._issuer:
            raise InvalidToken("issuer")
        audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        if self._audience not in audiences:
            raise InvalidToken("audience")
        until = claims.exp + LEEWAY_S
        if until <= now:
            raise InvalidToken("expired")
        if max(claims.nbf, claims.iat) > now + LEEWAY_S:
            raise InvalidToken("not-yet")
        return Identity(claims.sub, _rights_of(claims.chat, claims.sub), until, claims.iat)


def _rights_of(claim: _Patterns, subject: str) -> Rights:
    if any(map(pattern_fault, (*claim.send, *claim.read))):
        raise InvalidToken("claims")
    return Rights(resolve(claim.send, subject), resolve(claim.read, subject), claim.ops)


class _Recent(Generic[V]):
    """The values that were used last, at most `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[bytes, V] = {}
        self.clear = self._values.clear

    def get(self, key: bytes) -> V | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: bytes, value: V) -> None:
        if len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = value
