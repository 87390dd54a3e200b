"""One log line for each request, up to so many a second; the rest are counted.

Never the text of a message; the inbox by a keyed hash of its name unless a setting says
otherwise.
"""

import hashlib
import secrets
import time
from typing import Literal

import structlog

log = structlog.get_logger("chat.request")


class RequestLog:
    """Writes request lines within a budget of `per_second`."""

    def __init__(
        self, per_second: int, usernames: Literal["off", "hashed", "clear"], username_key: str
    ) -> None:
        self._per_second = per_second
        self._usernames = usernames
        self._key = (username_key or secrets.token_hex(16)).encode()[:64]
        self._second = 0
        self._left = per_second
        self._suppressed = 0

    def write(
        self, request_id: str, method: str, route: str, inbox: str, status: int, seconds: float
    ) -> None:
        """Log one answered request. `inbox` is the path's segment as sent, or empty."""
        now = int(time.monotonic())
        if now != self._second:
            if self._suppressed:
                log.info("requests not logged", count=self._suppressed)
            self._second, self._left, self._suppressed = now, self._per_second, 0
        if self._left <= 0:
            self._suppressed += 1
            return
        self._left -= 1
        fields = {"inbox": self._name(inbox)} if inbox and self._usernames != "off" else {}
        log.info(
            "request",
            id=request_id,
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **fields,
        )

    def _name(self, inbox: str) -> str:
        if self._usernames == "clear":
            return inbox
        return hashlib.blake2s(inbox.encode(), key=self._key[:32], digest_size=6).hexdigest()
