"""What all requests of one port share: their accounting, their ids, and their limits.

Made by `chat_service.service`. Used by `chat_service.server.exchange` and
`chat_service.server.fast_connection`.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from chat_service.access.audit import AuditLog
from chat_service.access.gate import Gate
from chat_service.access.limits import ClientPolicy
from chat_service.api.request_policy import HostRule
from chat_service.api.types import AnsweredRequest
from chat_service.metrics.http import HttpMetrics
from chat_service.server.access_log import AccessLog
from chat_service.server.body_budget import BodyBudget
from chat_service.server.connection_counter import ConnectionCounter
from chat_service.server.http_date import DateCache

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chat_service.otlp.tracing import RequestTracer

log = structlog.get_logger(__name__)


class RequestLimits(NamedTuple):
    """The limits of a port: bytes of a body, seconds for a write, and the hosts it answers for."""

    max_body_bytes: int
    write_timeout_s: float
    host_rule: HostRule


class Serving(Protocol):
    """An exchange or a connection that has a request in progress."""

    def recheck(self) -> None:
        """End the request if it waits and its sender may no longer wait."""
        ...


class RequestTracker:
    """Knows the open requests of a port, and counts and logs those that are answered."""

    def __init__(
        self,
        limits: RequestLimits,
        metrics: HttpMetrics,
        access_log: AccessLog,
        on_undelivered: Callable[[int], None],
        bodies: BodyBudget,
        connections: ConnectionCounter,
        gate: Gate,
        audit: AuditLog,
        clients: ClientPolicy,
        tracer: "RequestTracer | None" = None,
    ) -> None:
        """`on_undelivered` is called with the number of messages in an undelivered answer."""
        self.max_body_bytes, self.write_timeout_s, self.host_rule = limits
        self.on_undelivered = on_undelivered
        self.bodies = bodies
        self.connections = connections
        self.gate = gate
        self.audit = audit
        self.proxies, self.limiter, self.waits = clients
        self.date = DateCache()
        self.tracer = tracer
        #: The number of requests whose head has arrived.
        self.requests = 0
        self._open: set[Serving] = set()
        # Set while something waits until no request is open.
        self._idle: asyncio.Event | None = None
        self._metrics = metrics
        self._access_log = access_log
        # Those that will be counted and logged in the next turn of the loop.
        self._answered: list[AnsweredRequest] = []
        self._id_prefix = secrets.token_hex(6)
        self._ids_made = 0

    @property
    def open_requests(self) -> int:
        """Return the number of requests that have no answer yet."""
        return len(self._open)

    def request_opened(self, server: Serving) -> None:
        """Record that the head of a request has arrived, and that `server` serves it."""
        self.requests += 1
        self._open.add(server)

    def request_closed(self, server: Serving | None) -> None:
        """Record that the request was answered or abandoned. Safe to call twice."""
        if server is not None:
            self._open.discard(server)
        if self._idle is not None and not self._open:
            self._idle.set()

    def recheck(self) -> None:
        """End the waits and streams of senders whose token has ended or whose rights have changed.

        Called when the gate has changed.
        """
        for server in [*self._open]:
            try:
                server.recheck()
            except Exception:
                # The others must be checked all the same.
                log.exception("a request was not checked again")

    async def idle(self, timeout_s: float) -> int:
        """Wait until no request is open. Return how many are still open after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._open:
                    self._idle = asyncio.Event()
                    await self._idle.wait()
        except TimeoutError:
            pass
        return len(self._open)

    def next_request_id(self) -> str:
        """Return an id that no other request of any process has."""
        self._ids_made += 1
        return f"{self._id_prefix}-{self._ids_made:x}"

    def account(self, answered: AnsweredRequest, span: "Span | None" = None) -> None:
        """Count and log one request.

        This happens once in a turn of the loop for all requests that were answered in it, before
        the next request is read.
        """
        if span is not None and self.tracer is not None:
            self.tracer.end(span, answered.status)
        if not self._answered:
            asyncio.get_running_loop().call_soon(self._account_all)
        self._answered.append(answered)

    def _account_all(self) -> None:
        answered, self._answered = self._answered, []
        self._metrics.count(answered)
        self._access_log.write(answered)
