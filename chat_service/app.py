"""The route table, and what all exchanges of the process share."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPConnection, HTTPServerConnectionDelegate

from chat_service.api.problems import method_not_allowed, not_found
from chat_service.api.request_policy import STREAM, HostRule, refuse_other_pages, refuse_prefetches
from chat_service.api.types import BodyChunk, Request, Response, Takeover
from chat_service.handlers.batch import BatchHandlers
from chat_service.handlers.dashboard import DashboardHandlers
from chat_service.handlers.health import HealthHandlers
from chat_service.handlers.inbox import InboxHandlers
from chat_service.handlers.leases import LeaseHandlers
from chat_service.handlers.messages import MessageHandlers
from chat_service.handlers.pages import PageHandlers
from chat_service.handlers.stream import StreamHandlers
from chat_service.metrics.http import HttpMetrics
from chat_service.server.access_log import AccessLog
from chat_service.server.body_budget import BodyBudget
from chat_service.server.exchange import Exchange
from chat_service.server.http_date import DateCache

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chat_service.otlp.tracing import RequestTracer

Handler: TypeAlias = Callable[[Request], Awaitable[Response | Takeover]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


class Route(NamedTuple):
    """A path, with at most one `:parameter`, and the handler of each method.

    `max_body_bytes` where its bodies may be longer than others, `allowed_origins` where pages of
    other sites may use it.
    """

    path: str
    methods: Mapping[str, Handler]
    max_body_bytes: int = 0
    allowed_origins: frozenset[str] = frozenset()


class Resolved(NamedTuple):
    """The route of a request, its path's variable segment as sent, its handler, and how long its
    body may be.
    """

    route: str
    parameter: str
    handler: Handler
    max_body_bytes: int


class Handlers(NamedTuple):
    """Those of every part of the API."""

    inbox: InboxHandlers
    batch: BatchHandlers
    leases: LeaseHandlers
    stream: StreamHandlers
    messages: MessageHandlers
    health: HealthHandlers
    pages: PageHandlers
    dashboard: DashboardHandlers


def make_routes(
    handlers: Handlers, max_batch_bytes: int, allowed_origins: frozenset[str]
) -> Sequence[Route]:
    """Every resource of the service. A username is one whole segment; no name is reserved.

    Of routes that fit a path, the first counts that has the method: `/chat/batch` is posted to as
    itself and read as the inbox of that name.
    """
    inbox, batch, leases, stream, messages, _, pages, _ = handlers
    return (
        Route("/chat", {"POST": inbox.post}),
        Route("/chat/batch", {"POST": batch.post}, max_batch_bytes),
        Route("/chat/:username", {"GET": inbox.read, "HEAD": inbox.count}),
        Route("/chat/:username/read", {"POST": inbox.read}),
        Route("/chat/:username/lease", {"POST": leases.take}),
        Route("/chat/:username/ack", {"POST": leases.acknowledge}),
        Route("/chat/:username/release", {"POST": leases.release}),
        Route("/chat/:username/extend", {"POST": leases.extend}),
        Route(STREAM, {"GET": stream.stream}, 0, allowed_origins),
        Route("/messages/:id", {"DELETE": messages.revoke}),
        Route("/messages/:id/status", {"GET": messages.status}),
        Route("/", {"GET": pages.inbox, "HEAD": pages.inbox}),
        Route("/docs", {"GET": pages.docs, "HEAD": pages.docs}),
        Route("/openapi.json", {"GET": pages.openapi, "HEAD": pages.openapi}),
        *make_common_routes(handlers),
    )


def make_common_routes(handlers: Handlers) -> Sequence[Route]:
    """What is on every port: health, and the files that pages are made of."""
    health, pages = handlers.health, handlers.pages
    return (
        Route("/livez", {"GET": health.live, "HEAD": health.live}),
        Route("/readyz", {"GET": health.ready, "HEAD": health.ready}),
        Route("/assets/:file", {"GET": pages.asset, "HEAD": pages.asset}),
    )


def make_ops_routes(handlers: Handlers) -> Sequence[Route]:
    """What operators look at; not for everybody."""
    health, pages, dashboard = handlers.health, handlers.pages, handlers.dashboard
    return (
        Route("/ops", {"GET": pages.dashboard, "HEAD": pages.dashboard}),
        Route("/ops/history", {"GET": dashboard.history, "HEAD": dashboard.history}),
        Route("/metrics", {"GET": health.metrics, "HEAD": health.metrics}),
    )


class AppLimits(NamedTuple):
    """The front end's bounds: bytes of a body, seconds for a write, the hosts answered for."""

    max_body_bytes: int
    write_timeout_s: float
    host_rule: HostRule


