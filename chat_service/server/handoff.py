"""A connection on its way from the fast path to Tornado, with the bytes that were read from it.

Made by `chat_service.server.fast_connection`. `chat_service.server.listener` turns it into a stream
for Tornado, and `chat_service.server.exchange` takes a response that is ready.
"""

import socket
from typing import TYPE_CHECKING, NamedTuple

from chat_service.api.identity import Client
from chat_service.api.types import Response
from chat_service.server.http_stream import HttpStream
from chat_service.server.lingering import Lingering

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from chat_service.server.request_tracker import Serving


class Answered(NamedTuple):
    """The response to a request that was handled on the fast path.

    `client` sent it, and `messages` were claimed for it. `began` is in seconds of
    `time.perf_counter`. `span` is set if the request is traced.
    """

    response: Response
    messages: int
    id: str
    began: float
    span: "Span | None"
    client: Client


class Handoff(NamedTuple):
    """A connection with the bytes that were read: its next request, whole or in part, and others.

    `answered` is set if that request was handled. `server` is set if it counts as open: the object
    that `RequestTracker.request_opened` was called with.
    """

    socket: socket.socket
    address: tuple[object, ...]
    held: bytes
    answered: Answered | None
    server: "Serving | None"


class PrefetchedStream(HttpStream):
    """A stream whose first bytes have already been read."""

    __slots__ = ("_handoff",)

    def __init__(self, handoff: Handoff, lingering: Lingering) -> None:
        self._handoff: Handoff | None = handoff
        super().__init__(handoff.socket, lingering, handoff.held)

    def take_handoff(self) -> Handoff | None:
        """Return the handoff for the first request, and None for later ones."""
        handoff, self._handoff = self._handoff, None
        return handoff

    def set_nodelay(self, value: bool) -> None:
        """Do nothing: the fast path has set the option, and Tornado would unset it.

        Without it, the kernel delays the end of a response until the client has acknowledged the
        bytes before it.
        """
