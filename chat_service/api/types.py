"""A request and a response, as handlers see them: plain values."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

from msgspec import Struct
from tornado.iostream import IOStream

#: The status under which a request is counted whose client did not wait for its answer.
CLIENT_GONE = 499
JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Request(Struct, frozen=True):
    """A whole request. `parameter` is the path's variable segment, still percent-encoded."""

    id: str
    method: str
    parameter: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class BodyChunk(NamedTuple):
    """A piece of a body, and how many claimed messages are in it."""

    body: bytes
    messages: int


class Response(Struct, frozen=True):
    """A whole response. Its body is one part, or parts that are written as they come.

    What could not be written is counted by the messages in it, so that nothing that was claimed
    is forgotten.
    """

    status: int
    headers: Mapping[str, str]
    body: BodyChunk | AsyncIterator[BodyChunk]


class Takeover(Struct, frozen=True):
    """The answer to a request after which its connection speaks something else than HTTP.

    `serve` is given the connection's stream, and closes it in the end.
    """

    status: int
    serve: Callable[[IOStream], Awaitable[None]]
