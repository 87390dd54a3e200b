"""One HTTP exchange: collects a request, runs its handler, and sends exactly one response.

An exchange uses Tornado's HTTP/1 connection directly, below `RequestHandler`. So it has none of
the features that a GET that consumes must not have (ETags and 304, form parsing, HTML errors), and
a request costs about half. Tornado calls `ExchangeFactory` for each request.
"""

import asyncio
import re
import time
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

from chat_service.access.clients import key_of_address, peer_of
from chat_service.access.limits import COUNT_COST, MESSAGE_COST
from chat_service.access.verifier import UnknownKey
from chat_service.api.authorization import authorize
from chat_service.api.error_page import error_page
from chat_service.api.identity import UNLIMITED, Client, Identity, Right
from chat_service.api.log_lines import agent_of
from chat_service.api.permit import Permit
from chat_service.api.problems import (
    Effect,
    Problem,
    answer_to,
    bad_request,
    encoded_body,
    is_invalid_token,
    problem_of,
    too_large,
    websocket_elsewhere,
)
from chat_service.api.request_options import WAIT_SUFFIX, is_waiting, opens_page
from chat_service.api.request_policy import (
    reject_malformed_hosts,
    reject_other_hosts,
)
from chat_service.api.routing import STREAM_PATH, Resolved, RouteTable
from chat_service.api.types import CLIENT_GONE, AnsweredRequest, Request, Response, Takeover
from chat_service.server.body_budget import OVER_BUDGET, Body
from chat_service.server.handoff import Answered, PrefetchedStream
from chat_service.server.header_cache import request_id_of
from chat_service.server.http_stream import Awaiting, HttpStream
from chat_service.server.request_tracker import RequestTracker
from chat_service.server.tornado_writer import TornadoWriter
from workers.errors import Overloaded
from workers.tracing import current

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from tornado.httpserver import _HTTPRequestContext

log = structlog.get_logger(__name__)

#: The methods that are counted and logged under their own names. A client can invent others.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})

#: The longest body that is read and dropped after it was refused, in bytes, so that its client can
#: go on using the connection. A longer body closes it.
DISCARD_MAX = 4 << 20
#: The memory of a body and of what is decoded from it, in sizes of the body.
_DECODED = 2
#: How long a stream whose client may no longer read has to end properly, in seconds.
_ENDING_S = 3.0
#: Takes the place of headers that the handler has.
_NO_HEADERS = HTTPHeaders()

_TARGET = re.compile(r"[\x21-\x7e]+")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?]*)", re.IGNORECASE)
_LENGTH = re.compile(r"0*([0-9]+)")
#: The variable segment in the path of a route.
_PARAMETER = re.compile(r":[a-z]+")


class ExchangeFactory(HTTPServerConnectionDelegate):
    """Makes an `Exchange` for each request. Every port has one factory."""

    def __init__(self, routes: RouteTable, tracker: RequestTracker) -> None:
        self._routes = routes
        self._tracker = tracker

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> "Exchange":
        """Return the delegate of the next request on a connection. Tornado calls this."""
        return Exchange(self._routes, self._tracker, cast(HTTP1Connection, request_conn))


