"""A connection on its way from `chat_service.server.fast_path` to Tornado, with what was read of
it.

`chat_service.server.listener` makes it, Tornado reads it, `chat_service.server.exchange` asks
whether its first
request has been answered by the handler already.
"""

import socket
from typing import TYPE_CHECKING, NamedTuple

from chat_service.api.types import Response
from chat_service.server.http_stream import HttpStream
from chat_service.server.lingering import Lingering

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Answered(NamedTuple):
    """A request that was handled already: its answer, and the claimed messages ready in it.

    With the id that it was given, when it began, in seconds of `time.perf_counter`, and its span
    where it is traced.
    """

    response: Response
    messages: int
    id: str
    began: float
    span: "Span | None"


class Handoff(NamedTuple):
    """A connection of which `held` was read: its next request, whole or in part, and what follows.

    `answered` is there where that request was handled; `server` is who had it counted as open.
    """

    socket: socket.socket
    address: tuple[object, ...]
    held: bytes
    answered: Answered | None
    server: object | None


class PrefetchedStream(HttpStream):
    """A stream whose first bytes have been read before."""

    def __init__(self, handoff: Handoff, lingering: Lingering) -> None:
        self._handoff: Handoff | None = handoff
        super().__init__(handoff.socket, lingering, handoff.held)

    def take_handoff(self) -> Handoff | None:
        """What came with the connection, once."""
        handoff, self._handoff = self._handoff, None
        return handoff

    def set_nodelay(self, value: bool) -> None:
        """Leave it set, as it is from the first: Tornado would unset it between requests.

        The kernel would then keep the end of an answer back until what was sent before it is
        acknowledged.
        """
