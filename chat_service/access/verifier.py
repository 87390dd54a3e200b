"""What the gate asks about a token that is not in the access file, and how such a token is refused.

`chat_service.access.jwt` has the implementation; its packages are optional.
"""

from typing import Literal, Protocol, TypeAlias

from chat_service.api.identity import Identity

#: Why a token is refused: one word for logs and metrics.
Reason: TypeAlias = Literal[
    "malformed", "algorithm", "unknown-key", "signature", "expired", "not-yet", "issuer",
    "audience", "claims",
]  # fmt: skip
#: The same for the client. A client whose token has expired gets another one and tries again.
_DETAILS: dict[Reason, str] = {
    "malformed": "the token is not a signed JSON Web Token of at most 4096 bytes",
    "algorithm": "the token is not signed with the algorithm of its key",
    "unknown-key": "the token is signed with a key that this service does not know",
    "signature": "the signature of the token is not valid",
    "expired": "the token has expired",
    "not-yet": "the token is not valid yet",
    "issuer": "the token is from another issuer",
    "audience": "the token is for another audience",
    "claims": "a claim of the token is missing or malformed",
}


class InvalidToken(Exception):
    """Raised for a token that is not valid. The message is for the client; it quotes no token."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(_DETAILS[reason])
        self.reason = reason


class UnknownKey(InvalidToken):
    """Raised for a token whose key may be new. It may be valid after `Verifier.fetch_keys`."""

    def __init__(self) -> None:
        super().__init__("unknown-key")


class KeysUnusable(Exception):
    """Raised at the start if the keys cannot be fetched or used. The message says why."""


class Verifier(Protocol):
    """Verifies signed tokens."""

    @property
    def generation(self) -> int:
        """Return a number that changes when a key is removed: earlier identities may be void."""
        ...

    def verify(self, token: str) -> Identity:
        """Return the identity of a token, at once; it ends at its `until`.

        Both identities and refusals are remembered, so that a token that is sent again costs
        little. Raises `InvalidToken` or, if the key may exist by now, its subclass `UnknownKey`.
        """
        ...

    async def fetch_keys(self) -> None:
        """Get the keys again, if the last time is long enough ago. Ends soon, and never raises."""
        ...
