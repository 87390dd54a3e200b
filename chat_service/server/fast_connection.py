"""The state machine of a connection on the fast path, between its socket and its requests.

    IDLE     a whole request ► SERVING   a head and part of a body ► PARTIAL   other ► handoff
    PARTIAL  the rest of the body ► SERVING                      too slow ► handoff
    SERVING  response sent ► IDLE        sent in part ► WRITING   a body in parts ► handoff
    WRITING  the rest sent ► IDLE

Every state becomes CLOSED if the client leaves; IDLE also after the idle timeout, and in a drain
after the last response. While a request is served, its connection is read ahead only up to a
bound. `chat_service.server.request_match` decides what a whole request is, and
`chat_service.server.fast_request` serves it.
"""

import asyncio
import functools
import socket
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import structlog

from chat_service.access.clients import key_of_address, peer_of
from chat_service.access.credentials import has_token
from chat_service.api.identity import EVERYONE
from chat_service.api.problems import answer_to
from chat_service.api.routing import POST_PATH
from chat_service.api.types import CLIENT_GONE, BodyChunk, Response
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.body_budget import OVER_BUDGET
from chat_service.server.fast_request import FastRequest, Sender
from chat_service.server.handoff import Answered, Handoff
from chat_service.server.header_cache import HeaderCache, RequestHead
from chat_service.server.http_stream import Awaiting, has_input
from chat_service.server.lingering import Lingering
from chat_service.server.request_match import NoMatch, RequestMatch, match_request
from chat_service.server.request_tracker import RequestTracker
from chat_service.server.response_writer import ResponseWriter, format_response
from workers.errors import Overloaded

log = structlog.get_logger(__name__)

#: The most that is read from a connection at once, and kept of an incomplete request, in bytes.
_READ_BYTES = 64 << 10
#: While a request is served: the most that is read at once, and kept of later requests, in bytes.
_AHEAD_BYTES = 4 << 10
#: A body that is incomplete after so many seconds goes to Tornado, which limits its time.
_PARTIAL_S = 1.0


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


#: Stands for a request whose body was given up. Nearly all requests with a body are posts.
_GIVEN_UP = RequestMatch("POST", POST_PATH, "stored", "", "", RequestHead(0, "", ""), 0, 0)


@dataclass
class Surroundings:
    """What all connections of the fast path share.

    A connection calls `on_handoff` for one that Tornado has to serve, and `forget` when it leaves
    the fast path. Each response is the last one on its connection while `is_ending` is set.
    """

    tracker: RequestTracker
    inbox: InboxHandlers
    header_cache: HeaderCache
    lingering: Lingering
    header_max: int
    on_handoff: Callable[[Handoff], None]
    forget: Callable[["FastPathConnection"], None]
    loop: asyncio.AbstractEventLoop
    is_ending: bool = False
    #: That of callbacks. Otherwise, each of a thousand requests that wait would have a copy.
    context: Context = field(default_factory=copy_context)


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


