"""A raw connection that keeps every received byte, even if the server resets it afterwards.

When a write fails, a transport of asyncio loses everything that it has not read.
"""

import asyncio
import socket
import struct
from collections.abc import Sequence

_READ_BYTES = 1 << 20


class Wire:
    """One connection to a service on this machine."""

    #: When any connection last received anything, on the loop's clock.
    heard_at = 0.0

    def __init__(self, sock: socket.socket) -> None:
        self.received = bytearray()
        self.is_closed = False
        self._sock = sock
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    @classmethod
    async def connect(cls, port: int, receive_buffer: int = 0) -> "Wire":
        """Connect to this port. With a small buffer, the client can be made to receive slowly."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(self, segments: Sequence[bytes]) -> None:
        """Send these segments one by one, so that the server, on the same loop, reads them one by
        one.
        """
        for segment in segments:
            if self.is_closed:
                return
            try:
                async with asyncio.timeout(20):
                    await self._loop.sock_sendall(self._sock, segment)
            except (OSError, TimeoutError):
                # The connection is closed; earlier answers can still be read.
                return
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def until(self, end: bytes, within_s: float) -> bool:
        """Wait until `end` was received. Return False if it does not arrive."""
        while end not in self.received:
            if self.is_closed or not await self.news(within_s):
                return False
        return True

    async def until_closed(self, quiet_s: float) -> bool:
        """Wait for the server to close the connection. Return False if all connections have been
        quiet for `quiet_s`: a server that is busy with others may still answer.
        """
        while not self.is_closed:
            if not await self.news(quiet_s) and self._loop.time() - Wire.heard_at > quiet_s:
                return False
        return True

    async def news(self, within_s: float) -> bool:
        """Wait for more data or for the end. Return False if neither arrives."""
        try:
            await asyncio.wait_for(self._news.wait(), within_s)
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def pause(self) -> None:
        """Stop receiving, so that the server's writes pile up."""
        if not self.is_closed:
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Receive again."""
        if not self.is_closed:
            self._loop.add_reader(self._sock, self._read)

    def half_close(self) -> None:
        """Close the sending side."""
        if not self.is_closed:
            self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, by_reset: bool = False) -> None:
        """Close the connection from this side. Safe to call twice."""
        if not self.is_closed and by_reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        Wire.heard_at = self._loop.time()
        if data:
            self.received += data
            self._news.set()
        else:
            self._end()

    def _end(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._news.set()
