"""Who sent a request, and what they may do: plain values, made by `chat_service.access`.

With `access=off` every request has the identity `EVERYONE`, which may do everything.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

from msgspec import Struct

#: What a request needs: to send to a name, to read a name, to use the operators' routes, or to be
#: anyone at all who has a token or some right.
Right: TypeAlias = Literal["send", "read", "ops", "any"]


class Rights(Struct, frozen=True):
    """The names that an identity may send to and read, as patterns, and whether it is an operator.

    A pattern is a whole name, or the beginning of a name followed by one `*`. It is compared with
    the decoded name, code point by code point.
    """

    send: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    ops: bool = False

    def allow(self, right: Right, name: str = "") -> bool:
        """Return whether these rights include one, for one name."""
        if right == "ops":
            return self.ops
        prefixes, names = _compiled(self.send if right == "send" else self.read)
        return name.startswith(prefixes) or name in names

    def allow_some(self, right: Right) -> bool:
        """Return whether these rights include one, for any name at all."""
        if right == "ops":
            return self.ops
        if right == "any":
            return bool(self.send or self.read or self.ops)
        return bool(self.send if right == "send" else self.read)


class Identity(Struct, frozen=True):
    """The subject of a request and its rights.

    `subject` is the name of a token or of a user, and empty for anonymous requests. `until` and
    `issued` are in seconds since 1970; an identity without an end has 0. `digest` is the
    SHA-256 digest of a token that the access file lists, and empty for other identities.
    """

    subject: str
    rights: Rights
    until: float = 0.0
    issued: float = 0.0
    digest: bytes = b""


#: The identity of every request with `access=off`.
EVERYONE = Identity("", Rights(("*",), ("*",), ops=True))


class Client(Struct, frozen=True, gc=False):
    """The sender of a request: its identity, and the key that its limits are counted under.

    The key is `sub:` with the subject, or else `ip:` with the IPv4 address or the /64 network of
    the IPv6 address. `chat_service.access.clients` makes it.
    """

    identity: Identity
    key: str


#: A client without limits, for requests that are not a client's.
UNLIMITED = Client(EVERYONE, "")


@lru_cache(4096)
def _compiled(patterns: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the prefixes and the whole names among patterns. An identity has few patterns."""
    prefixes = tuple(each[:-1] for each in patterns if each.endswith("*"))
    return prefixes, frozenset(each for each in patterns if not each.endswith("*"))
