"""Formats a response of the fast path, and sends it as fast as its client takes it.

Used by `chat_service.server.fast_connection`.
"""

import asyncio
import socket
from collections.abc import Mapping
from http.client import responses

from msgspec import Struct

from chat_service.api.types import JSON_HEADERS

_FORMAT = b"%b%b\r\nX-Content-Type-Options: nosniff\r\nDate: %b\r\nContent-Length: %d\r\n%b\r\n%b"


def format_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    date: bytes,
    is_last: bool,
) -> bytes:
    """Return a response as it is sent; `is_last` announces that the connection is closed then."""
    start = _JSON_STARTS[status] if headers is JSON_HEADERS else _start(status, headers)
    return _FORMAT % (
        start,
        request_id.encode("ascii"),
        date,
        len(body),
        b"Connection: close\r\n" if is_last else b"",
        body,
    )


def _start(status: int, headers: Mapping[str, str]) -> bytes:
    """Return a response's head, up to the value of its request id."""
    lines = [f"HTTP/1.1 {status} {responses[status]}"]
    lines += (f"{name}: {value}" for name, value in headers.items())
    # Tornado writes the name like this, too.
    return "\r\n".join((*lines, "X-Request-Id: ")).encode("latin1")


#: Nearly all responses start like this. They are formatted once.
_JSON_STARTS = {status: _start(status, JSON_HEADERS) for status in (200, 201)}


class ResponseWriter(Struct):
    """The rest of a response that its client takes slowly. After it `is_last`, its connection
    closes.

    `timer` closes the connection of a client that does not take the response in time.
    """

    status: int
    is_last: bool
    unsent: memoryview
    timer: asyncio.TimerHandle | None = None

    def send(self, sock: socket.socket) -> bool:
        """Send what the kernel takes now. Return whether that was the rest of the response.

        Raises `OSError` if the connection is broken.
        """
        try:
            count = sock.send(self.unsent)
        except BlockingIOError:
            return False
        if count == len(self.unsent):
            return True
        self.unsent = self.unsent[count:]
        return False

    def stop_timer(self) -> None:
        """Do not wait for the client any longer."""
        if self.timer is not None:
            self.timer.cancel()
