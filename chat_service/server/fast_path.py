"""The fast path: serves plain posts and reads directly between the socket and the pool.

`POST /chat` and `GET /chat/:username`, with or without a query, are nearly all requests. Without
Tornado's coroutines, streams and header objects they cost a third. Every connection begins here.
Its first request of any other kind moves it to Tornado for good (the handoff), together with the
bytes that were read of that request: another route, a body in chunks, a malformed or refused
head. So one place decides how an unusual request is answered.

`chat_service.server.fast_connection` is the state machine of a connection. The rules for requests
are elsewhere: `chat_service.server.request_match` and `chat_service.server.header_cache` decide
which requests are eligible, and the handlers check everything else.
`chat_service.server.listener` gives every accepted connection to the fast path.
"""

import asyncio
import socket
from collections.abc import Callable

from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.fast_connection import FastPathConnection, Surroundings
from chat_service.server.handoff import Handoff
from chat_service.server.header_cache import HeaderCache
from chat_service.server.lingering import Lingering
from chat_service.server.request_tracker import RequestTracker


class FastPath:
    """The connections of a process that are on the fast path."""

    def __init__(
        self,
        tracker: RequestTracker,
        inbox: InboxHandlers,
        header_cache: HeaderCache,
        lingering: Lingering,
        on_handoff: Callable[[Handoff], None],
        *,
        header_max: int,
        idle_timeout_s: float,
    ) -> None:
        """Serve connections until they are closed, by `lingering`, or passed to `on_handoff`."""
        self.header_cache = header_cache
        self._idle_timeout_s = idle_timeout_s
        self._connections: set[FastPathConnection] = set()
        self._surroundings = Surroundings(
            tracker,
            inbox,
            header_cache,
            lingering,
            header_max,
            on_handoff,
            self._connections.discard,
            asyncio.get_running_loop(),
        )

    def connect(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        """Serve a new connection."""
        self._connections.add(FastPathConnection(self._surroundings, sock, address))

    def connections(self) -> list[FastPathConnection]:
        """Return the connections that are on the fast path."""
        return [*self._connections]

    def sweep(self) -> None:
        """Close the connections that have been idle too long. Hand off slow bodies."""
        now = self._surroundings.loop.time()
        for connection in [*self._connections]:
            connection.expire(now, self._idle_timeout_s)

    def end_keep_alive(self) -> None:
        """Close each connection after its next response."""
        self._surroundings.is_ending = True

    def close(self) -> None:
        """Close every connection."""
        for connection in [*self._connections]:
            connection.close()
