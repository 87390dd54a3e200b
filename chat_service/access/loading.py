"""Starts the check of JSON Web Tokens. Its packages are optional, so they are imported only here.

Used by `chat_service.service` and by `chat doctor`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chat_service.access.verifier import KeysUnusable

if TYPE_CHECKING:
    from chat_service.access.jwt import JwtVerifier


async def start_verifier(issuer: str, audience: str, keys: str, wait_s: float) -> "JwtVerifier":
    """Return a verifier that has fetched its keys, for which it tries `wait_s` seconds.

    `keys` is the setting `jwt_keys`. Raises `KeysUnusable`, also if the packages are missing.
    """
    with _packages():
        from chat_service.access.jwks import KeyRing, key_source
        from chat_service.access.jwt import JwtVerifier
    verifier = JwtVerifier(KeyRing(key_source(keys, issuer)), issuer, audience)
    try:
        await verifier.start(wait_s)
    except BaseException:
        await verifier.stop()
        raise
    return verifier


async def usable_keys(issuer: str, keys: str) -> list[str]:
    """Fetch the keys once, and return the algorithm and the id of each. Raises `KeysUnusable`."""
    with _packages():
        from chat_service.access.jwks import key_source, read_key_set
    source = key_source(keys, issuer)
    try:
        return [" ".join(name) for name in read_key_set(await source.fetch())]
    finally:
        source.close()


@contextmanager
def _packages() -> Iterator[None]:
    """Turn an `ImportError` into a `KeysUnusable` that says what to install."""
    try:
        yield
    except ImportError as error:
        raise KeysUnusable(
            "access is set to jwt or both, but joserfc is not installed: "
            "CHAT_ACCESS=jwt scripts/serve installs it in a checkout; elsewhere, install "
            f"chat-inbox[jwt] ({error})"
        ) from error
