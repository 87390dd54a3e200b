"""The fast_path way: the two requests that are nearly all of them, straight between socket and
pool.

`POST /chat` and `GET /chat/:username`, plain and whole, cost a third of what they do on Tornado's
connections, with its coroutines, streams and header objects. A connection begins here. With its
first request that is anything else (another route, a query, a body in chunks or in many pieces, a
head that is malformed or refused) it is handed over to Tornado, with what was read of that
request, and stays there: one place decides what an unusual request gets.

    idle ──whole request──► busy ──outcome──► answering ──all sent──► idle, or closed in a drain
     │  └─head, part of body─► half ──rest──► busy
     │                          └──a second later──┐  └──a read in many slices──┐
     └──anything else──────────────────────────────┴────────────────────────────┴──► Tornado's

What comes while it is busy waits, up to a bound, behind which the connection is not read from.

The rules for a request are not here: `chat_service.server.header_cache` has those for a head, the
handlers all
others. Made by `chat_service.server.listener` for each connection that it takes.
"""

import asyncio
import functools
import re
import socket
import time
from collections.abc import Callable, Mapping
from http.client import responses
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from chat_service.api.problems import Effect, answer_to
from chat_service.api.request_options import WAIT_SUFFIX, is_waiting
from chat_service.api.routing import INBOX_PATH, POST_PATH
from chat_service.api.types import CLIENT_GONE, JSON_HEADERS, BodyChunk, Response
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.body_budget import OVER_BUDGET
from chat_service.server.handoff import Answered, Handoff
from chat_service.server.header_cache import HeaderCache
from chat_service.server.http_stream import Awaiting, has_input
from chat_service.server.lingering import Lingering
from chat_service.server.request_tracker import RequestTracker
from workers.commands import Slice
from workers.errors import Overloaded
from workers.tracing import current

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger(__name__)

#: The most that is read of a connection at once, and kept of a request without its end.
_READ_BYTES = 64 << 10
#: The most that is read at once while a request is served, and kept of the requests behind it.
_AHEAD_BYTES = 4 << 10
#: A body that is not whole after so many seconds goes to Tornado, which then bounds its time.
_HALF_S = 1.0

# Usernames and queries are left in which nothing has to be decided: RFC 3986's characters.
_REQUEST_LINE = re.compile(
    rb"(?:POST /chat|GET /chat/([A-Za-z0-9._~%!$&'()*+,;=:@-]+)"
    rb"(?:\?([A-Za-z0-9._~%!$&'()*+,;=:@/?-]*))?) HTTP/1\.1\r\n"
)
_ANSWER = b"%b%b\r\nX-Content-Type-Options: nosniff\r\nDate: %b\r\nContent-Length: %d\r\n%b\r\n%b"
#: The effect of each of the two requests, by its method.
_EFFECTS: Mapping[str, Effect] = {"POST": "stored", "GET": "claimed"}
# One for all: what is in it is copied before the next connection reads.
_buffer = memoryview(bytearray(_READ_BYTES))


