"""Lingering close: lets clients that are still sending read their response.

A socket that is closed while it holds unread input resets its connection, and the reset may reach
the client before it has read the response. So we stop sending, then read and drop its input,
within limits on time, size and number. `chat_service.server.fast_connection` and
`chat_service.server.http_stream` close their sockets this way.
"""

import asyncio
import contextlib
import socket

#: A client is disconnected if it sends nothing for this time, and at the latest after the second.
_GAP_S, _LINGER_S = 2.0, 30.0
#: The most that is read and dropped from one client, in bytes.
DROPPED_MAX = 64 << 20
#: The most sockets that linger at once. For one more, the oldest is closed.
LINGERING_MAX = 64

# A buffer for dropped input.
_sink = bytearray(64 << 10)


class Lingering:
    """The sockets of a process that are about to be closed."""

    def __init__(self, most: int = LINGERING_MAX) -> None:
        self._most = most
        self._open: dict[socket.socket, _Rest] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._open)

    def close(self, sock: socket.socket, *, is_sending: bool) -> None:
        """Close a non-blocking socket, now or once its client has stopped sending.

        `is_sending` says that the client has not sent all of its request. Otherwise the socket
        lingers only if input is waiting in it.
        """
        try:
            sock.shutdown(socket.SHUT_WR)
            count = sock.recv_into(_sink)
        except BlockingIOError:
            count = -1 if is_sending else 0
        except OSError:
            count = 0
        if not count:
            sock.close()
            return
        if len(self._open) >= self._most:
            self.close_oldest()
        self._open[sock] = _Rest(self, sock)
        self._empty.clear()

    def close_oldest(self) -> bool:
        """Close the socket that has lingered longest. Return False if there is none."""
        for rest in self._open.values():
            rest.end()
            return True
        return False

    async def end(self, timeout_s: float) -> None:
        """Wait until all sockets are closed. Close those that are left after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        while self.close_oldest():
            pass

    def forget(self, sock: socket.socket) -> None:
        """Forget a lingering socket that was closed."""
        del self._open[sock]
        if not self._open:
            self._empty.set()


class _Rest:
    """One lingering socket, and the input that its client still sends."""

    def __init__(self, lingering: Lingering, sock: socket.socket) -> None:
        self._lingering = lingering
        self._socket = sock
        self._left = DROPPED_MAX
        self._left_before = self._left
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + _LINGER_S
        self._timer = self._loop.call_later(_GAP_S, self._check)
        self._loop.add_reader(sock, self._on_readable)

    def end(self) -> None:
        """Close the socket."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._lingering.forget(self._socket)

    def _on_readable(self) -> None:
        try:
            count = self._socket.recv_into(_sink)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._left -= count
        if not count or self._left < 0:
            self.end()

    def _check(self) -> None:
        if self._left == self._left_before or self._loop.time() > self._deadline:
            self.end()
            return
        self._left_before = self._left
        self._timer = self._loop.call_later(_GAP_S, self._check)
