"""The listening socket, and how connections are taken from it.

Several processes may share one socket. Each takes a few connections in a turn of its loop, so
that none of them takes all of a burst, and one that is stopped keeps none waiting. A connection
begins on the fast_path way (`chat_service.server.fast_path`), and comes to Tornado with its first
request that
is not plain. Used by `chat_service.service`; `chat_service.supervisor` binds for all its
processes.
"""

import asyncio
import errno
import heapq
import resource
import select
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import structlog
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.netutil import bind_sockets

from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.connection import ConnectionLimits, Server
from chat_service.server.fast_path import FastPath, FastPathConnection
from chat_service.server.handoff import Handoff, PrefetchedStream
from chat_service.server.header_cache import HeaderCache
from chat_service.server.http_stream import Awaiting, HttpStream
from chat_service.server.request_tracker import RequestTracker

log = structlog.get_logger(__name__)

#: Connections taken in one turn of the loop.
_AT_ONCE = 8
#: Without a free descriptor, nothing is accepted for so long, in seconds.
_REST_S = 0.1
#: Descriptors that connections leave free, for the database, the logs and the metrics.
_SPARE_DESCRIPTORS = 64
#: How often connections are looked through for those that have kept still, in seconds.
_SWEEP_EVERY_S = 1.0
_BACKLOG = 1024
#: So many connections that can be closed are found at once, or more.
_SPARE_MIN = 32
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class PortTaken(Exception):
    """Raised when the address to listen on cannot be had."""


#: What an address is set with, for who has to choose another one: its host, and its port.
NAMES, OPS_NAMES = ("--host", "--port (0 picks a free one)"), ("ops_host", "ops_port (0: none)")


def bind(host: str, port: int, names: tuple[str, str] = NAMES) -> list[socket.socket]:
    """Take an address before anything else: a taken port is the commonest mistake.

    Raises `PortTaken`.
    """
    host_name, port_name = names
    # Tornado's sockets for IPv6 take no IPv4: `::` is one of each kind, as elsewhere on Linux.
    address = None if host == "::" else host
    shown = f"[{host}]" if ":" in host else host
    try:
        return bind_sockets(port, address, backlog=_BACKLOG)
    except UnicodeError:
        raise PortTaken(f"cannot listen on {shown}: {host_name} is not a host name") from None
    except OSError as error:
        advice = (
            f"stop what uses it, or choose another with {port_name}"
            if error.errno == errno.EADDRINUSE
            else f"{host_name} must be an address of this machine"
            if error.errno != errno.EACCES
            else f"choose one from 1024 on with {port_name}"
        )
        raise PortTaken(f"cannot listen on {shown}:{port}: {error.strerror}; {advice}") from error


def inherited(descriptors: str) -> list[socket.socket]:
    """The listening sockets that the supervisor has passed on: numbers, with commas between."""
    sockets = [socket.socket(fileno=int(each)) for each in descriptors.split(",") if each]
    for each in sockets:
        each.setblocking(False)
    return sockets


def addresses_of(sockets: Iterable[socket.socket]) -> list[str]:
    """Return the addresses that these sockets listen on."""
    return [each.getsockname()[0] for each in sockets]


class _Spare(NamedTuple):
    """A connection that can be closed to make room, and what it was found in."""

    awaiting: Awaiting
    since: float
    connection: FastPathConnection | HttpStream


class Listener(Server):
    """Tornado's server, which takes connections fairly, and only as many as it can hold."""

    def initialize(  # type: ignore[override]
        self,
        exchanges: HTTPServerConnectionDelegate,
        tracker: RequestTracker,
        inbox: InboxHandlers,
        on_handoff: Callable[[], None],
        limits: ConnectionLimits,
    ) -> None:
        """Serve requests with `exchanges`, and those that are eligible with `inbox` directly.

        `on_handoff` is called for each connection that leaves the fast path.
        """
        super().initialize(exchanges, limits)
        self._counter = tracker.connections
        self._on_handoff = on_handoff
        self._connections_max = use_all_descriptors() - _SPARE_DESCRIPTORS
        self._resting: asyncio.TimerHandle | None = None
        self._fast_path = FastPath(
            tracker,
            inbox,
            HeaderCache(tracker.max_body_bytes, tracker.host_rule),
            self.lingering,
            self._take_over,
            header_max=limits.header_max_bytes,
            idle_timeout_s=limits.idle_timeout_s,
        )
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

    async def close_all_connections(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._fast_path.close()
        await super().close_all_connections()

    def accept_waiting(self) -> None:
        """Accept the connections that the kernel holds ready: closing would reset them."""
        for listening in self._sockets.values():
            while self._accept(listening):
                pass

    def on_close(self, server_conn: object) -> None:
        """Count a connection that Tornado has closed, or has given to another protocol."""
        self._counter.closed()
        super().on_close(server_conn)

    def _take_over(self, handoff: Handoff) -> None:
        self._on_handoff()
        self.handle_stream(PrefetchedStream(handoff, self.lingering), handoff.address)

    def _sweep_again(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._sweep_again)
        self._fast_path.sweep()
        if self._spared:
            log.warning("idle connections were closed to accept others", count=self._spared)
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
        """Take one connection; False where none waits or none can be taken now."""
        used = self._counter.open + len(self.lingering)
        if used >= self._connections_max:
            if not _waits(listening):
                return False
            if not self._make_room():
                return self._rest("too many connections are open, and each is being served")
        try:
            connection, address = listening.accept()
        except OSError as error:
            # Otherwise nothing waits, or it has gone while it waited.
            return error.errno in _EXHAUSTED and self._rest(str(error))
        try:
            self._fast_path.connect(connection, address)
        except OSError as error:
            # It was gone before it was served.
            log.debug("a connection was not taken", reason=str(error))
            connection.close()
        else:
            self._counter.opened()
        return True

    def _make_room(self) -> bool:
        """Close the connection that is missed least: False where each is being served."""
        if self.lingering.close_oldest():
            return True
        if not self._spare:
            self._spare = self._find_spare()
        while self._spare:
            spare = self._spare.pop()
            connection = spare.connection
            is_as_found = (connection.awaiting, connection.since) == (spare.awaiting, spare.since)
            # What has just arrived may be a whole request.
            if is_as_found and not connection.has_input:
                self._spared += 1
                connection.close()
                return True
        return False

    def _find_spare(self) -> list["_Spare"]:
        """Find some connections that can be closed, the longest idle one last.

        Those whose client has not sent all of a body come first: they are closed if none is idle.
        """
        streams = [cast(HttpStream, each.stream) for each in self._connections]
        connections: list[FastPathConnection | HttpStream] = [
            *self._fast_path.connections(),
            *streams,
        ]
        waiting = (
            _Spare(each.awaiting, each.since, each)
            for each in connections
            if each.awaiting is not Awaiting.ANSWER
        )
        # Each search looks at all connections, so it has to be for many.
        count = max(_SPARE_MIN, self._counter.open // 64)
        return heapq.nsmallest(count, waiting, key=lambda each: each[:2])[::-1]

    def _rest(self, reason: str) -> bool:
        """Accept nothing for a while: the kernel would call again at once, and in vain."""
        if self._resting is None and not self._stopped:
            log.warning("no connection is accepted for a while", reason=reason)
            self._pause()
            self._resting = asyncio.get_running_loop().call_later(_REST_S, self._listen)
        return False


def _waits(listening: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return bool(poll.poll(0))


def use_all_descriptors() -> int:
    """Use as many descriptors as this process may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard > 0 else 1 << 20
