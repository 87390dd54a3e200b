"""The route table, and what all exchanges of the process share."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPConnection, HTTPServerConnectionDelegate

from chat_service.exchange import Exchange
from chat_service.guard import refuse_the_unasked
from chat_service.handlers.health import HealthHandlers
from chat_service.handlers.inbox import InboxHandlers
from chat_service.message import Part, Request, Response
from chat_service.metrics import HttpMetrics
from chat_service.problems import method_not_allowed, not_found
from chat_service.request_log import RequestLog

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


class Route(NamedTuple):
    """A path, with at most one `:parameter`, and the handler of each method."""

    path: str
    methods: Mapping[str, Handler]


class Resolved(NamedTuple):
    """The route of a request, its path's variable segment as sent, and its handler."""

    route: str
    parameter: str
    handler: Handler


def make_routes(inbox: InboxHandlers, health: HealthHandlers) -> Sequence[Route]:
    """Every resource of the service. A username is one whole segment; no name is reserved."""
    return (
        Route("/chat", {"POST": inbox.post}),
        Route("/chat/:username", {"GET": inbox.read, "HEAD": inbox.count}),
        Route("/chat/:username/read", {"POST": inbox.read}),
        Route("/livez", {"GET": health.live, "HEAD": health.live}),
        Route("/readyz", {"GET": health.ready, "HEAD": health.ready}),
        Route("/metrics", {"GET": health.metrics}),
    )


class AppLimits(NamedTuple):
    """The front end's bounds: bytes of a body, seconds for a write, `Host` names (or none)."""

    max_body_bytes: int
    write_timeout_s: float
    allowed_hosts: frozenset[str]


class App(HTTPServerConnectionDelegate):
    """Makes an `Exchange` for each request, and keeps those that are open."""

    def __init__(
        self,
        routes: Sequence[Route],
        limits: AppLimits,
        metrics: HttpMetrics,
        request_log: RequestLog,
        on_undelivered: Callable[[int], None],
    ) -> None:
        self.max_body_bytes, self.write_timeout_s, self.allowed_hosts = limits
        self.on_undelivered = on_undelivered
        #: Requests whose head has arrived.
        self.requests = 0
        # Whoever serves one of which something has arrived and that is not answered yet.
        self._open: set[object] = set()
        self._idle = asyncio.Event()
        self._routes = [(route.path.split("/")[1:], route) for route in routes]
        self._metrics = metrics
        self._request_log = request_log
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
                return self._resolve_method(route, method, parameter, headers)
        raise not_found()

    def account(
        self, request_id: str, method: str, route: str, inbox: str, status: int, seconds: float
    ) -> None:
        """Count and log one answered request. `inbox` is the path's segment as sent, or empty."""
        method = method if method in _METHODS else "other"
        self._metrics.answered(method, route, status, seconds)
        self._request_log.write(request_id, method, route, inbox, status, seconds)

    def _resolve_method(
        self, route: Route, method: str, parameter: str, headers: Mapping[str, str]
    ) -> Resolved:
        handler = route.methods.get(method)
        if handler is not None:
            if route.path.startswith("/chat"):
                refuse_the_unasked(headers)
            return Resolved(route.path, parameter, handler)
        allowed = ", ".join((*route.methods, "OPTIONS"))
        if method != "OPTIONS":
            raise method_not_allowed(allowed)

        async def options(request: Request) -> Response:
            return Response(204, {"Allow": allowed, "Cache-Control": "no-store"}, Part(b"", 0))

        return Resolved(route.path, parameter, options)
