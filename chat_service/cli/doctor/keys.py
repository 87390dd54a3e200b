"""The check of the keys that JSON Web Tokens are checked with."""

from chat_service.access.loading import usable_keys
from chat_service.access.verifier import KeysUnusable
from workers.store.finding import Finding


async def check_keys(issuer: str, keys: str) -> Finding:
    """Fetch the keys as a service does at its start. Takes `jwt_issuer` and `jwt_keys`."""
    try:
        found = await usable_keys(issuer, keys)
    except KeysUnusable as error:
        return Finding("token keys", "fail", str(error))
    names = ", ".join(sorted(name[:80] for name in found))
    return Finding("token keys", "ok", f"{len(found)} usable: {names}")