def _or_close(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback of the loop: a bug in it ends its connection, and is logged."""

    @functools.wraps(callback)
    def guarded(self: "FastPathConnection", *arguments: object) -> None:
        try:
            callback(self, *arguments)
        except Exception:
            log.exception("a connection failed")
            self.close()

    return guarded


class _Request(NamedTuple):
    """A request that is being served: for its answer and its accounting."""

    method: str
    route: str
    parameter: str
    query: str
    id: str
    raw: bytes
    began: float
    span: "Span | None"


class FastPath:
    """The connections of a process that are on the fast_path way."""

    def __init__(
        self,
        app: RequestTracker,
        inbox: InboxHandlers,
        header_cache: HeaderCache,
        *,
        header_max: int,
        idle_timeout_s: float,
    ) -> None:
        self.app = app
        self.inbox = inbox
        self.header_cache = header_cache
        self.header_max = header_max
        self.loop = asyncio.get_running_loop()
        #: Whether every answer is its connection's last.
        self.is_ending = False
        #: Called with a connection that goes to Tornado, and when one is closed.
        self.on_handoff: Callable[[Handoff], None]
        self.on_closed: Callable[[], None]
        #: Closes the sockets.
        self.lingering: Lingering
        self._idle_timeout_s = idle_timeout_s
        self._connections: set[FastPathConnection] = set()

    def connect(self, sock: socket.socket, address: tuple[object, ...]) -> None:
        """Serve a new connection."""
        self._connections.add(FastPathConnection(self, sock, address))

    def connections(self) -> list["FastPathConnection"]:
        """Return the connections that are on the fast_path way."""
        return [*self._connections]

    def forget(self, connection: "FastPathConnection") -> None:
        """It is closed or handed over."""
        self._connections.discard(connection)

    def sweep(self) -> None:
        """Close or hand over those that have kept still for too long."""
        now = self.loop.time()
        for connection in [*self._connections]:
            connection.expire(now, self._idle_timeout_s)

    def close(self) -> None:
        """Close every connection."""
        for connection in [*self._connections]:
            connection.close()


class FastPathConnection:
    """One connection. Serves one request at a time, in the order in which they arrive."""

    __slots__ = (
        "_address",
        "_fast_path",
        "_future",
        "_held",
        "_is_half",
        "_is_last",
        "_is_paused",
        "_messages",
        "_patience",
        "_request",
        "_socket",
        "_status",
        "_unsent",
        "body_began",
        "since",
    )

    def __init__(
        self, fast_path: FastPath, sock: socket.socket, address: tuple[object, ...]
    ) -> None:
        self._fast_path = fast_path
        self._socket: socket.socket | None = sock
        self._address = address
        #: What was read and is not handled yet; whether that is a request without its end.
        self._held = b""
        self._is_half = False
        self._is_paused = False
        #: Since when it is idle, or a request is half there, in seconds of the loop's time.
        self.since = fast_path.loop.time()
        self.body_began = 0.0
        self._request: _Request | None = None
        self._future: asyncio.Future[Any] | None = None
        # The answer on its way: its status, the claimed messages in it, what is left of it.
        self._status = 0
        self._messages = 0
        self._is_last = False
        self._unsent: memoryview | None = None
        self._patience: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        # An answer is one write: waiting for more to send would only delay it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fast_path.loop.add_reader(sock, self._on_readable)

    def expire(self, now: float, idle_s: float) -> None:
        """Close it where it has been idle for too long; hand over a request that stays half."""
        if self._request is not None:
            return
        if self._is_half:
            if now - self.since > _HALF_S:
                self._hand_off(self._held)
        elif now - self.since > idle_s:
            self.close()

    @property
    def awaiting(self) -> Awaiting:
        """What it waits for."""
        if self._request is not None:
            return Awaiting.ANSWER
        return Awaiting.BODY if self._is_half else Awaiting.HEAD

    @property
    def has_input(self) -> bool:
        """Whether something has arrived that is not read yet."""
        return self._socket is not None and has_input(self._socket)

    def close(self) -> None:
        """Close it. What it waited for is given up, what it did not take is counted. Safe twice."""
        if self._socket is None:
            return
        self._fast_path.lingering.close(self._let_go(), is_sending=self._is_half)
        self._fast_path.on_closed()
        self._fast_path.app.request_closed(self)
        if self._is_half:
            self._fast_path.app.bodies.release(self)
        if self._patience is not None:
            self._patience.cancel()
        if self._future is not None:
            self._future.cancel()
        if self._messages:
            self._fast_path.app.on_undelivered(self._messages)
        if self._request is not None:
            self._account(self._request, CLIENT_GONE)

    @_or_close
    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            # Behind a request that is being served, little is read ahead.
            count = self._socket.recv_into(_buffer, 0 if self._request is None else _AHEAD_BYTES)
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
        if self._request is None:
            self._begin(data)
            return
        # Sent before the answer to what came before: it has to wait, and not to grow.
        self._held = data
        if len(data) > _AHEAD_BYTES:
            self._is_paused = True
            self._fast_path.loop.remove_reader(self._socket)

    def _begin(self, data: bytes) -> None:
        """Serve the first request of `data`, or see that somebody does."""
        fast_path = self._fast_path
        line = _REQUEST_LINE.match(data)
        # From the request line's own CR LF on, for a head that has no more lines.
        end = data.find(b"\r\n\r\n", line.end() - 2) + 4 if line is not None else 0
        head = None
        if line is not None and 4 <= end <= fast_path.header_max:
            head = fast_path.header_cache.plain(data[line.end() : end])
        if line is None or head is None:
            self._hand_off(data)
            return
        if len(data) < end + head.length:
            self._wait_for_the_rest(data)
            return
        if self._is_half:
            self._is_half = False
            fast_path.app.bodies.release(self)
        else:
            fast_path.app.request_opened(self)
        self._held = data[end + head.length :]
        request_id = head.request_id or fast_path.app.next_request_id()
        raw, began = b"", time.perf_counter()
        segment = line[1]
        if segment is None:
            method, route, name, query = "POST", POST_PATH, "", ""
        else:
            method, route = "GET", INBOX_PATH
            # It may have to go to Tornado with its answer.
            raw = data[: end + head.length]
            name, query = segment.decode("ascii"), (line[2] or b"").decode("ascii")
        span = token = None
        if (tracer := fast_path.app.tracer) is not None:
            span = tracer.begin(method, route, request_id, head.traceparent)
            token = current.set(span)
        request = _Request(method, route, name, query, request_id, raw, began, span)
        self._request = request
        try:
            if segment is None:
                self._future = fast_path.inbox.begin_post(data[end : end + head.length])
            else:
                self._future = fast_path.inbox.begin_read(request.parameter, request.query)
        except Exception as error:
            self._answer(answer_to(error, request_id, _EFFECTS[method]))
        else:
            self._future.add_done_callback(self._on_outcome)
        finally:
            if token is not None:
                current.reset(token)

    def _wait_for_the_rest(self, data: bytes) -> None:
        """Many clients send the body behind the head, and a network cuts both as it likes."""
        if len(data) > _READ_BYTES:
            self._hand_off(data)
            return
        more = len(data) - len(self._held)
        self._held = data
        if not self._is_half:
            more = len(data)
            self._is_half = True
            self.since = self.body_began = self._fast_path.loop.time()
            self._fast_path.app.request_opened(self)
        self._fast_path.app.bodies.grow(self, more)

    def give_up_body(self) -> None:
        """Forget what there is of a request, and answer 503 from the loop."""
        request_id = self._fast_path.app.next_request_id()
        # Nearly all requests with a body are posts. What still comes of it is no next request.
        self._request = _Request(
            *("POST", POST_PATH, "", "", request_id, b"", time.perf_counter(), None)
        )
        self._held = b""
        self._fast_path.loop.call_soon(self._refuse_half, request_id)

    @_or_close
    def _refuse_half(self, request_id: str) -> None:
        if self._socket is not None:
            answer = answer_to(Overloaded(OVER_BUDGET), request_id, "stored")
            self._answer(answer, is_last=True)

    @_or_close
    def _on_outcome(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error, inbox = future.exception(), self._fast_path.inbox
        if self._socket is None:
            # It was closed in the very turn of the loop in which the outcome came.
            if error is None and isinstance(outcome := future.result(), Slice):
                self._fast_path.app.on_undelivered(len(outcome.messages))
            return
        request, self._future = self._request, None
        assert request is not None
        if error is not None:
            assert isinstance(error, Exception)
            self._answer(answer_to(error, request.id, _EFFECTS[request.method]))
        elif isinstance(outcome := future.result(), Slice):
            # From here on they are lost with the connection, and counted.
            self._messages = len(outcome.messages)
            answer = inbox.have_read(request.parameter, request.query, outcome)
            if isinstance(answer.body, BodyChunk):
                self._answer(answer)
            else:
                # In many parts: Tornado writes those. It reads the head again, which was plain.
                self._hand_off(
                    request.raw + self._held,
                    Answered(
                        *(answer, len(outcome.messages), request.id, request.began, request.span)
                    ),
                )
        else:
            self._answer(inbox.posted(outcome))

    def _answer(self, response: Response, is_last: bool = False) -> None:
        request, sock = self._request, self._socket
        assert isinstance(response.body, BodyChunk)
        assert request is not None
        assert sock is not None
        body, self._messages = response.body
        self._status = response.status
        self._is_last = is_last or self._fast_path.is_ending
        data = _ANSWER % (
            _start_of(response),
            request.id.encode("ascii"),
            self._fast_path.app.date.ascii(),
            len(body),
            b"Connection: close\r\n" if self._is_last else b"",
            body,
        )
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent == len(data):
            self._answered()
            return
        # A reader that is slow, or takes nothing.
        loop = self._fast_path.loop
        self._unsent = memoryview(data)[sent:]
        self._patience = loop.call_later(self._fast_path.app.write_timeout_s, self.close)
        loop.add_writer(sock, self._on_writable)

    @_or_close
    def _on_writable(self) -> None:
        assert self._socket is not None
        assert self._unsent is not None
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self._unsent = None
            self._fast_path.loop.remove_writer(self._socket)
            assert self._patience is not None
            self._patience.cancel()
            self._answered()

    def _answered(self) -> None:
        """The kernel has all of the answer: the connection is free for the next request."""
        loop = self._fast_path.loop
        request, self._request, self._messages = self._request, None, 0
        assert request is not None
        self._fast_path.app.request_closed(self)
        if self._is_last:
            self.close()
        else:
            self.since = loop.time()
            if self._is_paused:
                assert self._socket is not None
                self._is_paused = False
                loop.add_reader(self._socket, self._on_readable)
            if self._held:
                loop.call_soon(self._go_on)
        self._account(request, self._status)

    @_or_close
    def _go_on(self) -> None:
        """Serve what was sent before the last answer."""
        if self._socket is not None and self._request is None and self._held and not self._is_half:
            self._begin(self._held)

    def _hand_off(self, held: bytes, answered: Answered | None = None) -> None:
        """Have Tornado serve this connection from here on."""
        server = self if self._is_half or self._request is not None else None
        if self._is_half:
            self._fast_path.app.bodies.release(self)
        self._fast_path.on_handoff(Handoff(self._let_go(), self._address, held, answered, server))

    def _let_go(self) -> socket.socket:
        """Take the socket away from the loop and from this object."""
        sock, self._socket = self._socket, None
        assert sock is not None
        loop = self._fast_path.loop
        if not self._is_paused:
            loop.remove_reader(sock)
        if self._unsent is not None:
            loop.remove_writer(sock)
        self._fast_path.forget(self)
        return sock

    def _account(self, request: _Request, status: int) -> None:
        method, route, parameter, query, request_id, _, began, span = request
        if query and is_waiting(query):
            route += WAIT_SUFFIX
        seconds, client = time.perf_counter() - began, str(self._address[0])
        account = self._fast_path.app.account
        account(request_id, method, route, parameter, client, status, seconds, span)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    """An answer's head up to the value of its request id."""
    lines = [f"HTTP/1.1 {status} {responses[status]}"]
    lines += (f"{name}: {value}" for name, value in headers.items())
    # Tornado's spelling of the name.
    return "\r\n".join((*lines, "X-Request-Id: ")).encode("latin1")


_USUAL = {status: _head(status, JSON_HEADERS) for status in (200, 201)}


def _start_of(response: Response) -> bytes:
    if response.headers is JSON_HEADERS:
        return _USUAL[response.status]
    return _head(response.status, response.headers)
