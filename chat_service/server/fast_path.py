"""The fast path: serves plain posts and reads directly between the socket and the pool.

`POST /chat` and `GET /chat/:username`, with or without a query, are nearly all requests. Without
Tornado's coroutines, streams and header objects they cost a third. Every connection begins here.
Its first request of any other kind moves it to Tornado for good (the handoff), together with the
bytes that were read of that request: another route, a body in chunks, a malformed or refused
head. So one place decides how an unusual request is answered.

    IDLE     a whole request ► SERVING   a head and part of a body ► PARTIAL   other ► handoff
    PARTIAL  the rest of the body ► SERVING                      too slow ► handoff
    SERVING  response sent ► IDLE        sent in part ► WRITING   a body in parts ► handoff
    WRITING  the rest sent ► IDLE

Every state becomes CLOSED if the client leaves; IDLE also after the idle timeout, and in a drain
after the last response. While a request is served, its connection is read ahead only up to a
bound.

The rules for requests are elsewhere: `chat_service.server.request_match` and
`chat_service.server.header_cache` decide which requests are eligible, and the handlers check
everything else. `chat_service.server.listener` gives every accepted connection to the fast path.
"""

import asyncio
import functools
import socket
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import structlog
from msgspec import Struct

from chat_service.access.clients import key_of_address, peer_of
from chat_service.access.credentials import has_token
from chat_service.access.limits import MESSAGE_COST
from chat_service.api.authorization import authorize
from chat_service.api.identity import EVERYONE, Client
from chat_service.api.problems import Problem, answer_to
from chat_service.api.request_options import WAIT_SUFFIX, is_waiting
from chat_service.api.routing import POST_PATH
from chat_service.api.types import CLIENT_GONE, BodyChunk, Response
from chat_service.handlers.inbox import InboxHandlers, Pending
from chat_service.server.body_budget import OVER_BUDGET
from chat_service.server.handoff import Answered, Handoff
from chat_service.server.header_cache import HeaderCache, RequestHead
from chat_service.server.http_stream import Awaiting, has_input
from chat_service.server.lingering import Lingering
from chat_service.server.request_match import NoMatch, RequestMatch, match_request
from chat_service.server.request_tracker import RequestTracker
from chat_service.server.response_writer import ResponseWriter, format_response
from workers.errors import Overloaded
from workers.tracing import current

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger(__name__)

#: The most that is read from a connection at once, and kept of an incomplete request, in bytes.
_READ_BYTES = 64 << 10
#: While a request is served: the most that is read at once, and kept of later requests, in bytes.
_AHEAD_BYTES = 4 << 10
#: A body that is incomplete after so many seconds goes to Tornado, which limits its time.
_PARTIAL_S = 1.0

# All connections share it: what was read is copied before the next connection reads.
_buffer = memoryview(bytearray(_READ_BYTES))


class State(Enum):
    """What a connection is doing."""

    #: It waits for a request, or for its turn to serve one that has arrived already.
    IDLE = auto()
    #: The head of a request and part of its body have arrived.
    PARTIAL = auto()
    #: A request waits for its outcome.
    SERVING = auto()
    #: The client has taken only part of the response so far.
    WRITING = auto()
    #: It is closed, or Tornado has it.
    CLOSED = auto()


class _Serving(Struct):
    """The request that is being served, and what its response and its accounting need."""

    match: RequestMatch
    id: str
    #: The bytes of a read: a long one goes to Tornado together with its response.
    raw: bytes
    #: When it began, in seconds of `time.perf_counter`.
    began: float
    span: "Span | None"
    #: Whether its client is still sending it.
    is_partial: bool = False
    future: asyncio.Future[Any] | None = None
    #: The claimed messages that are lost if the response is not delivered.
    claimed: int = 0


#: Stands for a request whose body was given up. Nearly all requests with a body are posts.
_GIVEN_UP = RequestMatch("POST", POST_PATH, "stored", "", "", RequestHead(0, "", ""), 0, 0)


