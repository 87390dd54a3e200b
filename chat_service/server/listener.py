"""Listens on a socket and accepts connections.

Several processes may share one socket. Each accepts a few connections per turn of its loop. So no
process takes a whole burst, and connections do not wait for a process that is stopped. Every
connection begins on the fast path (`chat_service.server.fast_path`), after its handshake if the
port has TLS (`chat_service.server.handshake`), and moves to Tornado with its first ineligible
request. Used by `chat_service.service`; `chat_service.supervisor` binds the
sockets of its processes.
"""

import asyncio
import contextlib
import errno
import heapq
import resource
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

import structlog
from msgspec.structs import astuple
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.netutil import bind_sockets

from chat_service.access.clients import key_of_address, peer_of
from chat_service.api.problems import answer_to, too_many_connections
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.connection import ConnectionLimits, Server, ServerConnection
from chat_service.server.fast_connection import FastPathConnection
from chat_service.server.fast_path import FastPath
from chat_service.server.handoff import Handoff, PrefetchedStream
from chat_service.server.handshake import Address, Handshake
from chat_service.server.header_cache import HeaderCache
from chat_service.server.http_stream import Awaiting, HttpStream
from chat_service.server.request_tracker import RequestTracker
from chat_service.server.response_writer import format_response
from chat_service.server.tls import Tls
from workers.ticks import until_next

if TYPE_CHECKING:
    from tornado.httpserver import _HTTPRequestContext

log = structlog.get_logger(__name__)

#: The most connections accepted in one turn of the loop.
_AT_ONCE = 8
#: The pause in accepting when no descriptor is free, in seconds.
_REST_S = 0.1
#: Descriptors that are reserved for the database, the logs and the metrics.
_SPARE_DESCRIPTORS = 64
#: How often connections that were idle too long are searched, in seconds.
_SWEEP_EVERY_S = 1.0
_BACKLOG = 1024
#: The least number of connections that a search for closable ones returns, if there are enough.
_SPARE_MIN = 32
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class PortTaken(Exception):
    """Raised if the address to listen on cannot be used. The message says what to do."""


#: The names of the settings of an address, for error messages: its host, and its port.
NAMES, OPS_NAMES = ("--host", "--port (0 picks a free one)"), ("ops_host", "ops_port (0: none)")


def bind(host: str, port: int, names: tuple[str, str] = NAMES) -> list[socket.socket]:
    """Return sockets that listen on an address. Raises `PortTaken`.

    Called before anything else is started, because a used port is the most common mistake.
    """
    host_name, port_name = names
    # Tornado's IPv6 sockets do not accept IPv4. So `::` means one of each, as usual on Linux.
    address = None if host == "::" else host
    shown = f"[{host}]" if ":" in host else host
    try:
        return bind_sockets(port, address, backlog=_BACKLOG)
    except UnicodeError:
        raise PortTaken(f"cannot listen on {shown}: {host_name} is not a host name") from None
    except OSError as error:
        advice = (
            f"stop the process that uses it, or choose another with {port_name}"
            if error.errno == errno.EADDRINUSE
            else f"{host_name} must be an address of this machine"
            if error.errno != errno.EACCES
            else f"choose a port above 1023 with {port_name}"
        )
        raise PortTaken(f"cannot listen on {shown}:{port}: {error.strerror}; {advice}") from error


def inherited(descriptors: str) -> list[socket.socket]:
    """Return the listening sockets that the supervisor passed on, from a list like `5,6`."""
    sockets = [socket.socket(fileno=int(each)) for each in descriptors.split(",") if each]
    for each in sockets:
        each.setblocking(False)
    return sockets


def addresses_of(sockets: Iterable[socket.socket]) -> list[str]:
    """Return the addresses that these sockets listen on."""
    return [each.getsockname()[0] for each in sockets]


