"""The stream that Tornado reads a client's requests from.

It reads no further ahead than a request needs, has what Tornado refuses answered like every
other request, and closes lingering. `chat_service.server.exchange` sets the hooks for each request.
"""

import asyncio
import socket
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from tornado.iostream import IOStream, UnsatisfiableReadError

from chat_service.api.problems import Problem, bad_request, head_too_large
from chat_service.server.lingering import Lingering

#: The most that is read ahead of one connection, in bytes.
STREAM_BUFFER_BYTES = 1 << 20
#: So much is read while nobody has asked for data, in bytes: it shows whether the client has gone.
_AHEAD_BYTES = 1 << 10
#: Tornado's own answer to what is not HTTP. It has no body, no headers, and is not counted.
_BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"
#: The first byte of a TLS handshake, and what Tornado reads instead: a head that is malformed.
_TLS_HANDSHAKE, _MALFORMED_HEAD = 0x16, b"\x16\r\n\r\n"


class Awaiting(IntEnum):
    """What a connection waits for: the lower, the sooner it is closed to make room."""

    HEAD = 0
    BODY = 1
    ANSWER = 2


def has_input(sock: socket.socket) -> bool:
    """Return whether something has arrived on a non-blocking socket that is not read yet."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


class HttpStream(IOStream):
    """A client's connection, as Tornado reads and writes it."""

    def __init__(self, sock: socket.socket, lingering: Lingering, held: bytes = b"") -> None:
        """`held` was read from the socket before, and is read first."""
        self._held = held
        self._lingering = lingering
        self._is_first_read = True
        #: What it waits for, and since when, in seconds of the loop's time.
        self.awaiting = Awaiting.HEAD
        self.since = asyncio.get_running_loop().time()
        #: Whether the current request was answered before its client had sent all of it.
        self.is_sending = False
        #: Called with what Tornado refuses to read, to have it answered.
        self.on_refused: Callable[[Problem], None] | None = None
        #: Called with the number of bytes that were read.
        self.on_bytes: Callable[[int], None] | None = None
        super().__init__(sock, STREAM_BUFFER_BYTES)

    @property
    def unread(self) -> int:
        """The bytes in memory that nobody has read from the stream yet."""
        return len(self._held) + self._read_buffer_size

    @property
    def has_input(self) -> bool:
        """Whether something has arrived that is not read yet."""
        return not self.closed() and has_input(self.socket)

    def now_awaits(self, awaiting: Awaiting) -> None:
        """Record what the connection waits for from now on."""
        # Tornado's own loop tells the wall clock's time.
        self.awaiting, self.since = awaiting, asyncio.get_running_loop().time()

    def give_back(self, data: bytes) -> None:
        """Have the last bytes that were read from the stream read again.

        The stream must have no others: `read_bytes` was asked for STREAM_BUFFER_BYTES.
        """
        assert not self._read_buffer_size
        self._held = data + self._held

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Tornado's hook for reading: what is held comes first."""
        if not self.reading():
            buf = memoryview(buf)[:_AHEAD_BYTES]
        if self._held:
            count: int | None = min(len(buf), len(self._held))
            assert count is not None
            buf[:count] = self._held[:count]
            self._held = self._held[count:]
            return self._have_read(buf, count)
        count = super().read_from_fd(buf)
        if count and self.on_bytes is not None:
            self.on_bytes(count)
        return self._have_read(buf, count)

    def _have_read(self, buf: bytearray | memoryview, count: int | None) -> int | None:
        if count and self._is_first_read:
            self._is_first_read = False
            if buf[0] == _TLS_HANDSHAKE:
                # Its head would never end.
                count = len(_MALFORMED_HEAD)
                buf[:count] = _MALFORMED_HEAD
        return count

    def write(self, data: bytes | memoryview) -> "asyncio.Future[None]":
        """Write data; Tornado's bare 400 is replaced by a whole answer."""
        if data == _BARE_400 and self.on_refused is not None:
            self.on_refused(bad_request("the request cannot be read as HTTP/1.1"))
            # It is short, and nothing else waits to be sent: the kernel has it.
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return super().write(data)

    def close(self, exc_info: Any = False) -> None:
        """Close the stream. A head that was too long is answered first."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            refuse, self.on_refused = self.on_refused, None
            if refuse is not None:
                refuse(head_too_large())
        super().close(exc_info)

    def close_fd(self) -> None:
        """Tornado's hook for closing the socket."""
        sock, self.socket = self.socket, None  # type: ignore[assignment]
        self.on_refused = self.on_bytes = None
        self._lingering.close(sock, is_sending=self.is_sending)
