"""Route descriptions, and the lookup that finds the handler of a request. No sockets.

`chat_service.routes` holds the table. Everything that a part of the service has to know about a
route is a field of its `Route`: no other module compares paths.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from chat_service.api.identity import Right
from chat_service.api.problems import Effect, method_not_allowed, not_found
from chat_service.api.request_policy import reject_other_pages, reject_prefetches
from chat_service.api.types import BodyChunk, Request, Response, Takeover

Handler: TypeAlias = Callable[[Request], Awaitable[Response | Takeover]]
#: Who uses a route:
#: "clients" are programs that post and read messages; their requests are checked by
#: `request_policy` and counted on the dashboard. "people" use the web UI and the API reference.
#: "operators" use the dashboard and the metrics, which can be on a port of their own. Routes for
#: "everyone" are on every port.
Audience: TypeAlias = Literal["clients", "people", "operators", "everyone"]

#: The audience of a route, by the first segment of its path. A new segment must be added here.
_AUDIENCES: Mapping[str, Audience] = {
    "chat": "clients",
    "messages": "clients",
    "": "people",
    "docs": "people",
    "openapi.json": "people",
    "ops": "operators",
    "metrics": "operators",
    "livez": "everyone",
    "readyz": "everyone",
    "session": "everyone",
    ".well-known": "everyone",
    "assets": "everyone",
}
#: The fast path serves plain requests of these two routes.
POST_PATH, INBOX_PATH = "/chat", "/chat/:username"
#: Streams last as long as their clients like, so metrics of durations leave them out.
STREAM_PATH = "/chat/:username/stream"


def audience_of(path: str) -> Audience:
    """Return the audience of the route with this path."""
    return _AUDIENCES[path.split("/", 2)[1].partition("?")[0]]


class Route(NamedTuple):
    """One path with methods, and all that the service has to know about them.

    `path` has at most one `:parameter`, which stands for one segment.
    """

    path: str
    methods: Mapping[str, Handler]
    #: What a request that is not served did not do: a 503 says `"stored": false`, for example.
    effect: Effect = "claimed"
    #: Whether a request can be a long poll. Long polls are counted under a label of their own.
    can_wait: bool = False
    #: The query parameters. Any other one is refused; with None, others are ignored.
    parameters: Sequence[str] | None = None
    #: The longest body, in bytes; 0 for the limit that applies to all routes.
    max_body_bytes: int = 0
    #: Origins other than the service's own whose pages may use this route.
    allowed_origins: frozenset[str] = frozenset()
    #: Whether a client can upgrade the connection to a WebSocket.
    takes_websockets: bool = False
    #: The right that a request needs, for the username in the path or in the body. None: no right.
    right: Right | None = None
    #: Whether a response lasts as long as its client likes.
    is_stream: bool = False
    #: Whether the handler charges for a request, since its cost depends on the body.
    is_charged_by_handler: bool = False
    #: Whether a request gives messages back or finishes them. One that came too late would cost the
    #: client its lease, so it is served although the client exceeds its rate, within bounds.
    frees_work: bool = False
    #: Whether monitoring asks this all the time. Such requests are logged at level debug.
    is_probe: bool = False
    #: Whether the `Host` does not matter: probes use any address, and learn nothing secret.
    takes_any_host: bool = False

    @property
    def audience(self) -> Audience:
        """Return who uses the route."""
        return audience_of(self.path)


class Resolved(NamedTuple):
    """The result of a lookup: the route, the handler, and the longest body in bytes.

    `parameter` is the variable segment of the path as it was sent, or empty.
    """

    route: Route
    parameter: str
    handler: Handler
    max_body_bytes: int


class RouteTable:
    """Finds the handlers of requests."""

    def __init__(
        self,
        routes: Sequence[Route],
        max_body_bytes: int,
        own_origins: frozenset[str] = frozenset(),
    ) -> None:
        """`max_body_bytes` applies to all routes without a limit of their own.

        `own_origins` has the origin of the service if a proxy changes its `Host`.
        """
        self._routes = [
            (route.path.split("/")[1:], route, route.audience == "clients") for route in routes
        ]
        self._own_origins = own_origins
        self.max_body_bytes = max_body_bytes
        self.paths = frozenset(route.path for route in routes)
        #: The paths for which the `Host` is not checked.
        self.any_host_paths = frozenset(route.path for route in routes if route.takes_any_host)

    def resolve(self, method: str, path: str, headers: Mapping[str, str]) -> Resolved:
        """Return the handler of a request, the first that fits.

        `path` is the path as sent, without the query. Raises `Problem`: 404 for an unknown path,
        405 for a method that the path does not have, and 403 for a request that
        `request_policy` refuses.
        """
        root, *segments = path.split("/")
        if root:
            raise not_found()
        fitting: list[Route] = []
        for pattern, route, is_checked in self._routes:
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
                    if is_checked:
                        reject_prefetches(headers)
                        reject_other_pages(headers, route.allowed_origins | self._own_origins)
                    max_body_bytes = route.max_body_bytes or self.max_body_bytes
                    return Resolved(route, parameter, handler, max_body_bytes)
                fitting.append(route)
        if not fitting:
            raise not_found()
        names = dict.fromkeys(name for route in fitting for name in route.methods)
        allowed = ", ".join((*names, "OPTIONS"))
        if method != "OPTIONS":
            raise method_not_allowed(allowed)

        async def options(request: Request) -> Response:
            return Response(204, {"Allow": allowed, "Cache-Control": "no-store"}, BodyChunk(b"", 0))

        return Resolved(fitting[-1], "", options, self.max_body_bytes)