class App(HTTPServerConnectionDelegate):
    """Makes an `Exchange` for each request, and keeps those that are open."""

    def __init__(
        self,
        routes: Sequence[Route],
        limits: AppLimits,
        metrics: HttpMetrics,
        access_log: AccessLog,
        on_undelivered: Callable[[int], None],
        bodies: BodyBudget,
        tracer: "RequestTracer | None" = None,
    ) -> None:
        self.max_body_bytes, self.write_timeout_s, self.host_rule = limits
        self.on_undelivered = on_undelivered
        self.bodies = bodies
        self.date = DateCache()
        self.tracer = tracer
        #: Requests whose head has arrived.
        self.requests = 0
        #: Told of a connection that is HTTP's no more (1), and of its end (-1).
        self.on_takeover: Callable[[int], None] = lambda _: None
        # Whoever serves one of which something has arrived and that is not answered yet.
        self._open: set[object] = set()
        self._idle = asyncio.Event()
        self._routes = [(route.path.split("/")[1:], route) for route in routes]
        self._metrics = metrics
        self._access_log = access_log
        self._id_prefix = secrets.token_hex(6)
        self._ids_made = 0

    @property
    def open_requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._open)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> Exchange:
        """Called by Tornado for each request on a connection."""
        return Exchange(self, cast(HTTP1Connection, request_conn))

    def request_opened(self, server: object) -> None:
        """A request's head has arrived, and `server` serves it."""
        self.requests += 1
        self._open.add(server)
        self._idle.clear()

    def request_closed(self, server: object) -> None:
        """It has been answered, or nobody waits for its answer. Harmless twice."""
        self._open.discard(server)
        if not self._open:
            self._idle.set()

    async def idle(self, timeout_s: float) -> int:
        """Wait until no request is open; how many are when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._open:
                    await self._idle.wait()
        except TimeoutError:
            pass
        return len(self._open)

    def next_request_id(self) -> str:
        """An id that no other request has, over all processes."""
        self._ids_made += 1
        return f"{self._id_prefix}-{self._ids_made:x}"

    def resolve(self, method: str, path: str, headers: Mapping[str, str]) -> Resolved:
        """The handler of a request. Raises a `Problem`: 404, 405, or 403 for one nobody meant."""
        root, *segments = path.split("/")
        if root:
            raise not_found()
        fitting: list[Route] = []
        for pattern, route in self._routes:
            if len(pattern) != len(segments):
                continue
            parameter = ""
            for wanted, segment in zip(pattern, segments, strict=True):
                if wanted.startswith(":") and segment:
                    parameter = segment
                elif wanted != segment:
                    break
            else:
                if (handler := route.methods.get(method)) is not None:
                    if route.path.startswith(("/chat", "/messages")):
                        refuse_prefetches(headers)
                        refuse_other_pages(headers, route.allowed_origins)
                    max_body_bytes = route.max_body_bytes or self.max_body_bytes
                    return Resolved(route.path, parameter, handler, max_body_bytes)
                fitting.append(route)
        if not fitting:
            raise not_found()
        allowed = ", ".join((*(name for route in fitting for name in route.methods), "OPTIONS"))
        if method != "OPTIONS":
            raise method_not_allowed(allowed)

        async def options(request: Request) -> Response:
            return Response(204, {"Allow": allowed, "Cache-Control": "no-store"}, BodyChunk(b"", 0))

        return Resolved(fitting[-1].path, "", options, self.max_body_bytes)

    def account(
        self,
        request_id: str,
        method: str,
        route: str,
        inbox: str,
        client: str,
        status: int,
        seconds: float,
        span: "Span | None" = None,
    ) -> None:
        """Count and log one answered request.

        `inbox` is the path's segment as sent, or empty; `client` the address of the peer.
        """
        if span is not None and self.tracer is not None:
            self.tracer.end(span, status)
        method = method if method in _METHODS else "other"
        self._metrics.answered(method, route, status, seconds)
        self._access_log.write(request_id, method, route, inbox, client, status, seconds)
