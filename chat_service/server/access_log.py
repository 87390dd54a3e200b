"""Logs a line for each request, up to a number per second. The others are counted.

A line never contains the text of a message. It contains keyed hashes of the inbox and of the
client's address, unless the settings say otherwise. Requests of probes and monitoring are logged at
level debug, and have a limit of their own.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import structlog

log = structlog.get_logger("chat.request")

#: How a line names an inbox or a client.
Naming: TypeAlias = Literal["off", "hashed", "clear"]


class LogRules(NamedTuple):
    """The contents of lines, and their number per second. An empty key means a random one."""

    per_second: int
    usernames: Naming
    clients: Naming
    key: str


class _Lines:
    """Writes a limited number of lines per second, and then the number of suppressed lines."""

    def __init__(self, per_second: int, write: Callable[..., object]) -> None:
        self._per_second = per_second
        self._write = write
        self._second = 0
        self._left = per_second
        self._suppressed = 0

    def take(self) -> bool:
        """Return whether one more line may be written now."""
        now = int(time.monotonic())
        if now != self._second:
            if self._suppressed:
                self._write("requests not logged", count=self._suppressed)
            self._second, self._left, self._suppressed = now, self._per_second, 0
        if self._left <= 0:
            self._suppressed += 1
            return False
        self._left -= 1
        return True


class AccessLog:
    """Writes the lines."""

    def __init__(self, rules: LogRules) -> None:
        self._rules = rules
        self._key = (rules.key or secrets.token_hex(16)).encode()[:32]
        self._asked = _Lines(rules.per_second, log.info)
        self._probed = _Lines(rules.per_second, log.debug)

    def write(
        self,
        request_id: str,
        method: str,
        route: str,
        inbox: str,
        client: str,
        status: int,
        seconds: float,
        *,
        is_probe: bool = False,
    ) -> None:
        """Log one answered request.

        `inbox` is the path's segment as sent, or empty; `client` its address.
        """
        if not (self._probed if is_probe else self._asked).take():
            return
        named = {}
        if inbox and self._rules.usernames != "off":
            named["inbox"] = self._name(inbox, self._rules.usernames)
        if client and self._rules.clients != "off":
            named["client"] = self._name(client, self._rules.clients)
        (log.debug if is_probe else log.info)(
            "request",
            id=request_id,
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **named,
        )

    def _name(self, name: str, naming: Naming) -> str:
        if naming == "clear":
            return name
        return hashlib.blake2s(name.encode(), key=self._key, digest_size=6).hexdigest()
