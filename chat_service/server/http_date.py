"""The `Date` of an answer (RFC 9110, 6.6.1), formatted once per second.

`chat_service.server.fast_path` and `chat_service.server.exchange` put it into every answer.
"""

import time
from email.utils import formatdate


class DateCache:
    """Formats the current time; formats it anew only when the second changes."""

    def __init__(self) -> None:
        self._second = -1
        self._bytes = b""

    def text(self) -> str:
        """Return the current time as HTTP writes it."""
        return self.ascii().decode("ascii")

    def ascii(self) -> bytes:
        """Return the same, encoded: what the fast path needs."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._bytes = formatdate(second, usegmt=True).encode("ascii")
        return self._bytes
