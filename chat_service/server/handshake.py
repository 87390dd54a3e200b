"""TLS handshakes: what happens to an accepted connection before its first request.

A handshake never blocks the loop, however slow the client is. Made by
`chat_service.server.connection` for each port that has TLS.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

import structlog

from chat_service.api.problems import answer_to, plain_http
from chat_service.api.types import BodyChunk
from chat_service.server.http_date import DateCache
from chat_service.server.http_stream import Awaiting, has_input
from chat_service.server.lingering import Lingering
from chat_service.server.response_writer import format_response
from chat_service.server.tls import Tls, TlsSocket

log = structlog.get_logger(__name__)

#: The longest time for a handshake, in seconds.
HANDSHAKE_S = 10.0
#: The first byte of a TLS connection.
_TLS_HANDSHAKE = 0x16

Address: TypeAlias = tuple[object, ...]


class Handshakes:
    """The handshakes in progress on one port."""

    def __init__(
        self,
        tls: Tls,
        lingering: Lingering,
        on_done: Callable[[TlsSocket, Address], None],
        on_failed: Callable[[Address], None],
    ) -> None:
        """Pass each connection to `on_done`, or close it and call `on_failed`.

        `on_done` may raise `OSError` if the client has disconnected.
        """
        self.tls = tls
        self.lingering = lingering
        self.on_done, self.on_failed = on_done, on_failed
        self.loop = asyncio.get_running_loop()
        self.date = DateCache()
        #: How often a client has sent a part of a handshake.
        self.steps = 0
        self._open: set[Handshake] = set()

    def begin(self, sock: socket.socket, address: Address) -> None:
        """Begin a handshake on an accepted connection. Raises `OSError` if it is closed."""
        self._open.add(Handshake(self, sock, address))

    def connections(self) -> list["Handshake"]:
        """Return the connections whose handshake is in progress."""
        return [*self._open]

    def forget(self, handshake: "Handshake") -> None:
        """Forget a handshake that has ended."""
        self._open.discard(handshake)

    def close(self) -> None:
        """Close every connection whose handshake is in progress."""
        for handshake in [*self._open]:
            handshake.close()


class Handshake:
    """One connection until its handshake is done. It counts as a connection of its port."""

    awaiting = Awaiting.HEAD

    def __init__(self, handshakes: Handshakes, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        loop = handshakes.loop
        self.since = loop.time()
        self._handshakes = handshakes
        self._socket: socket.socket | TlsSocket = sock
        self.address = address
        self._is_over = self._waits_to_write = False
        self._timer = loop.call_later(HANDSHAKE_S, self.close)
        loop.add_reader(sock, self._on_first_byte)

    @property
    def has_input(self) -> bool:
        """Whether bytes have arrived that were not read yet."""
        return not self._is_over and has_input(self._socket)

    def close(self) -> None:
        """Give the handshake up, and close the connection. Harmless if it is over."""
        if not self._is_over:
            self._end()
            self._handshakes.lingering.close(self._socket, is_sending=False)
            self._handshakes.on_failed(self.address)

    def _on_first_byte(self) -> None:
        try:
            first = self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            first = b""
        if not first:
            self.close()
        elif first[0] != _TLS_HANDSHAKE:
            self._refuse_plain_text()
        else:
            self._begin()

    def _refuse_plain_text(self) -> None:
        """Answer a client that does not speak TLS: it probably has the wrong address."""
        response = answer_to(plain_http(), "-")
        assert isinstance(response.body, BodyChunk)
        date = self._handshakes.date.ascii()
        status, body = response.status, response.body.body
        try:
            self._socket.send(format_response(status, response.headers, body, "-", date, True))
        except OSError as error:
            log.debug("a client without TLS got no answer", reason=str(error))
        self.close()

    def _begin(self) -> None:
        loop = self._handshakes.loop
        loop.remove_reader(self._socket)
        try:
            self._socket = self._handshakes.tls.context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
        except OSError as error:
            self._fail(error)
            return
        loop.add_reader(self._socket, self._step)
        self._step()

    def _step(self) -> None:
        """Go on with what the client has sent."""
        assert isinstance(self._socket, TlsSocket)
        self._handshakes.steps += 1
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            self._wait(to_write=False)
        except ssl.SSLWantWriteError:
            self._wait(to_write=True)
        except OSError as error:
            self._fail(error)
        else:
            self._end()
            try:
                self._handshakes.on_done(self._socket, self.address)
            except OSError as error:
                self._fail(error)

    def _wait(self, to_write: bool) -> None:
        """Wait until the client sends, or takes, more."""
        if to_write == self._waits_to_write:
            return
        self._waits_to_write = to_write
        loop = self._handshakes.loop
        if to_write:
            loop.remove_reader(self._socket)
            loop.add_writer(self._socket, self._step)
        else:
            loop.remove_writer(self._socket)
            loop.add_reader(self._socket, self._step)

    def _fail(self, error: OSError) -> None:
        log.debug("a TLS handshake failed", reason=str(error))
        if self._is_over:
            self._handshakes.lingering.close(self._socket, is_sending=False)
            self._handshakes.on_failed(self.address)
        else:
            self.close()

    def _end(self) -> None:
        """Take the socket away from the loop."""
        self._is_over = True
        self._timer.cancel()
        loop = self._handshakes.loop
        # A client that resets its connection while `_begin` wraps it leaves a closed socket.
        if self._socket.fileno() >= 0:
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
        self._handshakes.forget(self)
