"""Tornado's HTTP/1 connections and server, with TLS, our stream and our reader of chunks.

`chat_service.server.listener` extends the server; the operators' port uses it as it is.
"""

import asyncio
import socket
from typing import NamedTuple, cast

import structlog
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer, _HTTPRequestContext
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from chat_service.server.chunks import read_chunks
from chat_service.server.handshake import Address, Handshakes
from chat_service.server.header_cache import HEADERS_MAX
from chat_service.server.http_stream import HttpStream
from chat_service.server.lingering import Lingering
from chat_service.server.tls import Tls

log = structlog.get_logger(__name__)

#: When the service stops: how long clients that still send can read their responses, in seconds.
_LINGER_AT_STOP_S = 1.0


class ConnectionLimits(NamedTuple):
    """The limits of every connection: bytes of a request's head, and seconds."""

    header_max_bytes: int
    #: How long a connection may be idle between requests.
    idle_timeout_s: float
    #: How long a request's body may take to arrive.
    body_timeout_s: float


class Connection(HTTP1Connection):
    """Reads one request and writes its response."""

    def _parse_headers(self, data: bytes) -> tuple[str, HTTPHeaders]:
        # The first line is the request line, and the last one is empty.
        if data.count(b"\n") > HEADERS_MAX + 2:
            # As for a head of too many bytes: the stream answers it, and is closed.
            too_many = UnsatisfiableReadError("too many header lines")
            self.stream.close(too_many)
            raise too_many
        return super()._parse_headers(data)

    async def _read_fixed_body(self, content_length: int, delegate: HTTPMessageDelegate) -> None:
        while content_length:
            most = min(self.params.chunk_size, content_length)
            piece = await self.stream.read_bytes(most, partial=True)
            content_length -= len(piece)
            await self._deliver_body(delegate, piece)
            if content_length:
                # Other connections get their turn after each piece. Tornado would read four.
                await asyncio.sleep(0)

    async def _read_chunked_body(self, delegate: HTTPMessageDelegate) -> None:
        async def deliver(data: bytes) -> None:
            await self._deliver_body(delegate, data)

        await read_chunks(cast(HttpStream, self.stream), deliver)


class ServerConnection(HTTP1ServerConnection):
    """Serves the requests of one connection, one after the other."""

    def start_serving(self, delegate: HTTPServerConnectionDelegate) -> None:
        # Tornado would also keep the task in its own list, and watch it with two more callbacks.
        self._serving_future = asyncio.create_task(self._server_request_loop(delegate))

    async def _server_request_loop(self, delegate: HTTPServerConnectionDelegate) -> None:
        try:
            is_open = True
            while is_open:
                connection = Connection(self.stream, False, self.params, self.context)
                exchange = delegate.start_request(self, connection)
                try:
                    is_open = await connection.read_response(exchange)
                except (StreamClosedError, UnsatisfiableReadError, asyncio.CancelledError):
                    return
                except Exception:
                    log.exception("a connection failed")
                    connection.close()
                    return
                # Other connections get their turn.
                await asyncio.sleep(0)
        finally:
            delegate.on_close(self)


class Server(HTTPServer):
    """Tornado's server, with `ServerConnection`s on `HttpStream`s."""

    def initialize(  # type: ignore[override]
        self,
        exchanges: HTTPServerConnectionDelegate,
        limits: ConnectionLimits,
        tls: Tls | None = None,
    ) -> None:
        """Serve with TLS if `tls` is given."""
        self.lingering = Lingering()
        #: None without TLS.
        self.handshakes = (
            None
            if tls is None
            else Handshakes(tls, self.lingering, self._on_secure, self._on_insecure)
        )
        super().initialize(
            exchanges,
            max_header_size=limits.header_max_bytes,
            idle_connection_timeout=limits.idle_timeout_s,
            body_timeout=limits.body_timeout_s,
            # The exchange answers requests with long bodies. Tornado would only close.
            max_body_size=1 << 62,
        )

    def _handle_connection(self, connection: socket.socket, address: Address) -> None:
        # Tornado calls this for each connection that it has accepted. It may be closed already.
        if self.handshakes is None:
            super()._handle_connection(connection, address)
            return
        try:
            self.handshakes.begin(connection, address)
        except OSError as error:
            log.debug("a connection was not accepted", reason=str(error))
            connection.close()

    def _on_secure(self, sock: socket.socket, address: Address) -> None:
        """Serve a connection whose handshake is done."""
        self.handle_stream(HttpStream(sock, self.lingering), address)

    def _on_insecure(self, address: Address) -> None:
        """Record that a connection was closed before its handshake was done."""

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        """Serve a connection that was accepted."""
        if not isinstance(stream, HttpStream):
            stream = HttpStream(stream.socket, self.lingering)
        context = _HTTPRequestContext(stream, address, self.protocol, self.trusted_downstream)
        connection = ServerConnection(stream, self.conn_params, context)
        self._connections.add(connection)
        connection.start_serving(self)

    async def close_all_connections(self) -> None:
        """Close all connections. Lingering ones have a moment to end by themselves."""
        if self.handshakes is not None:
            self.handshakes.close()
        await super().close_all_connections()
        await self.lingering.end(_LINGER_AT_STOP_S)