class _Spare(NamedTuple):
    """A connection that can be closed to make room, and its state when it was found."""

    awaiting: Awaiting
    #: How many connections its client had then.
    of_client: int
    since: float
    connection: FastPathConnection | Handshake | HttpStream

    @property
    def order(self) -> tuple[Awaiting, int, float]:
        """Return what is lower for a connection that is closed sooner."""
        return self.awaiting, -self.of_client, self.since


class Listener(Server):
    """Tornado's server with the fast path. Accepts fairly, and only what it can serve."""

    def initialize(  # type: ignore[override]
        self,
        exchanges: HTTPServerConnectionDelegate,
        tracker: RequestTracker,
        inbox: InboxHandlers,
        on_handoff: Callable[[], None],
        limits: ConnectionLimits,
        tls: Tls | None = None,
    ) -> None:
        """Serve requests with `exchanges`, and those that are eligible with `inbox` directly.

        `on_handoff` is called for each connection that leaves the fast path.
        """
        super().initialize(exchanges, limits, tls)
        self._tracker = tracker
        self._counter = tracker.connections
        self._on_handoff = on_handoff
        self._connections_max = connections_max()
        self._resting: asyncio.TimerHandle | None = None
        self._fast_path = FastPath(
            tracker,
            inbox,
            HeaderCache(tracker.max_body_bytes, tracker.host_rule, tracker.gate),
            self.lingering,
            self._take_over,
            header_max=limits.header_max_bytes,
            idle_timeout_s=limits.idle_timeout_s,
        )
        # The first thing that happens to an accepted connection.
        self._begin = self._fast_path.connect if self.handshakes is None else self.handshakes.begin
        self._sweep: asyncio.TimerHandle | None = None
        self._spare: list[_Spare] = []
        self._spared = 0

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        for listening in sockets:
            self._sockets[listening.fileno()] = listening
            self._handlers[listening.fileno()] = lambda: None
        self._listen()
        self._sweep_again()

    def stop(self) -> None:
        if not self._stopped:
            self._pause()
        super().stop()

    def end_keep_alive(self) -> None:
        """Close each connection after its next response."""
        self._fast_path.end_keep_alive()
        self.conn_params.no_keep_alive = True

    def forget_ended(self) -> None:
        """Identify the senders of later requests again if their identity has changed or ended."""
        self._fast_path.header_cache.forget_ended()

    async def close_all_connections(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._fast_path.close()
        await super().close_all_connections()

    @property
    def handshake_steps(self) -> int:
        """How often a client has sent a part of a TLS handshake."""
        return 0 if self.handshakes is None else self.handshakes.steps

    def accept_waiting(self) -> None:
        """Accept all waiting connections. Closing the listening socket would reset them."""
        for listening in self._sockets.values():
            while self._accept(listening):
                pass

    def on_close(self, server_conn: object) -> None:
        """Count a connection that Tornado has closed, or has given to another protocol."""
        context = cast(ServerConnection, server_conn).context
        self._counter.closed(cast("_HTTPRequestContext", context).address)
        super().on_close(server_conn)

    def _take_over(self, handoff: Handoff) -> None:
        self._on_handoff()
        self.handle_stream(PrefetchedStream(handoff, self.lingering), handoff.address)

    def _sweep_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(until_next(_SWEEP_EVERY_S), self._sweep_again)
        self._fast_path.sweep()
        if self._spared:
            log.warning("idle connections were closed to make room for others", count=self._spared)
            self._spared = 0

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._resting = None
        for listening in self._sockets.values():
            loop.add_reader(listening, self._accept_some, listening)

    def _pause(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
            return
        loop = asyncio.get_running_loop()
        for listening in self._sockets.values():
            loop.remove_reader(listening)

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if not self._accept(listening):
                return

    def _accept(self, listening: socket.socket) -> bool:
        """Accept one connection. Return False if none waits or none can be accepted now."""
        used = self._counter.open + len(self.lingering)
        if used >= self._connections_max:
            if not _waits(listening):
                return False
            if not self._make_room():
                return self._rest("all connections are being served, and no more can be opened")
        try:
            connection, address = listening.accept()
        except OSError as error:
            # Otherwise no connection waits, or the client has disconnected.
            return error.errno in _EXHAUSTED and self._rest(str(error))
        if not self._counter.admits(address):
            self._refuse(connection)
            return True
        try:
            self._begin(connection, address)
        except OSError as error:
            # The client has disconnected.
            log.debug("a connection was not accepted", reason=str(error))
            connection.close()
        else:
            self._counter.opened(address)
        return True

    def _on_secure(self, sock: socket.socket, address: Address) -> None:
        self._fast_path.connect(sock, address)

    def _on_insecure(self, address: Address) -> None:
        self._counter.closed(address)

    def _refuse(self, connection: socket.socket) -> None:
        """Answer 429 before anything is read, and close the connection. With TLS, only close it."""
        connection.setblocking(False)
        if self.handshakes is not None:
            connection.close()
            return
        request_id = self._tracker.next_request_id()
        status, headers, body = astuple(answer_to(too_many_connections(), request_id))
        date = self._tracker.date.ascii()
        with contextlib.suppress(OSError):
            # The kernel takes so few bytes at once on a new connection.
            connection.send(format_response(status, headers, body.body, request_id, date, True))
        self.lingering.close(connection, is_sending=True)

    def _make_room(self) -> bool:
        """Close the least useful connection. Return False if all are being served."""
        if self.lingering.close_oldest():
            return True
        if not self._spare:
            self._spare = self._find_spare()
        while self._spare:
            spare = self._spare.pop()
            connection = spare.connection
            is_as_found = (connection.awaiting, connection.since) == (spare.awaiting, spare.since)
            # Unread input may be a whole request.
            if is_as_found and not connection.has_input:
                self._spared += 1
                connection.close()
                return True
        return False

    def _find_spare(self) -> list["_Spare"]:
        """Return some connections that can be closed, in reverse order: the first to close is last.

        That is the longest idle one of the client with the most connections. A trusted proxy is not
        one client, so its are closed after those of clients. Connections with an incomplete body
        are closed only if none is idle.
        """
        early = [] if self.handshakes is None else self.handshakes.connections()
        plain = self._fast_path.connections()
        late = [*self._connections]
        connections: list[FastPathConnection | Handshake | HttpStream] = [
            *early,
            *plain,
            *(cast(HttpStream, each.stream) for each in late),
        ]
        addresses = [
            *(each.address for each in early),
            *(each.address for each in plain),
            *(cast("_HTTPRequestContext", each.context).address for each in late),
        ]
        clients = [self._client_of(address) for address in addresses]
        counts = Counter(clients)
        waiting = (
            _Spare(each.awaiting, counts[client] if client else 0, each.since, each)
            for each, client in zip(connections, clients, strict=True)
            if each.awaiting is not Awaiting.ANSWER
        )
        # Each search looks at all connections, so it must find many.
        count = max(_SPARE_MIN, self._counter.open // 64)
        return heapq.nsmallest(count, waiting, key=lambda each: each.order)[::-1]

    def _client_of(self, address: Address) -> str:
        """Return the key of the client at an address, or '' for a trusted proxy."""
        peer, proxies = peer_of(address), self._tracker.proxies
        return "" if proxies is not None and proxies.trusts(peer) else key_of_address(peer)

    def _rest(self, reason: str) -> bool:
        """Accept nothing for a while. Otherwise the loop would try again at once, in vain."""
        if self._resting is None and not self._stopped:
            log.warning("accepting connections is paused", reason=reason)
            self._pause()
            self._resting = asyncio.get_running_loop().call_later(_REST_S, self._listen)
        return False


def _waits(listening: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return bool(poll.poll(0))


def connections_max() -> int:
    """Return how many connections a process can have open."""
    return use_all_descriptors() - _SPARE_DESCRIPTORS


def use_all_descriptors() -> int:
    """Raise the limit of descriptors as far as allowed. Return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard > 0 else 1 << 20