def _closing_on_error(callback: Callable[..., None]) -> Callable[..., None]:
    """Decorate a callback of the loop: a bug in it is logged and closes its connection."""

    @functools.wraps(callback)
    def guarded(self: "FastPathConnection", *arguments: object) -> None:
        try:
            callback(self, *arguments)
        except Exception:
            log.exception("a connection failed")
            self.close()

    return guarded


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
        self.tracker = tracker
        self.inbox = inbox
        self.header_cache = header_cache
        self.lingering = lingering
        self.on_handoff = on_handoff
        self.header_max = header_max
        self.loop = asyncio.get_running_loop()
        #: Whether every response is the last one on its connection.
        self.is_ending = False
        self._idle_timeout_s = idle_timeout_s
        self._connections: set[FastPathConnection] = set()

    def connect(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        """Serve a new connection."""
        self._connections.add(FastPathConnection(self, sock, address))

    def connections(self) -> list["FastPathConnection"]:
        """Return the connections that are on the fast path."""
        return [*self._connections]

    def forget(self, connection: "FastPathConnection") -> None:
        """Forget a connection that was closed or handed off."""
        self._connections.discard(connection)

    def sweep(self) -> None:
        """Close the connections that have been idle too long. Hand off slow bodies."""
        now = self.loop.time()
        for connection in [*self._connections]:
            connection.expire(now, self._idle_timeout_s)

    def end_keep_alive(self) -> None:
        """Close each connection after its next response."""
        self.is_ending = True

    def close(self) -> None:
        """Close every connection."""
        for connection in [*self._connections]:
            connection.close()


class FastPathConnection:
    """One connection on the fast path. Serves its requests one at a time, in order of arrival."""

    __slots__ = (
        "_client",
        "_fast_path",
        "_held",
        "_is_paused",
        "_serving",
        "_socket",
        "_state",
        "_writer",
        "address",
        "body_began",
        "since",
    )

    def __init__(
        self, fast_path: FastPath, sock: socket.socket, address: tuple[object, ...]
    ) -> None:
        self._fast_path = fast_path
        self._socket = sock
        #: The address of the peer, as `accept` returned it.
        self.address = address
        # The sender of the last request.
        self._client: Client | None = None
        self._state = State.IDLE
        #: The bytes that were read and not served yet.
        self._held = b""
        #: Whether reading has stopped, because enough was read ahead.
        self._is_paused = False
        #: When the connection became IDLE or PARTIAL, in seconds of the loop's time.
        self.since = fast_path.loop.time()
        self.body_began = 0.0
        #: Set while SERVING and WRITING.
        self._serving: _Serving | None = None
        #: Set while WRITING.
        self._writer: ResponseWriter | None = None
        sock.setblocking(False)
        # A response is one write. Nagle's algorithm would only delay it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fast_path.loop.add_reader(sock, self._on_readable)

    def expire(self, now: float, idle_s: float) -> None:
        """Close the connection if it has been idle too long. Hand off a body that is too slow."""
        if self._state is State.PARTIAL:
            if now - self.since > _PARTIAL_S:
                self._hand_off(self._held)
        elif self._state is State.IDLE and now - self.since > idle_s:
            self.close()

    @property
    def awaiting(self) -> Awaiting:
        """What the connection waits for."""
        if self._serving is not None:
            return Awaiting.ANSWER
        return Awaiting.BODY if self._state is State.PARTIAL else Awaiting.HEAD

    @property
    def has_input(self) -> bool:
        """Whether bytes have arrived that were not read yet."""
        return self._state is not State.CLOSED and has_input(self._socket)

    def close(self) -> None:
        """Close the connection. Harmless if it is closed.

        The outcome of its request is not awaited, and messages that were claimed for it are counted
        as undelivered.
        """
        if self._state is State.CLOSED:
            return
        serving, tracker = self._serving, self._fast_path.tracker
        is_partial = self._state is State.PARTIAL
        self._close_socket(is_partial or (serving is not None and serving.is_partial))
        if is_partial:
            tracker.bodies.release(self)
        if serving is not None:
            if serving.future is not None:
                serving.future.cancel()
            if serving.claimed:
                tracker.on_undelivered(serving.claimed)
            self._account(serving, CLIENT_GONE)

    @_closing_on_error
    def _on_readable(self) -> None:
        is_served = self._serving is not None
        try:
            count = self._socket.recv_into(_buffer, _AHEAD_BYTES if is_served else 0)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()
            return
        data = bytes(_buffer[:count])
        if self._held:
            data = self._held + data
        if not is_served:
            self._begin(data)
            return
        # The next request arrived before the response to this one: hold it, within bounds.
        self._held = data
        if len(data) > _AHEAD_BYTES:
            self._is_paused = True
            self._fast_path.loop.remove_reader(self._socket)

    def _begin(self, data: bytes) -> None:
        """Serve the first request in `data`, wait for the rest of its body, or hand it off."""
        fast_path = self._fast_path
        tracker = fast_path.tracker
        match = match_request(data, fast_path.header_cache, fast_path.header_max)
        if match is NoMatch.INELIGIBLE:
            self._hand_off(data)
            return
        if match is NoMatch.INCOMPLETE:
            self._await_body(data)
            return
        if match.query and match.head.identity is not EVERYONE and has_token(match.query):
            # Tornado refuses it.
            self._hand_off(data)
            return
        if self._state is State.PARTIAL:
            tracker.bodies.release(self)
        else:
            tracker.request_opened(self)
        self._state = State.SERVING
        self._held = data[match.end :]
        is_read = match.method == "GET"
        serving = self._serving = _Serving(
            match,
            match.head.request_id or tracker.next_request_id(),
            data[: match.end] if is_read else b"",
            time.perf_counter(),
            None,
        )
        token = None
        if (tracer := tracker.tracer) is not None:
            trace = match.head.traceparent
            serving.span = tracer.begin(match.method, match.route, serving.id, trace)
            token = current.set(serving.span)
        client = self._client_of(match.head)
        try:
            pending: Pending[Any]
            if tracker.limiter is not None:
                tracker.limiter.admit(client.key, MESSAGE_COST, match.head.length, match.effect)
            if is_read:
                authorize(client.identity, "read", match.parameter)
                pending = self._begin_read(match, client)
            else:
                authorize(client.identity, "send", "")
                pending = fast_path.inbox.begin_post(data[match.body_start : match.end], client)
        except Exception as error:
            tracker.audit.failed(error, serving.id, client, self._address_of(match.head))
            self._respond(serving, answer_to(error, serving.id, match.effect))
        else:
            serving.future = pending.future
            on_outcome = functools.partial(self._on_outcome, serving, pending)
            pending.future.add_done_callback(on_outcome)
        finally:
            if token is not None:
                current.reset(token)

    def recheck(self) -> None:
        """End a read that waits if its sender may no longer read."""
        serving = self._serving
        if serving is None or serving.match.method != "GET" or serving.future is None:
            return
        match, head, tracker = serving.match, serving.match.head, self._fast_path.tracker
        try:
            tracker.gate.identify_again(head.identity, "read", match.parameter)
        except Problem as problem:
            # A read that has its outcome is answered. What a cancelled one claims is rolled back.
            if serving.future.cancel():
                client, address = self._client_of(head), self._address_of(head)
                tracker.audit.failed(problem, serving.id, client, address)
                self._respond(serving, answer_to(problem, serving.id, match.effect))

    def _begin_read(self, match: RequestMatch, client: Client) -> Pending[Any]:
        """Begin a read. A long poll counts as a wait until it has its outcome."""
        inbox, query = self._fast_path.inbox, match.query
        if not query or not is_waiting(query):
            return inbox.begin_read(match.parameter, query, client)
        waits, key = self._fast_path.tracker.waits, client.key
        waits.enter(key, match.effect)
        try:
            pending = inbox.begin_read(match.parameter, query, client)
        except BaseException:
            waits.leave(key)
            raise
        pending.future.add_done_callback(lambda _: waits.leave(key))
        return pending

    def _await_body(self, data: bytes) -> None:
        """Wait for the rest of a body: many clients send it after the head, networks split both."""
        if len(data) > _READ_BYTES:
            self._hand_off(data)
            return
        arrived = len(data)
        if self._state is State.PARTIAL:
            arrived -= len(self._held)
        else:
            self._state = State.PARTIAL
            self.since = self.body_began = self._fast_path.loop.time()
            self._fast_path.tracker.request_opened(self)
        self._held = data
        self._fast_path.tracker.bodies.grow(self, arrived)

    @property
    def body_client(self) -> str:
        """The key of the client that sends the body: a proxy's clients count one by one."""
        peer, proxies = peer_of(self.address), self._fast_path.tracker.proxies
        if proxies is not None and proxies.trusts(peer):
            return f"proxied:{id(self)}"
        return key_of_address(peer)

    def give_up_body(self) -> None:
        """Forget the bytes of an incomplete request, and answer 503 from the loop."""
        request_id = self._fast_path.tracker.next_request_id()
        serving = _Serving(_GIVEN_UP, request_id, b"", time.perf_counter(), None, is_partial=True)
        self._state, self._serving = State.SERVING, serving
        # The rest of the body must not be taken for the next request.
        self._held = b""
        self._fast_path.loop.call_soon(self._refuse_body, serving)

    @_closing_on_error
    def _refuse_body(self, serving: _Serving) -> None:
        if self._state is not State.CLOSED:
            response = answer_to(Overloaded(OVER_BUDGET), serving.id, serving.match.effect)
            self._respond(serving, response, is_last=True)

    @_closing_on_error
    def _on_outcome(
        self, serving: _Serving, pending: Pending[Any], future: asyncio.Future[Any]
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            if self._state is not State.CLOSED:
                assert isinstance(error, Exception)
                self._respond(serving, answer_to(error, serving.id, serving.match.effect))
            return
        outcome = future.result()
        claimed = pending.count_claimed(outcome)
        if self._state is State.CLOSED:
            # The client left in the same turn of the loop in which the outcome arrived.
            if claimed:
                self._fast_path.tracker.on_undelivered(claimed)
            return
        # From here on, `close` counts them as undelivered.
        serving.claimed = claimed
        self._respond(serving, pending.render(outcome))

    def _respond(self, serving: _Serving, response: Response, is_last: bool = False) -> None:
        """Send the response, and go on with the next request."""
        fast_path = self._fast_path
        if not isinstance(response.body, BodyChunk):
            # Tornado writes a body of several parts. It reads the head again first.
            client = self._client_of(serving.match.head)
            answered = Answered(
                response, serving.claimed, serving.id, serving.began, serving.span, client
            )
            self._hand_off(serving.raw + self._held, answered)
            return
        is_last = is_last or fast_path.is_ending
        body, date = response.body.body, fast_path.tracker.date.ascii()
        data = format_response(response.status, response.headers, body, serving.id, date, is_last)
        writer = ResponseWriter(response.status, is_last, data)
        try:
            is_sent = writer.send(self._socket)
        except OSError:
            self.close()
            return
        if is_sent:
            self._finish(serving, writer)
            return
        # The client reads slowly, or not at all.
        self._state, self._writer = State.WRITING, writer
        writer.timer = fast_path.loop.call_later(fast_path.tracker.write_timeout_s, self.close)
        fast_path.loop.add_writer(self._socket, self._on_writable, serving, writer)

    @_closing_on_error
    def _on_writable(self, serving: _Serving, writer: ResponseWriter) -> None:
        try:
            is_sent = writer.send(self._socket)
        except OSError:
            self.close()
            return
        if is_sent:
            self._fast_path.loop.remove_writer(self._socket)
            writer.stop_timer()
            self._finish(serving, writer)

    def _finish(self, serving: _Serving, writer: ResponseWriter) -> None:
        """Make the connection free for the next request: the kernel has the whole response."""
        self._state, self._serving, self._writer = State.IDLE, None, None
        if writer.is_last:
            self._close_socket(serving.is_partial)
        else:
            loop = self._fast_path.loop
            self._fast_path.tracker.request_closed(self)
            self.since = loop.time()
            if self._is_paused:
                self._is_paused = False
                loop.add_reader(self._socket, self._on_readable)
            if self._held:
                loop.call_soon(self._serve_held)
        self._account(serving, writer.status)

    @_closing_on_error
    def _serve_held(self) -> None:
        """Serve the next request, which arrived before the last response was sent."""
        if self._state is State.IDLE and self._held:
            self._begin(self._held)

    def _hand_off(self, held: bytes, answered: Answered | None = None) -> None:
        """Have Tornado serve this connection from now on. It reads `held` first."""
        server = None if self._state is State.IDLE else self
        if self._state is State.PARTIAL:
            self._fast_path.tracker.bodies.release(self)
        self._detach()
        self._fast_path.on_handoff(Handoff(self._socket, self.address, held, answered, server))

    def _close_socket(self, is_sending: bool) -> None:
        self._detach()
        self._fast_path.lingering.close(self._socket, is_sending=is_sending)
        self._fast_path.tracker.connections.closed(self.address)
        self._fast_path.tracker.request_closed(self)

    def _detach(self) -> None:
        """Take the socket away from the loop."""
        self._state = State.CLOSED
        loop = self._fast_path.loop
        if not self._is_paused:
            loop.remove_reader(self._socket)
        if self._writer is not None:
            loop.remove_writer(self._socket)
            self._writer.stop_timer()
        self._fast_path.forget(self)

    def _address_of(self, head: RequestHead) -> str:
        """Return the address of the client that sent a request."""
        peer, proxies = peer_of(self.address), self._fast_path.tracker.proxies
        if proxies is None:
            return peer
        return proxies.client_of(peer, head.forwarded_for, head.forwarded)

    def _client_of(self, head: RequestHead) -> Client:
        """Return the client that sent a request: nearly always the one that sent the last."""
        client, tracker = self._client, self._fast_path.tracker
        if client is None or client.identity is not head.identity or tracker.proxies is not None:
            client = tracker.gate.client(head.identity, self._address_of(head))
            self._client = client
        return client

    def _account(self, serving: _Serving, status: int) -> None:
        match = serving.match
        route = match.route
        if match.query and is_waiting(match.query):
            route += WAIT_SUFFIX
        seconds = time.perf_counter() - serving.began
        self._fast_path.tracker.account(
            serving.id,
            match.method,
            route,
            match.parameter,
            self._address_of(match.head),
            status,
            seconds,
            serving.span,
        )