class FastPathConnection:
    """One connection on the fast path. Serves its requests one at a time, in order of arrival."""

    __slots__ = (
        "_held",
        "_is_paused",
        "_request",
        "_sender",
        "_shared",
        "_socket",
        "_state",
        "_writer",
        "address",
        "body_began",
        "since",
    )

    def __init__(
        self, shared: Surroundings, sock: socket.socket, address: tuple[object, ...]
    ) -> None:
        self._shared = shared
        self._socket = sock
        #: The address of the peer, as `accept` returned it.
        self.address = address
        self._sender = Sender(shared.tracker, address)
        self._state = State.IDLE
        #: The bytes that were read and not served yet.
        self._held = b""
        #: Whether reading has stopped, because enough was read ahead.
        self._is_paused = False
        #: When the connection became IDLE or PARTIAL, in seconds of the loop's time.
        self.since = shared.loop.time()
        self.body_began = 0.0
        #: Set while SERVING and WRITING.
        self._request: FastRequest | None = None
        #: Set while WRITING.
        self._writer: ResponseWriter | None = None
        sock.setblocking(False)
        # A response is one write. Nagle's algorithm would only delay it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shared.loop.add_reader(sock, self._on_readable)

    @property
    def awaiting(self) -> Awaiting:
        """What the connection waits for."""
        if self._request is not None:
            return Awaiting.ANSWER
        return Awaiting.BODY if self._state is State.PARTIAL else Awaiting.HEAD

    @property
    def has_input(self) -> bool:
        """Whether bytes have arrived that were not read yet."""
        return self._state is not State.CLOSED and has_input(self._socket)

    # Reading: IDLE, PARTIAL

    @_closing_on_error
    def _on_readable(self) -> None:
        request = self._request
        try:
            data = self._socket.recv(_READ_BYTES if request is None else _AHEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._held:
            data = self._held + data
        if request is None:
            self._begin(data)
            return
        # The next request arrived before the response to this one: hold it, within bounds.
        self._held = data
        if len(data) > _AHEAD_BYTES:
            self._is_paused = True
            self._shared.loop.remove_reader(self._socket)

    def _begin(self, data: bytes) -> None:
        """Serve the first request in `data`, wait for the rest of its body, or hand it off."""
        shared = self._shared
        tracker = shared.tracker
        match = match_request(data, shared.header_cache, shared.header_max)
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
        request_id = match.head.request_id or tracker.next_request_id()
        request = FastRequest(match, self._sender, request_id, time.perf_counter())
        self._request = request
        if match.method == "GET":
            request.raw = data[: match.end]
        body, tracer = data[match.body_start : match.end], tracker.tracer
        if tracer is None:
            refusal = request.begin(tracker, shared.inbox, body)
        else:
            refusal = request.begin_traced(tracer, tracker, shared.inbox, body)
        if refusal is not None:
            self._respond(request, refusal)
        elif request.future is not None:
            request.future.add_done_callback(self._on_outcome, context=shared.context)

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
            self.since = self.body_began = self._shared.loop.time()
            self._shared.tracker.request_opened(self)
        self._held = data
        self._shared.tracker.bodies.grow(self, arrived)

    @property
    def body_client(self) -> str:
        """The key of the client that sends the body: a proxy's clients count one by one."""
        peer, proxies = peer_of(self.address), self._shared.tracker.proxies
        if proxies is not None and proxies.trusts(peer):
            return f"proxied:{id(self)}"
        return key_of_address(peer)

    def give_up_body(self) -> None:
        """Forget the bytes of an incomplete request, and answer 503 from the loop."""
        request_id, began = self._shared.tracker.next_request_id(), time.perf_counter()
        request = FastRequest(_GIVEN_UP, self._sender, request_id, began, is_partial=True)
        self._state, self._request = State.SERVING, request
        # The rest of the body must not be taken for the next request.
        self._held = b""
        self._shared.loop.call_soon(self._refuse_body, request)

    @_closing_on_error
    def _refuse_body(self, request: FastRequest) -> None:
        if self._state is not State.CLOSED:
            response = answer_to(Overloaded(OVER_BUDGET), request.id, request.match.effect)
            self._respond(request, response, is_last=True)

    # Responding: SERVING, WRITING

    @_closing_on_error
    def _on_outcome(self, future: asyncio.Future[Any]) -> None:
        request = self._request
        # A request that was closed or refused meanwhile has dealt with its outcome.
        if request is not None and request.future is future and not future.cancelled():
            self._respond(request, request.respond(self._shared.tracker, future))

    def recheck(self) -> None:
        """End a read that waits if its sender may no longer read."""
        request = self._request
        if request is not None:
            refusal = request.recheck(self._shared.tracker)
            if refusal is not None:
                self._respond(request, refusal)

    def _respond(self, request: FastRequest, response: Response, is_last: bool = False) -> None:
        """Send the response, and go on with the next request."""
        shared = self._shared
        if not isinstance(response.body, BodyChunk):
            # Tornado writes a body of several parts. It reads the head again first.
            client = self._sender.client_of(request.match.head)
            answered = Answered(
                response, request.claimed, request.id, request.began, request.span, client
            )
            self._hand_off(request.raw + self._held, answered)
            return
        is_last = is_last or shared.is_ending
        body, date = response.body.body, shared.tracker.date.ascii()
        data = format_response(response.status, response.headers, body, request.id, date, is_last)
        try:
            count = self._socket.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.close()
            return
        if count == len(data):
            self._finish(request, response.status, is_last)
            return
        # The client reads slowly, or not at all.
        writer = ResponseWriter(response.status, is_last, memoryview(data)[count:])
        self._state, self._writer = State.WRITING, writer
        writer.timer = shared.loop.call_later(shared.tracker.write_timeout_s, self.close)
        shared.loop.add_writer(self._socket, self._on_writable, request, writer)

    @_closing_on_error
    def _on_writable(self, request: FastRequest, writer: ResponseWriter) -> None:
        try:
            is_sent = writer.send(self._socket)
        except OSError:
            self.close()
            return
        if is_sent:
            self._shared.loop.remove_writer(self._socket)
            writer.stop_timer()
            self._writer = None
            self._finish(request, writer.status, writer.is_last)

    def _finish(self, request: FastRequest, status: int, is_last: bool) -> None:
        """Make the connection free for the next request: the kernel has the whole response."""
        shared = self._shared
        self._state, self._request = State.IDLE, None
        if is_last:
            self._close_socket(request.is_partial)
        else:
            shared.tracker.request_closed(self)
            self.since = shared.loop.time()
            if self._is_paused:
                self._is_paused = False
                shared.loop.add_reader(self._socket, self._on_readable)
            if self._held:
                shared.loop.call_soon(self._serve_held)
        request.account(shared.tracker, status)

    @_closing_on_error
    def _serve_held(self) -> None:
        """Serve the next request, which arrived before the last response was sent."""
        if self._state is State.IDLE and self._held:
            self._begin(self._held)

    # Leaving: CLOSED

    def expire(self, now: float, idle_s: float) -> None:
        """Close the connection if it has been idle too long. Hand off a body that is too slow."""
        if self._state is State.PARTIAL:
            if now - self.since > _PARTIAL_S:
                self._hand_off(self._held)
        elif self._state is State.IDLE and now - self.since > idle_s:
            self.close()

    def close(self) -> None:
        """Close the connection. Harmless if it is closed.

        The outcome of its request is not awaited, and messages that were claimed for it are counted
        as undelivered.
        """
        if self._state is State.CLOSED:
            return
        request, tracker = self._request, self._shared.tracker
        is_partial = self._state is State.PARTIAL
        self._close_socket(is_partial or (request is not None and request.is_partial))
        if is_partial:
            tracker.bodies.release(self)
        if request is not None:
            request.abandon(tracker)
            request.account(tracker, CLIENT_GONE)

    def _hand_off(self, held: bytes, answered: Answered | None = None) -> None:
        """Have Tornado serve this connection from now on. It reads `held` first."""
        server = None if self._state is State.IDLE else self
        if self._state is State.PARTIAL:
            self._shared.tracker.bodies.release(self)
        self._detach()
        self._shared.on_handoff(Handoff(self._socket, self.address, held, answered, server))

    def _close_socket(self, is_sending: bool) -> None:
        self._detach()
        self._shared.lingering.close(self._socket, is_sending=is_sending)
        self._shared.tracker.connections.closed(self.address)
        self._shared.tracker.request_closed(self)

    def _detach(self) -> None:
        """Take the socket away from the loop."""
        self._state = State.CLOSED
        # What arrives for a request from here on is too late for it.
        self._request = None
        loop = self._shared.loop
        if not self._is_paused:
            loop.remove_reader(self._socket)
        if self._writer is not None:
            loop.remove_writer(self._socket)
            self._writer.stop_timer()
        self._shared.forget(self)
