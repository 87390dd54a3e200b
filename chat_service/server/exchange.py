"""One HTTP exchange: collects a request, has its handler run, writes exactly one answer.

Sits right on Tornado's HTTP/1 connection, below `RequestHandler`: what a consuming GET must not
have (ETags and 304, form parsing, HTML errors) is then not there to be switched off, and a
request costs about half. `ExchangeFactory` makes one `Exchange` for each request.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http.client import responses
from typing import TYPE_CHECKING, cast

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from chat_service.api.problems import (
    Problem,
    answer_to,
    bad_request,
    encoded_body,
    too_large,
    websocket_elsewhere,
)
from chat_service.api.request_options import WAIT_SUFFIX, is_waiting
from chat_service.api.request_policy import (
    reject_malformed_hosts,
    reject_other_hosts,
)
from chat_service.api.routing import STREAM_PATH, Resolved, RouteTable
from chat_service.api.types import CLIENT_GONE, BodyChunk, Request, Response, Takeover
from chat_service.server.body_budget import OVER_BUDGET, Body
from chat_service.server.handoff import Answered, PrefetchedStream
from chat_service.server.header_cache import request_id_of
from chat_service.server.http_stream import Awaiting, HttpStream
from chat_service.server.request_tracker import RequestTracker
from workers.errors import Overloaded, ServiceError
from workers.tracing import current

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from tornado.httpserver import _HTTPRequestContext

log = structlog.get_logger(__name__)

#: Of a body that is refused unread, so many bytes are read and dropped, and its client can go on
#: using the connection. For a longer one the connection is closed.
DISCARD_MAX = 4 << 20
#: What is decoded from a body takes about as much memory as the body.
_DECODED = 2

_TARGET = re.compile(r"[\x21-\x7e]+")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]*)", re.IGNORECASE)
_LENGTH = re.compile(r"0*([0-9]+)")


class ExchangeFactory(HTTPServerConnectionDelegate):
    """Makes an `Exchange` for each request. One for each port."""

    def __init__(self, routes: RouteTable, tracker: RequestTracker) -> None:
        self._routes = routes
        self._tracker = tracker

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> "Exchange":
        """Called by Tornado for each request on a connection."""
        return Exchange(self._routes, self._tracker, cast(HTTP1Connection, request_conn))


class Exchange(HTTPMessageDelegate):
    """The delegate of one request. Tornado calls it; it lives until its answer is written."""

    _headers: HTTPHeaders

    def __init__(
        self, routes: RouteTable, tracker: RequestTracker, connection: HTTP1Connection
    ) -> None:
        self._routes = routes
        self._tracker = tracker
        self._connection = connection
        stream = self._stream = cast(HttpStream, connection.stream)
        stream.now_awaits(Awaiting.HEAD)
        stream.is_sending = False
        stream.on_refused = self._refuse_malformed
        # A request that came here from the fast_path way, perhaps with its answer.
        self._handoff = stream.take_handoff() if isinstance(stream, PrefetchedStream) else None
        self._answered: Answered | None = None
        self._began = 0.0
        self._id = ""
        self._method = ""
        self._is_old = False
        self._query = ""
        self._is_waiting = False
        self._resolved: Resolved | None = None
        self._refusal: Problem | None = None
        self._is_answered = self._is_discarding = False
        self._is_given_up = False
        self._body = Body()
        self.body_began = 0.0
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._span: Span | None = None

    # What Tornado calls, in this order.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Decide what can be decided from the head."""
        self._began = time.perf_counter()
        self._tracker.request_opened(self)
        if self._handoff is not None:
            self._tracker.request_closed(self._handoff.server)
            self._answered, self._handoff = self._handoff.answered, None
        self._headers = headers
        self._method = cast(RequestStartLine, start_line).method
        self._is_old = cast(RequestStartLine, start_line).version == "HTTP/1.0"
        if self._answered is not None:
            self._id, self._began = self._answered.id, self._answered.began
            self._span = self._answered.span
        else:
            self._id = request_id_of(headers) or self._tracker.next_request_id()
        try:
            self._check_head(cast(RequestStartLine, start_line))
        except Problem as problem:
            self._refusal = problem
        declared = _declared_length(headers)
        if declared > self._max_body_bytes:
            self._refuse_body(will_close=declared > DISCARD_MAX or "Expect" in headers)
        elif declared or "Transfer-Encoding" in headers:
            self._stream.now_awaits(Awaiting.BODY)
            self.body_began = self._stream.since
            self._stream.on_bytes = self._count_bytes
            self._count_bytes(self._stream.unread)

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, or throw it away where it is not wanted."""
        self._size += len(chunk)
        if self._is_discarding:
            if self._size > DISCARD_MAX:
                self._connection.finish()
        elif self._size > self._max_body_bytes:
            self._refuse_body(will_close=False)
        elif self._refusal is None and not self._is_given_up:
            self._body.append(chunk)

    def finish(self) -> None:
        """The request is whole: have it handled."""
        self._stream.now_awaits(Awaiting.ANSWER)
        self._stream.on_bytes = None
        self._stream.is_sending = False
        if self._is_discarding:
            self._connection.finish()
            return
        bodies = self._tracker.bodies
        if self._refusal is not None or self._is_given_up:
            bodies.release(self)
        elif self._size and not bodies.serve(self, self._size * _DECODED):
            self._is_given_up = True
        self._connection.set_close_callback(self._on_gone)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._on_done)

    def on_connection_close(self) -> None:
        """The client went away before its request was whole."""
        self._tracker.request_closed(self)
        # This object is part of a cycle, and stays until the garbage collector finds it.
        self._body.clear()
        self._tracker.bodies.release(self)
        self._give_up_answer()

    # What the budget for bodies calls.

    def give_up_body(self) -> None:
        """Forget the body at once, and answer 503 from the loop."""
        self._is_given_up = True
        self._body.clear()
        self._stream.on_bytes = None
        asyncio.get_running_loop().call_soon(self._refuse_given_up)

    # What follows from it.

    @property
    def _max_body_bytes(self) -> int:
        resolved = self._resolved
        return self._tracker.max_body_bytes if resolved is None else resolved.max_body_bytes

    def _check_head(self, start_line: RequestStartLine) -> None:
        target = start_line.path
        if not _TARGET.fullmatch(target):
            raise bad_request("the path has characters that must be percent-encoded")
        host = self._headers.get("Host")
        if absolute := _ABSOLUTE_FORM.match(target):
            target = target[absolute.end() :] or "/"
            # RFC 9112, 3.2.2: the host in the target holds, whatever the header says.
            host = absolute[1]
        path, _, self._query = target.partition("?")
        self._check_host(host, start_line.version, path)
        self._resolved = self._routes.resolve(self._method, path, self._headers)
        prefer = self._headers.get("Prefer", "")
        route = self._resolved.route
        self._is_waiting = route.can_wait and is_waiting(self._query, prefer)
        if self._headers.get("Upgrade", "").lower() == "websocket" and not route.takes_websockets:
            raise websocket_elsewhere(STREAM_PATH)
        if self._headers.get("Content-Encoding", "identity").lower() != "identity":
            raise encoded_body()

    def _check_host(self, host: str | None, version: str, path: str) -> None:
        if host is None and version != "HTTP/1.0":
            raise bad_request("there is no Host")
        reject_malformed_hosts(host or "")
        if path not in self._routes.any_host_paths:
            # Probes ask by whatever address they find, and are told nothing that is secret.
            reject_other_hosts(host or "", self._tracker.host_rule)

    def _refuse_body(self, will_close: bool) -> None:
        """Answer 413 before the body is read whole; what still comes of it is thrown away."""
        response = answer_to(too_large("the body", self._max_body_bytes), self._id)
        self._answer_early(response, will_close)

    def _refuse_given_up(self) -> None:
        # The body may have come to its end, or its client have gone, before the loop called.
        if self._task is None and not self._is_answered and not self._stream.closed():
            self._answer_early(self._over_budget(), will_close=True)

    def _over_budget(self) -> Response:
        effect = "claimed" if self._resolved is None else self._resolved.route.effect
        return answer_to(Overloaded(OVER_BUDGET), self._id, effect)

    def _answer_early(self, response: Response, will_close: bool) -> None:
        """Answer before the body is read whole. Drop what still comes of it."""
        self._is_answered = self._is_discarding = True
        self._stream.is_sending = True
        self._stream.on_bytes = None
        self._body.clear()
        self._tracker.bodies.release(self)
        self._tracker.request_closed(self)
        headers = self._all_headers(response)
        if will_close:
            headers["Connection"] = "close"
        body = cast(BodyChunk, response.body).body
        headers["Content-Length"] = str(len(body))
        chunk = None if self._method == "HEAD" else body
        self._connection.write_headers(_start_line(response.status), headers, chunk)
        self._account(response.status)
        if will_close:
            # Tornado closes, once it is written, a connection whose request was not read.
            self._connection.finish()

    def _refuse_malformed(self, problem: Problem) -> None:
        """Answer what Tornado refuses to read, before it closes the connection.

        Write nothing if the request was answered before: no request has two answers.
        """
        if self._is_answered:
            return
        self._is_answered = True
        self._stream.is_sending = True
        if not self._began:
            self._began = time.perf_counter()
            self._id = self._tracker.next_request_id()
        response = answer_to(problem, self._id)
        headers = self._all_headers(response)
        headers["Connection"] = "close"
        body = cast(BodyChunk, response.body).body
        headers["Content-Length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in headers.get_all()]
        status = f"HTTP/1.1 {problem.status} {responses[problem.status]}"
        head = "\r\n".join((status, *lines, "", "")).encode("latin1")
        self._stream.write(head if self._method == "HEAD" else head + body)
        self._account(problem.status)

    async def _run(self) -> None:
        """Handle the request and write the answer. Cancelled when the client goes away."""
        status = CLIENT_GONE
        try:
            if self._connection.stream.closed():
                # Its client left before anybody was to be told of that.
                return
            self._begin_span()
            response = await self._handle()
            if isinstance(response, Takeover):
                status = response.status
                await self._hand_out(response)
            elif await self._write(response):
                status = response.status
        finally:
            self._account(status)

    def _begin_span(self) -> None:
        """Have what this task does belong to the request's trace."""
        tracer, resolved = self._tracker.tracer, self._resolved
        if tracer is None or resolved is None:
            return
        if self._answered is None:
            traceparent = self._headers.get("traceparent", "")
            self._span = tracer.begin(self._method, resolved.route.path, self._id, traceparent)
        current.set(self._span)

    async def _hand_out(self, takeover: Takeover) -> None:
        """Give the connection to what goes on with it in another protocol."""
        stream = self._connection.detach()
        self._tracker.on_takeover(1)
        try:
            await takeover.serve(stream)
        finally:
            stream.close()
            self._tracker.on_takeover(-1)

    async def _handle(self) -> Response | Takeover:
        """The handler's answer, or the problem that it met."""
        if self._refusal is not None:
            return answer_to(self._refusal, self._id)
        if self._is_given_up:
            return self._over_budget()
        if self._answered is not None:
            response, self._answered = self._answered.response, None
            return response
        assert self._resolved is not None
        route, parameter, handler, _ = self._resolved
        body = self._body.take()
        request = Request(self._id, self._method, parameter, self._query, self._headers, body)
        # The answer may take long: nobody needs them while it does.
        del self._headers
        try:
            return await handler(request)
        except Exception as error:
            return answer_to(error, self._id, route.effect)

    async def _write(self, response: Response) -> bool:
        """Write the answer; False where the client did not take it."""
        headers = self._all_headers(response)
        start_line = _start_line(response.status)
        if not isinstance(response.body, BodyChunk):
            self._connection.write_headers(start_line, headers)
            return await self._write_parts(response.body)
        body: bytes | None = response.body.body
        if self._method == "HEAD":
            body = None
        elif response.status not in (204, 304):
            headers["Content-Length"] = str(len(response.body.body))
        written = self._connection.write_headers(start_line, headers, body)
        if not await self._is_delivered(written, response.body.messages):
            return False
        self._connection.finish()
        return True

    async def _write_parts(self, parts: AsyncIterator[BodyChunk]) -> bool:
        """A body in chunks, each asked for only after the one before it has left."""
        async with aclosing(cast(AsyncGenerator[BodyChunk, None], parts)):
            try:
                async for part in parts:
                    written = self._connection.write(part.body)
                    if not await self._is_delivered(written, part.messages):
                        return False
            except ServiceError as error:
                # The head is out: the one honest answer left is a body without its end.
                log.warning("a long read was broken off", id=self._id, reason=str(error))
                self._connection.close()
                return False
        self._connection.finish()
        if self._is_old:
            # Without chunks or a length, its end is the connection's, whatever else was asked for.
            self._connection.close()
        return True

    async def _is_delivered(self, written: "asyncio.Future[None]", messages: int) -> bool:
        """Wait until the kernel has what was written; cuts off a reader that takes nothing.

        Counts the claimed messages in it as undelivered where that fails.
        """
        delivered = False
        try:
            if not written.done():
                async with asyncio.timeout(self._tracker.write_timeout_s):
                    await written
            # Tornado resolves a write also when the stream closes under it.
            delivered = not self._connection.stream.closed()
        except TimeoutError:
            self._connection.close()
        finally:
            if not delivered:
                self._tracker.on_undelivered(messages)
        return delivered

    def _all_headers(self, response: Response) -> HTTPHeaders:
        headers = HTTPHeaders(response.headers)
        headers["X-Request-ID"] = self._id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Date"] = self._tracker.date.text()
        return headers

    def _account(self, status: int) -> None:
        seconds = time.perf_counter() - self._began
        label, inbox, is_probe = "none", "", False
        if self._resolved is not None:
            route, inbox, _, _ = self._resolved
            if ":username" not in route.path:
                inbox = ""
            label = route.path + WAIT_SUFFIX if self._is_waiting else route.path
            is_probe = route.is_probe
        client = cast("_HTTPRequestContext", self._connection.context).remote_ip
        self._tracker.account(
            *(self._id, self._method, label, inbox, client, status, seconds, self._span, is_probe)
        )

    def _count_bytes(self, size: int) -> None:
        """Count what has arrived of the body, with its framing."""
        self._tracker.bodies.grow(self, size)

    def _give_up_answer(self) -> None:
        """Count what is in an answer that came with the request, and was never written."""
        if self._answered is not None:
            self._tracker.on_undelivered(self._answered.messages)
            self._answered = None

    def _on_gone(self) -> None:
        """The client closed its connection: what was not sent to the database never will be."""
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tracker.request_closed(self)
        self._tracker.bodies.release(self)
        self._give_up_answer()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an exchange failed", id=self._id, exc_info=error)
            self._connection.close()


def _declared_length(headers: HTTPHeaders) -> int:
    """The body's length in bytes, where it is one; Tornado refuses what is not."""
    declared = _LENGTH.fullmatch(headers.get("Content-Length", ""))
    if declared is None:
        return 0
    # Python refuses to read a number of thousands of digits.
    return int(declared[1]) if len(declared[1]) < 19 else 1 << 62


def _start_line(status: int) -> ResponseStartLine:
    return ResponseStartLine("HTTP/1.1", status, responses[status])