class Exchange(HTTPMessageDelegate):
    """The delegate of one request, from its head to the end of its response. Tornado calls it."""

    #: The path as sent, of a request without a route. Others need no memory for it.
    _path = ""

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
        # Set for the first request after a handoff, which may already have its response.
        self._handoff = stream.take_handoff() if isinstance(stream, PrefetchedStream) else None
        self._answered: Answered | None = None
        self._began = 0.0
        self._writer = TornadoWriter(connection, tracker)
        self._headers = _NO_HEADERS
        self._query = ""
        self._is_waiting = False
        self._resolved: Resolved | None = None
        self._refusal: Problem | None = None
        self._client = UNLIMITED
        self._permit = Permit()
        #: The right that was checked, if any.
        self._guard: Right | None = None
        #: Whether the sender is only known once the keys of tokens were fetched.
        self._needs_keys = False
        #: Whether the client has paid for the request by a token that was refused.
        self._is_charged = False
        self._is_answered = self._is_discarding = False
        self._is_given_up = False
        self._body = Body()
        self.body_began = 0.0
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._span: Span | None = None
        # The client that the request counts for while it waits.
        self._waits_as: str | None = None
        # The address of the client; the peer's own until the head has arrived.
        self._address = peer_of(cast("_HTTPRequestContext", connection.context).address)
        self._agent = ""

    # Tornado calls these four.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """Check the head. A refusal is sent early only if the body is too long."""
        self._began = time.perf_counter()
        self._tracker.request_opened(self)
        if self._handoff is not None:
            self._tracker.request_closed(self._handoff.server)
            self._answered, self._handoff = self._handoff.answered, None
        self._headers = headers
        self._address, self._agent = self._address_of(headers), agent_of(headers)
        line, writer = cast(RequestStartLine, start_line), self._writer
        writer.method, writer.is_old = line.method, line.version == "HTTP/1.0"
        if self._answered is not None:
            writer.id, self._began = self._answered.id, self._answered.began
            self._span = self._answered.span
        else:
            writer.id = request_id_of(headers) or self._tracker.next_request_id()
        try:
            self._check_head(line)
        except Problem as problem:
            self._refusal = self._charge_failed_login(problem)
        declared = _declared_length(headers)
        is_too_long = declared > self._max_body_bytes
        if self._tracker.limiter is not None and self._answered is None:
            cost = COUNT_COST if line.method == "HEAD" else MESSAGE_COST
            is_refused = is_too_long or self._refusal is not None
            self._limit(cost, min(declared, self._max_body_bytes), is_refused)
        if is_too_long:
            self._refuse_body(will_close=declared > DISCARD_MAX or "Expect" in headers)
        elif declared or "Transfer-Encoding" in headers:
            self._stream.now_awaits(Awaiting.BODY)
            self.body_began = self._stream.since
            self._stream.on_bytes = self._count_bytes
            self._count_bytes(self._stream.unread)

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, or drop it if the request was refused."""
        self._size += len(chunk)
        if self._is_discarding:
            if self._size > DISCARD_MAX:
                self._connection.finish()
        elif self._size > self._max_body_bytes:
            # Its length was not known before.
            self._limit(0, self._max_body_bytes, is_refused=True)
            self._refuse_body(will_close=False)
        elif self._refusal is None and not self._is_given_up:
            self._body.append(chunk)

    def finish(self) -> None:
        """Run the handler: the request is whole."""
        self._stream.now_awaits(Awaiting.ANSWER)
        self._stream.on_bytes = None
        self._stream.is_sending = False
        if self._is_discarding:
            self._connection.finish()
            return
        if "Transfer-Encoding" in self._headers:
            self._limit(0, self._size, is_refused=self._refusal is not None)
        bodies = self._tracker.bodies
        if self._refusal is not None or self._is_given_up:
            bodies.release(self)
        elif self._size and not bodies.serve(self, self._size * _DECODED):
            self._is_given_up = True
        self._connection.set_close_callback(self._on_gone)
        # The handler has the headers from now on: this object may outlive it.
        headers, self._headers = self._headers, _NO_HEADERS
        self._task = asyncio.create_task(self._run(headers))
        self._task.add_done_callback(self._on_done)

    def on_connection_close(self) -> None:
        """Forget the request: the client disconnected before it was whole."""
        self._tracker.request_closed(self)
        # This object is part of a reference cycle, so it is freed late.
        self._body.clear()
        self._tracker.bodies.release(self)
        self._give_up_answer()

    # The tracker calls this.

    def recheck(self) -> None:
        """Refuse the request if its client may no longer send it, or read what it waits for.

        A stream whose client does not take its end is closed soon.
        """
        if self._guard is None or self._resolved is None or self._permit.problem is not None:
            return
        route, parameter, _, _ = self._resolved
        if self._task is not None and route.effect != "claimed":
            # Writes are short, and their outcome must not be in doubt.
            return
        gate, client = self._tracker.gate, self._client
        try:
            identity = gate.identify_again(client.identity, self._guard, parameter)
            self._client = client if identity is client.identity else self._client_as(identity)
        except Problem as problem:
            if self._task is None:
                self._refusal = problem
                return
            self._tracker.audit.failed(problem, self._writer.id, client, self._address)
            self._permit.end(problem)
            asyncio.get_running_loop().call_later(_ENDING_S, self._close_ended)

    def _close_ended(self) -> None:
        if self._task is not None and not self._task.done():
            self._stream.close()

    # The body budget calls these.

    @property
    def body_client(self) -> str:
        """The key of the client that sends the body."""
        return key_of_address(self._address)

    def give_up_body(self) -> None:
        """Forget the body at once, and answer 503 from the loop."""
        self._is_given_up = True
        self._body.clear()
        self._stream.on_bytes = None
        asyncio.get_running_loop().call_soon(self._refuse_given_up)

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
            # RFC 9112, 3.2.2: the host in the target overrides the header.
            host = absolute[1]
        path, _, self._query = target.partition("?")
        try:
            self._check_host(host, start_line.version, path)
            self._resolved = self._routes.resolve(start_line.method, path, self._headers)
        except Problem:
            self._path = path
            raise
        prefer = self._headers.get("Prefer", "")
        route = self._resolved.route
        # Before anything is refused, so that a refusal is counted as what it was asked for.
        self._is_waiting = route.can_wait and is_waiting(self._query, prefer)
        if self._answered is None:
            self._identify(self._headers)
        else:
            # It was checked already, and may lose its right while the rest is written.
            self._client, self._guard = self._answered.client, route.right
        if self._headers.get("Upgrade", "").lower() == "websocket" and not route.takes_websockets:
            raise websocket_elsewhere(STREAM_PATH)
        if self._headers.get("Content-Encoding", "identity").lower() != "identity":
            raise encoded_body()

    def _limit(self, cost: int, size: int, is_refused: bool) -> None:
        """Refuse the request if its client exceeds its rate.

        A request that is refused anyway counts as well, although its handler does not charge for
        it. Health checks, pages and metrics do not count.
        """
        limiter, route = self._tracker.limiter, self._resolved and self._resolved.route
        is_free = route is not None and route.audience != "clients"
        if limiter is None or is_free or self._is_charged:
            return
        client = self._client.key or key_of_address(self._address)
        effect = "claimed" if route is None else route.effect
        try:
            is_charged_later = route is not None and route.is_charged_by_handler and not is_refused
            if cost and is_charged_later:
                limiter.admit_body(client, size, effect)
            else:
                frees_work = route is not None and route.frees_work
                limiter.admit(client, cost, size, effect, frees_work)
        except Problem as problem:
            self._refusal = problem

    def _address_of(self, headers: HTTPHeaders) -> str:
        """Return the address of the client that sent a request."""
        if (proxies := self._tracker.proxies) is None:
            return self._address
        forwarded_for, forwarded = headers.get("X-Forwarded-For", ""), headers.get("Forwarded", "")
        return proxies.client_of(self._address, forwarded_for, forwarded)

    def _identify(self, headers: HTTPHeaders) -> None:
        """Find out who sent the request, and whether they may. Raises a problem if not.

        Sets `_needs_keys` if their key must be fetched first: then nothing was checked.
        """
        assert self._resolved is not None
        gate, route = self._tracker.gate, self._resolved.route
        if route.right is None or self._writer.method == "OPTIONS":
            gate.reject_misplaced(headers, self._query)
            self._client = gate.unidentified(self._address)
            return
        try:
            self._admit(gate.identify(headers, self._query))
        except UnknownKey:
            self._needs_keys = True

    def _charge_failed_login(self, problem: Problem) -> Problem:
        """Charge the address if a problem refuses a token. Return the problem to answer with."""
        limiter, resolved = self._tracker.limiter, self._resolved
        if limiter is None or resolved is None or not is_invalid_token(problem):
            return problem
        self._is_charged = True
        try:
            limiter.admit_failed_login(self._address, resolved.route.effect)
        except Problem as limited:
            return limited
        return problem

    def _admit(self, identity: Identity) -> None:
        assert self._resolved is not None
        route, parameter, _, _ = self._resolved
        self._client, self._guard = self._client_as(identity), route.right
        if route.right is not None:
            authorize(identity, route.right, parameter)

    def _client_as(self, identity: Identity) -> Client:
        return self._tracker.gate.client(identity, self._address)

    def _check_host(self, host: str | None, version: str, path: str) -> None:
        if host is None and version != "HTTP/1.0":
            raise bad_request("the request has no Host header")
        reject_malformed_hosts(host or "")
        if path not in self._routes.any_host_paths:
            # Probes use any address that reaches the service, and learn nothing secret.
            reject_other_hosts(host or "", self._tracker.host_rule)

    def _refuse_body(self, will_close: bool) -> None:
        """Answer 413 before the whole body has arrived."""
        response = answer_to(too_large("the body", self._max_body_bytes), self._writer.id)
        self._answer_early(response, will_close)

    def _refuse_given_up(self) -> None:
        # The body may have ended, or the client disconnected, before the loop called this.
        if self._task is None and not self._is_answered and not self._stream.closed():
            self._answer_early(self._over_budget(), will_close=True)

    def _over_budget(self) -> Response:
        effect = "claimed" if self._resolved is None else self._resolved.route.effect
        return answer_to(Overloaded(OVER_BUDGET), self._writer.id, effect)

    def _answer_early(self, response: Response, will_close: bool) -> None:
        """Answer before the whole body has arrived. The rest of it is dropped."""
        self._is_answered = self._is_discarding = True
        self._stream.is_sending = True
        self._stream.on_bytes = None
        self._body.clear()
        self._tracker.bodies.release(self)
        self._tracker.request_closed(self)
        self._writer.write_early(response, will_close)
        self._account(response.status)

    def _refuse_malformed(self, problem: Problem) -> None:
        """Answer a request that Tornado refuses to read, before it closes the connection.

        Does nothing if the request was answered: no request has two responses.
        """
        if self._is_answered:
            return
        self._is_answered = True
        self._stream.is_sending = True
        if not self._began:
            self._began = time.perf_counter()
            self._writer.id = self._tracker.next_request_id()
        self._writer.write_unread(answer_to(problem, self._writer.id))
        self._account(problem.status)

    async def _run(self, headers: HTTPHeaders) -> None:
        """Handle the request and write the response. Cancelled if the client disconnects."""
        status = CLIENT_GONE
        try:
            if self._connection.stream.closed():
                # The client disconnected before the close callback was set.
                return
            self._begin_span(headers)
            response = await self._handle(headers)
            if not self._writer.is_old and self._resolved and self._resolved.route.is_stream:
                # Tornado keeps them. A browser's have a kilobyte, and a stream is open for hours.
                headers.clear()
            if isinstance(response, Takeover):
                status = response.status
                await self._take_over(response)
            elif await self._writer.write(response):
                status = response.status
        finally:
            if self._waits_as is not None:
                self._tracker.waits.leave(self._waits_as)
            self._account(status)

    def _begin_span(self, headers: HTTPHeaders) -> None:
        """Make this task's work part of the request's trace."""
        tracer, resolved = self._tracker.tracer, self._resolved
        if tracer is None or resolved is None:
            return
        if self._answered is None:
            method, request_id = self._writer.method, self._writer.id
            traceparent = headers.get("traceparent", "")
            self._span = tracer.begin(method, resolved.route.path, request_id, traceparent)
        current.set(self._span)

    async def _take_over(self, takeover: Takeover) -> None:
        """Serve the connection in another protocol until it closes."""
        stream, connections = self._connection.detach(), self._tracker.connections
        address = cast("_HTTPRequestContext", self._connection.context).address
        connections.opened(address)
        try:
            await takeover.serve(stream)
        finally:
            stream.close()
            connections.closed(address)

    async def _handle(self, headers: HTTPHeaders) -> Response | Takeover:
        """Return the handler's response, or the response to its error."""
        writer = self._writer
        if self._refusal is not None:
            return self._refuse(self._refusal, headers)
        if self._is_given_up:
            return self._over_budget()
        if self._answered is not None:
            response, self._answered = self._answered.response, None
            return response
        assert self._resolved is not None
        route, parameter, handler, _ = self._resolved
        body = self._body.take()
        try:
            if self._needs_keys:
                self._admit(await self._tracker.gate.identify_patiently(headers, self._query))
            if self._is_waiting or route.is_stream:
                self._tracker.waits.enter(self._client.key, route.effect)
                self._waits_as = self._client.key
            return await handler(
                Request(
                    writer.id,
                    writer.method,
                    parameter,
                    self._query,
                    headers,
                    body,
                    self._client,
                    self._permit,
                )
            )
        except asyncio.CancelledError:
            # The permit's end cancels what the handler waits for; a client that left, this task.
            task = asyncio.current_task()
            if self._permit.problem is None or task is None or task.cancelling():
                raise
            return answer_to(self._permit.problem, writer.id, route.effect)
        except Problem as problem:
            return self._refuse(self._charge_failed_login(problem), headers, route.effect)
        except Exception as error:
            return self._refuse(error, headers, route.effect)

    def _refuse(
        self, error: Exception, headers: HTTPHeaders, effect: Effect = "claimed"
    ) -> Response:
        """Return the response to an error, which is logged if access was the reason."""
        writer, path = self._writer, self._path
        self._tracker.audit.failed(error, writer.id, self._client, self._address)
        if writer.method not in ("GET", "HEAD") or not opens_page(headers):
            return answer_to(error, writer.id, effect)
        if self._resolved is not None:
            route, parameter, _, _ = self._resolved
            path = _PARAMETER.sub(lambda _: parameter, route.path)
        problem = problem_of(error, writer.id, effect)
        return error_page(problem, writer.id, path, self._routes.paths)

    def _account(self, status: int) -> None:
        seconds = time.perf_counter() - self._began
        label, inbox, is_probe = "none", "", False
        if self._resolved is not None:
            route, inbox, _, _ = self._resolved
            if ":username" not in route.path:
                inbox = ""
            label = route.path + WAIT_SUFFIX if self._is_waiting else route.path
            is_probe = route.is_probe
        method = self._writer.method
        answered = AnsweredRequest(
            self._writer.id,
            method if method in _METHODS else "other",
            label,
            inbox,
            self._address,
            status,
            seconds,
            is_probe,
            self._permit.recipient,
            self._agent,
        )
        self._tracker.account(answered, self._span)

    def _count_bytes(self, size: int) -> None:
        """Count bytes of the body that have arrived, including their framing."""
        self._tracker.bodies.grow(self, size)

    def _give_up_answer(self) -> None:
        """Count the messages in a response that came with the handoff and was never written."""
        if self._answered is not None:
            self._tracker.on_undelivered(self._answered.messages)
            self._answered = None

    def _on_gone(self) -> None:
        """Cancel the handler: the client disconnected. Commands that were not sent never are."""
        if self._task is not None:
            self._task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tracker.request_closed(self)
        self._tracker.bodies.release(self)
        self._give_up_answer()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an exchange failed", id=self._writer.id, exc_info=error)
            self._connection.close()


def _declared_length(headers: HTTPHeaders) -> int:
    """Return the declared length of the body, or 0. Tornado refuses a malformed length."""
    declared = _LENGTH.fullmatch(headers.get("Content-Length", ""))
    if declared is None:
        return 0
    # Python does not convert a number of thousands of digits.
    return int(declared[1]) if len(declared[1]) < 19 else 1 << 62
