"""Requests and responses as plain values, independent of sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from msgspec import Struct, field
from tornado.iostream import IOStream

from chat_service.api.identity import UNLIMITED, Client
from chat_service.api.permit import Permit

#: The status that metrics and logs use if a client disconnects before its answer.
CLIENT_GONE = 499
JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Request(Struct, frozen=True):
    """A complete request. `parameter` is the variable segment of its path, percent-encoded."""

    id: str
    method: str
    parameter: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    client: Client = UNLIMITED
    permit: Permit = field(default_factory=Permit)


class BodyChunk(Struct, frozen=True, gc=False):
    """A piece of a body, and the number of claimed messages in it."""

    body: bytes
    messages: int


class Response(Struct, frozen=True):
    """A complete response. Its body is one chunk, or chunks that are written one by one.

    The server counts the claimed messages of every chunk that it cannot deliver.
    """

    status: int
    headers: Mapping[str, str]
    body: BodyChunk | AsyncIterator[BodyChunk]


class AnsweredRequest(Struct, frozen=True, gc=False):
    """A request that was answered or abandoned, as it is counted and logged.

    `method` is one of HTTP's own, or `other`. `inbox` is the segment of the path as sent, and
    `recipient` the username in the body of a post; either may be empty. `client` is the client's
    address, and `agent` the name of its program. `seconds` is how long it took. Probes and
    monitoring are logged apart from other requests.
    """

    id: str
    method: str
    route: str
    inbox: str
    client: str
    status: int
    seconds: float
    is_probe: bool = False
    recipient: str = ""
    agent: str = ""


class Takeover(Struct, frozen=True):
    """A response after which the connection speaks another protocol.

    `serve` receives the connection's stream and closes it at the end.
    """

    status: int
    serve: Callable[[IOStream], Awaitable[None]]
