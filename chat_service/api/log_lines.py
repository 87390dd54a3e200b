"""How log lines name inboxes and clients, and how many lines are written.

Used by `chat_service.server.access_log` and by `chat_service.access.audit`.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

#: How a line names an inbox or a client.
Naming: TypeAlias = Literal["off", "hashed", "clear"]
#: With this variable, a supervisor gives its processes one random key.
NODE_KEY_VARIABLE = "LOG_NAMES_KEY"


#: The first word of a User-Agent names the program. What follows may tell who its user is.
_AGENT = re.compile(r"[!-~]{1,40}")


def agent_of(headers: Mapping[str, str]) -> str:
    """Return the name of the program that sent a request: printable ASCII, 40 characters at most.

    It is empty if the client sent none. A thousand clients of a kind share one string.
    """
    found = _AGENT.match(headers.get("User-Agent", ""))
    return "" if found is None else _shared(found[0])


@lru_cache(maxsize=1024)
def _shared(name: str) -> str:
    # Not `sys.intern`: Python 3.12 never frees its strings, and a client chooses these.
    return name


def hash_name(name: str, key: str) -> str:
    """Return the hash that stands for a name in the lines of a service with this key."""
    return hashlib.blake2s(name.encode(), key=key.encode()[:32], digest_size=6).hexdigest()


class LogNames:
    """Names inboxes and addresses in log lines: not at all, by a keyed hash, or clearly."""

    def __init__(self, usernames: Naming, addresses: Naming, key: str) -> None:
        """An empty key means a random one, which `share_inboxes` replaces for inboxes."""
        self._usernames = usernames
        self._addresses = addresses
        self._inbox_key = self._address_key = key or secrets.token_hex(16)

    def share_inboxes(self, key: str) -> None:
        """Name inboxes by the key of all nodes, so that an operator can compute a hash.

        Addresses keep the random key. Who can read the database knows names of inboxes anyway, but
        no addresses, and could try all addresses with a known key.
        """
        self._inbox_key = key

    def fields(self, username: str, address: str) -> Mapping[str, str]:
        """Return the fields of a line about an inbox and an address, which can be empty."""
        fields = {}
        if username and self._usernames != "off":
            fields["inbox"] = _named(username, self._usernames, self._inbox_key)
        if address and self._addresses != "off":
            fields["client"] = _named(address, self._addresses, self._address_key)
        return fields

    def agent(self, name: str) -> Mapping[str, str]:
        """Return the field with the name of a client's program, if lines may name clients."""
        return {"agent": name} if name and self._addresses != "off" else {}


def _named(name: str, naming: Naming, key: str) -> str:
    if naming == "clear":
        # Control characters would be commands to the terminal that shows the line.
        return name if name.isprintable() else ascii(name)[1:-1]
    return hash_name(name, key)


class LineBudget:
    """Permits a number of lines per second, and then writes how many were not permitted."""

    def __init__(self, per_second: int, write: Callable[..., object], suppressed: str) -> None:
        """`suppressed` is the line about the others, written with `write`."""
        self._per_second = per_second
        self._write = write
        self._line = suppressed
        self._second = 0
        self._left = per_second
        self._suppressed = 0

    def take(self, wanted: int = 1) -> int:
        """Return how many of so many lines may be written now."""
        now = int(time.monotonic())
        if now != self._second:
            if self._suppressed:
                self._write(self._line, count=self._suppressed)
            self._second, self._left, self._suppressed = now, self._per_second, 0
        taken = min(wanted, self._left)
        self._left -= taken
        self._suppressed += wanted - taken
        return taken
