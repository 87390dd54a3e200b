"""A connection on its way from `chat_service.direct` to Tornado, with what was read of it.

`chat_service.listener` makes it, Tornado reads it, `chat_service.exchange` asks whether its first
request has been answered by the handler already.
"""

import socket
from typing import TYPE_CHECKING, NamedTuple

from tornado.iostream import IOStream

from chat_service.message import Response

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


class Handover(NamedTuple):
    """A connection of which `held` was read: its next request, whole or in part, and what follows.

    `answered` is there where that request was handled; `server` is who had it counted as open.
    """

    socket: socket.socket
    address: tuple[object, ...]
    held: bytes
    answered: Answered | None
    server: object | None


class Resumed(IOStream):
    """A stream whose first bytes have been read before."""

    def __init__(self, handover: Handover, buffer_max: int) -> None:
        self._handover: Handover | None = handover
        self._held = handover.held
        super().__init__(handover.socket, buffer_max)

    def take_handover(self) -> Handover | None:
        """What came with the connection, once."""
        handover, self._handover = self._handover, None
        return handover

    def set_nodelay(self, value: bool) -> None:
        """Leave it set, as it is from the first: Tornado would unset it between requests.

        The kernel would then keep a bare 400 back until the answer before it is acknowledged, and
        drop it with the reset that follows where some of the request has not been read.
        """

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Tornado's hook for reading: what is held comes first."""
        if not self._held:
            return super().read_from_fd(buf)
        count = min(len(buf), len(self._held))
        buf[:count] = self._held[:count]
        self._held = self._held[count:]
        return count
