"""GET /chat/:username/stream: Server-Sent Events, or a WebSocket where the client asks for one."""

import time
from collections.abc import AsyncIterator

import msgspec

from chat_service.api.request_options import refuse_parameters
from chat_service.api.types import BodyChunk, Request, Response, Takeover
from chat_service.api.validation import MessageLimits, is_message_id, username_in_path
from chat_service.streaming.subscription import LEASE_S, Subscription
from chat_service.streaming.websocket import accept
from workers.pool import WorkerPool

#: A client that stays connected for so long after an event was written has it. In seconds.
ACKNOWLEDGED_AFTER_S = 10.0
#: A comment is sent when nothing else was for so long, in seconds: proxies close what is silent.
KEEP_ALIVE_S = 15.0
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    # nginx would hold events back until its buffer is full.
    "X-Accel-Buffering": "no",
}
#: How long a client waits before it comes again, in ms.
_RETRY = b"retry: 1000\n\n"

_encode = msgspec.json.Encoder().encode


class StreamHandlers:
    """The handler of streams."""

    def __init__(
        self,
        pool: WorkerPool,
        rules: MessageLimits,
        allowed_origins: frozenset[str],
        write_s: float,
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._allowed_origins = allowed_origins
        self._write_s = write_s

    async def stream(self, request: Request) -> Response | Takeover:
        """Deliver what is unread and what comes, each message as a lease."""
        username = username_in_path(request.parameter, self._rules)
        refuse_parameters(request.query)
        # Before the head is out: an open stream that is refused its wait can only be silent.
        self._pool.refuse_wait_if_full()
        if request.headers.get("Upgrade", "").lower() == "websocket":
            stream = Subscription(self._pool, username, is_lease_known=False)
            return accept(request.id, request.headers, stream, self._write_s)
        last = request.headers.get("Last-Event-ID", "")
        if not is_message_id(last):
            # No message has it: the database need not be asked.
            last = ""
        headers = dict(_HEADERS)
        if (origin := request.headers.get("Origin")) in self._allowed_origins:
            headers |= {"Access-Control-Allow-Origin": str(origin), "Vary": "Origin"}
        stream = Subscription(self._pool, username, is_lease_known=True)
        return Response(200, headers, self._events(stream, last))

    async def _events(self, stream: Subscription, last: str) -> AsyncIterator[BodyChunk]:
        # No message of a part is lost with it: counted are those that would be.
        try:
            lease = stream.lease
            yield BodyChunk(_RETRY + _opened(lease), 0)
            if last:
                await stream.resume(last)
            while not stream.is_ending:
                messages = await stream.next(KEEP_ALIVE_S)
                if not messages and stream.is_ending:
                    break
                if not messages:
                    yield BodyChunk(b": keep-alive\n\n", 0)
                    continue
                # The lease changes where the database was away meanwhile.
                opened = _opened(stream.lease) if stream.lease != lease else b""
                lease = stream.lease
                # JSON has no line ends of its own.
                events = [
                    b"id: %b\nevent: message\ndata: %b\n\n" % (each.id.encode(), _encode(each))
                    for each in messages
                ]
                began = time.monotonic()
                yield BodyChunk(opened + b"".join(events), 0)
                # Asked for more: the kernel has taken these.
                if time.monotonic() - began > LEASE_S / 4:
                    # It was slow, and their lease has gone on meanwhile.
                    await stream.hold()
                stream.acknowledge_later(ACKNOWLEDGED_AFTER_S, [each.id for each in messages])
        finally:
            await stream.close()


def _opened(lease: str) -> bytes:
    """The event that says by what the messages behind it can be acknowledged."""
    return b'event: open\ndata: {"lease":"%b"}\n\n' % lease.encode()
