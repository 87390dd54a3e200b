"""The keys that JSON Web Tokens are checked with: a JSON Web Key Set (RFC 7517), kept up to date.

It comes from a file, from an https URL, or from the URL that the issuer's own document names
(OpenID Connect Discovery). Needs the extra `jwt`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key
from joserfc.jws import JWSRegistry
from msgspec import Meta, Struct
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httputil import HTTPInputError

from chat_service.access.verifier import KeysUnusable
from chat_service.api.request_policy import is_loopback_address

log = structlog.get_logger(__name__)

#: The largest key set, in bytes, and the longest time to fetch it, in seconds.
SIZE_MAX, _FETCH_S = 256 << 10, 5.0
#: How often the start tries, in seconds.
_KNOCK_EVERY_S = 0.5
#: The shortest RSA key, in bits (RFC 7518, 3.3).
_RSA_BITS_MIN = 2048
#: The members of a key that matter: others of another library or a certificate cannot confuse.
_MEMBERS = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}


class PublicKey(NamedTuple):
    """A key, and a registry that knows only the algorithm of this key."""

    key: Key
    registry: JWSRegistry


#: The keys by the algorithm and their id; a key without an id has the id "".
KeyTable = Mapping[tuple[str, str], PublicKey]


class KeySource(Protocol):
    """Where a key set comes from."""

    #: How often it is fetched, and how far apart two fetches are at least, in seconds.
    every_s: float
    apart_s: float

    async def fetch(self) -> bytes:
        """Return the key set as JSON. Raises `KeysUnusable`."""
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


def key_source(keys: str, issuer: str) -> KeySource:
    """Return the source for a file or URL or, if `keys` is empty, for that which the issuer names.

    Raises `KeysUnusable` for a URL that is neither https nor http on this machine.
    """
    if keys and "://" not in keys:
        return _File(Path(keys))
    return _Url(keys, issuer)


class KeyRing:
    """The key set in use. `start`, then `stop`. The last good set is kept if a fetch fails."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._data = b""
        self._next_at = 0.0
        self._fetching: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.keys: KeyTable = {}
        #: Changes when a key is removed or replaced, not when one is added.
        self.generation = 0
        #: Why the last fetch failed; empty if it did not.
        self.fault = ""

    @property
    def may_refresh(self) -> bool:
        """Return whether `refresh` would fetch the keys, or wait for a fetch in progress."""
        is_fetching = self._fetching is not None and not self._fetching.done()
        return is_fetching or time.monotonic() >= self._next_at

    async def start(self, wait_s: float) -> None:
        """Fetch the keys, trying again for `wait_s` seconds. Raises `KeysUnusable`."""
        deadline = time.monotonic() + wait_s
        while not self.keys:
            self._next_at = 0.0
            await self.refresh()
            if not self.keys:
                if time.monotonic() >= deadline:
                    raise KeysUnusable(f"the keys of tokens cannot be used: {self.fault}")
                await asyncio.sleep(_KNOCK_EVERY_S)
        self._keeper = asyncio.create_task(self._keep(), name="jwt-keys")

    async def refresh(self) -> None:
        """Fetch the keys, unless the last fetch was too recent. Concurrent callers share a fetch.

        Raises nothing: `fault` says what failed. Cancelling a caller does not cancel the fetch.
        """
        if not self.may_refresh:
            return
        if self._fetching is None or self._fetching.done():
            self._next_at = time.monotonic() + self._source.apart_s
            self._fetching = asyncio.create_task(self._fetch(), name="jwt-keys-fetch")
        await asyncio.wait((self._fetching,))

    async def stop(self) -> None:
        """Stop fetching. Safe to call twice."""
        tasks = [task for task in (self._keeper, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._source.close()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._source.apart_s if self.fault else self._source.every_s)
            await self.refresh()

    async def _fetch(self) -> None:
        try:
            data = await self._source.fetch()
            if data != self._data:
                old, self.keys, self._data = self.keys, read_key_set(data), data
                log.info("the keys of tokens have changed", keys=sorted(map(_shown, self.keys)))
                self.generation += any(
                    name not in self.keys or self.keys[name].key != public.key
                    for name, public in old.items()
                )
            if self.fault:
                log.info("the keys of tokens can be used again")
            self.fault = ""
        except KeysUnusable as error:
            if self.fault != (fault := str(error)):
                kept = len(self.keys)
                log.warning("the keys of tokens cannot be used", reason=fault, kept=kept)
            self.fault = fault
        except Exception as error:
            # The callers that wait for it get no exception, and the next fetch may succeed.
            log.exception("the fetch of the keys of tokens failed")
            self.fault = repr(error)


class _File:
    every_s, apart_s = 1.0, 0.5

    def __init__(self, path: Path) -> None:
        self._path = path

    async def fetch(self) -> bytes:
        try:
            return await asyncio.to_thread(self._read)
        except OSError as error:
            raise KeysUnusable(f"{self._path} cannot be read: {error.strerror}") from error

    def _read(self) -> bytes:
        with self._path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise KeysUnusable(f"{self._path} has more than {SIZE_MAX} bytes")
        return data

    def close(self) -> None:
        """Hold nothing."""


class _Url:
    every_s, apart_s = 300.0, 30.0

    def __init__(self, url: str, issuer: str) -> None:
        self._url, self._issuer = url, issuer
        self._discovery = "" if url else issuer.rstrip("/") + "/.well-known/openid-configuration"
        _require_safe(url or self._discovery)
        # No redirect is followed, and nothing is decompressed, so that nothing grows.
        options = {"follow_redirects": False, "decompress_response": False}
        self._client = AsyncHTTPClient(
            force_instance=True, max_body_size=SIZE_MAX, defaults=options
        )

    async def fetch(self) -> bytes:
        url = self._url
        if not url:
            try:
                document = _decode_discovery(await self._get(self._discovery))
            except msgspec.DecodeError as error:
                raise KeysUnusable(f"{self._discovery}: {error}") from error
            if document.issuer != self._issuer:
                raise KeysUnusable(f"{self._discovery} is of the issuer {document.issuer!r}")
            url = document.jwks_uri
            _require_safe(url)
        return await self._get(url)

    async def _get(self, url: str) -> bytes:
        try:
            answer = await self._client.fetch(
                url, connect_timeout=_FETCH_S, request_timeout=_FETCH_S
            )
        except HTTPClientError as error:
            # A redirect is followed nowhere: a person writes its target into the settings.
            target = error.response and error.response.headers.get("Location")
            more = f", to {target}" if target else ""
            raise KeysUnusable(f"{url}: {error}{more}") from error
        except (OSError, ValueError, HTTPInputError) as error:
            raise KeysUnusable(f"{url}: {error}") from error
        return answer.body

    def close(self) -> None:
        self._client.close()


class _Discovery(Struct):
    issuer: str
    jwks_uri: str


class _KeySet(Struct):
    keys: Annotated[list[dict[str, Any]], Meta(max_length=100)]


_decode_discovery = msgspec.json.Decoder(_Discovery).decode
_decode_key_set = msgspec.json.Decoder(_KeySet).decode


def read_key_set(data: bytes) -> KeyTable:
    """Return the keys of a key set that can check a token. Other keys are ignored.

    Raises `KeysUnusable` if there are none, or if one is not public: who can read a secret or a
    private key can sign tokens.
    """
    try:
        entries = _decode_key_set(data).keys
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise KeysUnusable(f"the key set is not valid: {error}") from error
    if any(entry.get("kty") == "oct" or "d" in entry for entry in entries):
        raise KeysUnusable("the key set has a symmetric or a private key; publish only public keys")
    table = {}
    for entry in entries:
        if algorithm := _algorithm_of(entry):
            kid = entry.get("kid", "")
            try:
                members = {name: entry[name] for name in _MEMBERS[entry["kty"]]}
                table[algorithm, str(kid)] = PublicKey(import_key(members), _Only(algorithm))
            except (JoseError, UnsupportedAlgorithm, ValueError, KeyError):
                # Issuers publish keys for other purposes, too. The log says which ones are used.
                continue
    if not table:
        raise KeysUnusable("the key set has no key for Ed25519, ES256 or RS256")
    return table


class _Only(JWSRegistry):
    """Verifies with one algorithm, which no token can change. Unknown header fields are ignored."""

    def __init__(self, algorithm: str) -> None:
        super().__init__(strict_check_header=False)
        self._algorithm = self.algorithms[algorithm]

    def get_alg(self, name: str) -> Any:
        return self._algorithm


def _algorithm_of(entry: Mapping[str, Any]) -> str | None:
    """Return the algorithm that a key is for, or None for a key that checks no tokens."""
    ops = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(ops, Sequence) or "verify" not in ops:
        return None
    names: tuple[str, ...]
    match entry:
        case {"kty": "RSA", "n": str(modulus)} if _bits(modulus) >= _RSA_BITS_MIN:
            algorithm, names = "RS256", ("RS256",)
        case {"kty": "EC", "crv": "P-256"}:
            algorithm, names = "ES256", ("ES256",)
        case {"kty": "OKP", "crv": "Ed25519"}:
            algorithm, names = "Ed25519", ("Ed25519", "EdDSA")
        case _:
            return None
    return algorithm if entry.get("alg", algorithm) in names else None


def _bits(modulus: str) -> int:
    """Return the size of a number in base64url, without the zeros that it may begin with."""
    return len(modulus.lstrip("A")) * 6


def _shown(name: tuple[str, str]) -> str:
    algorithm, kid = name
    return f"{algorithm} {kid[:64]}"


def _require_safe(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise KeysUnusable(f"{url!r} is not a URL: {error}") from error
    if "@" in parts.netloc:
        raise KeysUnusable("a URL of keys must not contain a user or a password")
    is_local = parts.scheme == "http" and (host == "localhost" or is_loopback_address(host))
    if not host or not (parts.scheme == "https" or is_local):
        raise KeysUnusable(
            f"{url!r} is not an https URL; http is accepted only for addresses of this machine"
        )
