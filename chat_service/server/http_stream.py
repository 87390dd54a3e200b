"""The stream that Tornado reads a client's requests from.

It reads only as far ahead as a request needs, makes sure that requests that Tornado refuses get a
complete response, and closes sockets lingeringly. `chat_service.server.exchange` sets the hooks for
each request.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, TypeVar, cast

from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from chat_service.api.problems import Problem, bad_request, head_too_large
from chat_service.server.lingering import Lingering

#: The most that is read ahead from one connection, in bytes.
STREAM_BUFFER_BYTES = 1 << 20
#: How much is read while no data is wanted, in bytes. It shows whether the client disconnected.
_AHEAD_BYTES = 1 << 10
#: Tornado's own response to bytes that are not HTTP. It has no body and no headers.
_BARE_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"
#: The first byte of a TLS handshake, and the malformed head that Tornado reads instead.
_TLS_HANDSHAKE, _MALFORMED_HEAD = 0x16, b"\x16\r\n\r\n"


class Awaiting(IntEnum):
    """What a connection waits for. A lower one is closed sooner to make room."""

    HEAD = 0
    BODY = 1
    ANSWER = 2


def has_input(sock: socket.socket) -> bool:
    """Return whether a non-blocking socket has unread input, as it arrived from the network."""
    try:
        # A TLS socket's own method cannot peek.
        return bool(socket.socket.recv(sock, 1, socket.MSG_PEEK))
    except OSError:
        return False


T = TypeVar("T")


class _ShortQueue(list[T]):
    """What Tornado needs of a `deque`. An empty one takes 72 instead of 760 bytes."""

    __slots__ = ()

    def popleft(self) -> T:
        return self.pop(0)


class HttpStream(IOStream):
    """A client's connection, as Tornado reads and writes it.

    There are as many as clients that wait. With its own attributes in slots, the others are so few
    that Python keeps them without a dictionary, which takes a kilobyte less.
    """

    __slots__ = (
        "_has_client_left",
        "_held",
        "_is_first_read",
        "_lingering",
        "awaiting",
        "is_sending",
        "on_bytes",
        "on_refused",
        "since",
    )

    def __init__(self, sock: socket.socket, lingering: Lingering, held: bytes = b"") -> None:
        """`held` has already been read from the socket. The stream returns it first."""
        self._held = held
        self._lingering = lingering
        self._is_first_read = True
        #: What the connection waits for, and since when, in seconds of the loop's time.
        self.awaiting = Awaiting.HEAD
        self.since = asyncio.get_running_loop().time()
        #: Whether the current request was answered before its client sent all of it.
        self.is_sending = False
        #: Called with a problem if Tornado refuses to read a request. It writes the response.
        self.on_refused: Callable[[Problem], None] | None = None
        #: Called with the number of bytes that were read.
        self.on_bytes: Callable[[int], None] | None = None
        self._has_client_left = False
        super().__init__(sock, STREAM_BUFFER_BYTES)
        # Few writes are under way at once, because each part of a response awaits the one before.
        self._write_buffer._buffers = cast("deque[Any]", _ShortQueue())
        self._write_futures = cast("deque[Any]", _ShortQueue())

    @property
    def unread(self) -> int:
        """The number of bytes in memory that were not read from the stream yet."""
        return len(self._held) + self._read_buffer_size

    @property
    def has_input(self) -> bool:
        """Whether the socket has unread input."""
        return not self.closed() and has_input(self.socket)

    def now_awaits(self, awaiting: Awaiting) -> None:
        """Record what the connection waits for from now on."""
        # Tornado's own loop returns the time of the wall clock.
        self.awaiting, self.since = awaiting, asyncio.get_running_loop().time()

    def give_back(self, data: bytes) -> None:
        """Put back the last bytes that were read. The next read returns them.

        The stream must have no other bytes: the last `read_bytes` was for STREAM_BUFFER_BYTES.
        """
        assert not self._read_buffer_size
        self._held = data + self._held

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Return the next head. Raises StreamClosedError if the service closed the connection.

        Tornado would go on with the bytes in memory, and so count requests that a client sent
        behind its last one as requests of a client that disconnected.
        """
        if self.closed() and not self._has_client_left and self.error is None:
            raise StreamClosedError
        return super().read_until_regex(regex, max_bytes)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read from the socket, after the bytes that are held. Tornado calls this."""
        if not self.reading():
            buf = memoryview(buf)[:_AHEAD_BYTES]
        if self._held:
            count: int | None = min(len(buf), len(self._held))
            assert count is not None
            buf[:count] = self._held[:count]
            self._held = self._held[count:]
            return self._have_read(buf, count)
        count = super().read_from_fd(buf)
        if count == 0:
            self._has_client_left = True
        if count and self.on_bytes is not None:
            self.on_bytes(count)
        return self._have_read(buf, count)

    def _have_read(self, buf: bytearray | memoryview, count: int | None) -> int | None:
        if count and self._is_first_read:
            self._is_first_read = False
            if buf[0] == _TLS_HANDSHAKE:
                # The handshake has no line ends, so Tornado would wait for more.
                count = len(_MALFORMED_HEAD)
                buf[:count] = _MALFORMED_HEAD
        return count

    def write(self, data: bytes | memoryview) -> "asyncio.Future[None]":
        """Write data. A complete response replaces Tornado's bare 400."""
        if data == _BARE_400 and self.on_refused is not None:
            self.on_refused(bad_request("the request cannot be read as HTTP/1.1"))
            # The response is short and nothing was queued, so the kernel has taken it.
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return super().write(data)

    def close(self, exc_info: Any = False) -> None:
        """Close the stream. Before, answer a head that was too long."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            refuse, self.on_refused = self.on_refused, None
            if refuse is not None:
                refuse(head_too_large())
        super().close(exc_info)

    def close_fd(self) -> None:
        """Close the socket, lingering if needed. Tornado calls this."""
        sock, self.socket = self.socket, None  # type: ignore[assignment]
        self.on_refused = self.on_bytes = None
        self._lingering.close(sock, is_sending=self.is_sending)
