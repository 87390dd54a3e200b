"""One request of the fast path, from its match to its response. It knows no socket.

`chat_service.server.fast_connection` makes one for each match, and sends its response.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from chat_service.access.clients import peer_of
from chat_service.access.limits import MESSAGE_COST
from chat_service.api.authorization import authorize
from chat_service.api.identity import EVERYONE, Client
from chat_service.api.problems import Problem, answer_to
from chat_service.api.request_options import WAIT_SUFFIX, is_waiting
from chat_service.api.types import AnsweredRequest, Response
from chat_service.handlers.inbox import InboxHandlers
from chat_service.server.header_cache import RequestHead
from chat_service.server.request_match import RequestMatch
from chat_service.server.request_tracker import RequestTracker
from workers.tracing import current

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chat_service.otlp.tracing import RequestTracer


class Sender:
    """Who sends on a connection: nearly always the client that sent the last request."""

    __slots__ = ("_client", "_peer", "_tracker")

    def __init__(self, tracker: RequestTracker, address: tuple[object, ...]) -> None:
        """`address` is that of the peer, as `accept` returned it."""
        self._tracker = tracker
        self._peer = peer_of(address)
        self._client: Client | None = None

    def address_of(self, head: RequestHead) -> str:
        """Return the address of the client that sent a request."""
        proxies = self._tracker.proxies
        if proxies is None:
            return self._peer
        return proxies.client_of(self._peer, head.forwarded_for, head.forwarded)

    def client_of(self, head: RequestHead) -> Client:
        """Return the client that sent a request."""
        client, tracker = self._client, self._tracker
        if client is None or client.identity is not head.identity or tracker.proxies is not None:
            client = self._client = tracker.gate.client(head.identity, self.address_of(head))
        return client


class FastRequest(Struct):
    """A request that is being served, and what its response and its accounting need."""

    match: RequestMatch
    sender: Sender
    id: str
    #: When it began, in seconds of `time.perf_counter`.
    began: float
    #: The bytes of a read: a long one goes to Tornado together with its response.
    raw: bytes = b""
    #: Whether its client is still sending it.
    is_partial: bool = False
    span: "Span | None" = None
    #: Set while the pool has the request, and the function that its outcome is answered with.
    future: asyncio.Future[Any] | None = None
    render: Callable[[Any], Response] | None = None
    #: The claimed messages that are lost if the response is not delivered.
    claimed: int = 0
    #: The key of the client that it counts for while it waits.
    waits_as: str | None = None
    #: The username in the body of a post, once that was read.
    recipient: str = ""

    def begin(self, tracker: RequestTracker, inbox: InboxHandlers, body: bytes) -> Response | None:
        """Give the request to the pool: `future` is set. Return the response if it is refused."""
        match = self.match
        client = self.sender.client_of(match.head)
        try:
            if tracker.limiter is not None:
                tracker.limiter.admit(client.key, MESSAGE_COST, match.head.length, match.effect)
            if match.method == "POST":
                if client.identity is not EVERYONE:
                    authorize(client.identity, "send", "")
                new = inbox.parse_post(body)
                self.recipient = new.username
                self.future, self.render = inbox.begin_post(new, client)
            else:
                if client.identity is not EVERYONE:
                    authorize(client.identity, "read", match.parameter)
                if match.query and is_waiting(match.query):
                    self._begin_to_wait(tracker, inbox, client)
                else:
                    self.future, self.render = inbox.begin_read(
                        match.parameter, match.query, client
                    )
        except Exception as error:
            return self._refuse(tracker, error)
        return None

    def _begin_to_wait(self, tracker: RequestTracker, inbox: InboxHandlers, client: Client) -> None:
        """Begin a long poll. It counts as a wait until it has its outcome."""
        match, waits, key = self.match, tracker.waits, client.key
        waits.enter(key, match.effect)
        try:
            self.future, self.render = inbox.begin_read(match.parameter, match.query, client)
        except BaseException:
            waits.leave(key)
            raise
        self.waits_as = key

    def _end_wait(self, tracker: RequestTracker) -> None:
        if self.waits_as is not None:
            tracker.waits.leave(self.waits_as)
            self.waits_as = None

    def begin_traced(
        self, tracer: "RequestTracer", tracker: RequestTracker, inbox: InboxHandlers, body: bytes
    ) -> Response | None:
        """Do what `begin` does, as a part of the request's trace."""
        match = self.match
        self.span = tracer.begin(match.method, match.route, self.id, match.head.traceparent)
        token = current.set(self.span)
        try:
            return self.begin(tracker, inbox, body)
        finally:
            current.reset(token)

    def respond(self, tracker: RequestTracker, outcome: asyncio.Future[Any]) -> Response:
        """Return the response to an outcome. `claimed` is set from here on."""
        assert self.render is not None
        self._end_wait(tracker)
        try:
            result = outcome.result()
        except Exception as error:
            return answer_to(error, self.id, self.match.effect)
        if self.match.method == "GET":
            self.claimed = len(result.messages)
        return self.render(result)

    def recheck(self, tracker: RequestTracker) -> Response | None:
        """Return the refusal if the request waits and its sender may no longer read.

        A read that has its outcome is answered. What a cancelled one claims is rolled back.
        """
        match, head = self.match, self.match.head
        if match.method != "GET" or self.future is None:
            return None
        try:
            tracker.gate.identify_again(head.identity, "read", match.parameter)
        except Problem as problem:
            if self.future.cancel():
                self._end_wait(tracker)
                return self._refuse(tracker, problem)
        return None

    def abandon(self, tracker: RequestTracker) -> None:
        """Do not wait for the outcome. Messages that were claimed are counted as undelivered."""
        self._end_wait(tracker)
        future = self.future
        if future is not None and not future.cancel() and not future.cancelled():
            # The client left in the same turn of the loop in which the outcome arrived, or later.
            is_answered = future.exception() is None
            if is_answered and self.match.method == "GET":
                self.claimed = len(future.result().messages)
        if self.claimed:
            tracker.on_undelivered(self.claimed)

    def account(self, tracker: RequestTracker, status: int) -> None:
        """Count and log the request."""
        match = self.match
        route = match.route
        if match.query and is_waiting(match.query):
            route += WAIT_SUFFIX
        address = self.sender.address_of(match.head)
        seconds = time.perf_counter() - self.began
        answered = AnsweredRequest(
            self.id,
            match.method,
            route,
            match.parameter,
            address,
            status,
            seconds,
            False,
            self.recipient,
            match.head.agent,
        )
        tracker.account(answered, self.span)

    def _refuse(self, tracker: RequestTracker, error: Exception) -> Response:
        """Return the response to an error, which is logged if access was the reason."""
        head, sender = self.match.head, self.sender
        tracker.audit.failed(error, self.id, sender.client_of(head), sender.address_of(head))
        return answer_to(error, self.id, self.match.effect)
