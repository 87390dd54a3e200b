"""What checks a token that is not in the access file, and how it refuses one."""

from typing import Literal, Protocol, TypeAlias

from chat_service.api.identity import Identity

#: Why a token is refused: one word for logs and metrics.
Reason: TypeAlias = Literal[
    "malformed", "algorithm", "unknown-key", "signature", "expired", "not-yet", "issuer",
    "audience", "claims",
]  # fmt: skip
#: The same for the client. A client whose token has expired gets another one and tries again.
DETAILS: dict[Reason, str] = {
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


class TokenRefused(Exception):
    """Raised for a token that is not valid. It says nothing that the token says."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def detail(self) -> str:
        """Return the reason as a sentence for the client."""
        return DETAILS[self.reason]


class KeyMissing(TokenRefused):
    """Raised for a token whose key may be new: `Verifier.verify_with_new_keys` may accept it."""

    def __init__(self) -> None:
        super().__init__("unknown-key")


class Verifier(Protocol):
    """Turns tokens into identities."""

    @property
    def generation(self) -> int:
        """Return a number that changes when an identity that was returned may be void."""
        ...

    def verify(self, token: str) -> Identity:
        """Return the identity of a token; raise `TokenRefused`, or its subclass `KeyMissing`."""
        ...

    async def verify_with_new_keys(self, token: str) -> Identity:
        """Do the same, but fetch the keys again if the token's key is not known.

        Raises `TokenRefused`. However many tokens with unknown keys come, the keys are fetched at
        most once in 30 s.
        """
        ...
