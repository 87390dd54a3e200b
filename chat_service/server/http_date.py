"""The `Date` of a response (RFC 9110, 6.6.1), formatted once per second.

Used by `chat_service.server.fast_connection` and `chat_service.server.tornado_writer`.
"""

import time
from email.utils import formatdate


class DateCache:
    """The current time in HTTP's format, which changes once per second."""

    def __init__(self) -> None:
        self._second = -1
        self._bytes = b""

    def text(self) -> str:
        """Return the current time in HTTP's format."""
        return self.ascii().decode("ascii")

    def ascii(self) -> bytes:
        """Return the same as bytes."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._bytes = formatdate(second, usegmt=True).encode("ascii")
        return self._bytes
