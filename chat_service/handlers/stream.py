"""GET /chat/:username/stream: Server-Sent Events, or a WebSocket if the client asks for one."""

import time
from collections.abc import AsyncIterator

import msgspec

from chat_service.api.request_options import reject_parameters
from chat_service.api.types import BodyChunk, Request, Response, Takeover
from chat_service.api.validation import MessageLimits, is_message_id, username_in_path
from chat_service.streaming.subscription import LEASE_S, Subscription
from chat_service.streaming.websocket import accept
from workers.commands import Message
from workers.pool import WorkerPool

#: A message is acknowledged if its client stays connected for so many seconds after it was written.
ACKNOWLEDGED_AFTER_S = 10.0
#: Seconds of silence after which a comment is sent, because proxies close silent connections.
KEEP_ALIVE_S = 15.0
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    # Otherwise nginx holds events back until its buffer is full.
    "X-Accel-Buffering": "no",
}
#: Tells clients to wait so many milliseconds before they reconnect.
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
        """GET /chat/:username/stream: stream unread and new messages, each as a lease."""
        username = username_in_path(request.parameter, self._rules)
        reject_parameters(request.query)
        # Checked before the head is sent, because an open stream can no longer report a refusal.
        self._pool.refuse_wait_if_full()
        client = request.client.key
        if request.headers.get("Upgrade", "").lower() == "websocket":
            stream = Subscription(self._pool, username, client, is_lease_known=False)
            request.permit.on_end = stream.end
            return accept(request.id, request.headers, stream, self._write_s)
        last = request.headers.get("Last-Event-ID", "")
        if not is_message_id(last):
            # No message has this id, so the database is not queried.
            last = ""
        headers = _HEADERS
        if (origin := request.headers.get("Origin")) in self._allowed_origins:
            headers = {**headers, "Access-Control-Allow-Origin": str(origin), "Vary": "Origin"}
        stream = Subscription(self._pool, username, client, is_lease_known=True)
        request.permit.on_end = stream.end
        return Response(200, headers, self._events(stream, last))

    async def _events(self, stream: Subscription, last: str) -> AsyncIterator[BodyChunk]:
        # The chunks declare no claimed messages: lost chunks lose none, because all are leased.
        try:
            lease = stream.lease
            yield BodyChunk(_RETRY + _opened(lease), 0)
            if last:
                await stream.resume(last)
            while not stream.is_ending:
                messages = await stream.next(KEEP_ALIVE_S)
                if stream.is_ended or (not messages and stream.is_ending):
                    break
                if not messages:
                    yield BodyChunk(b": keep-alive\n\n", 0)
                    continue
                # The lease changes if the database was unavailable meanwhile.
                opened = _opened(stream.lease) if stream.lease != lease else b""
                lease = stream.lease
                ids = [each.id for each in messages]
                events = opened + b"".join(map(_event, messages))
                # Neither is kept while the stream waits for more.
                del messages, opened
                began = time.monotonic()
                yield BodyChunk(events, 0)
                del events
                # The server resumes this generator once the kernel has accepted the chunk.
                if time.monotonic() - began > LEASE_S / 4:
                    # The client reads slowly, and the lease has been running meanwhile.
                    await stream.hold()
                stream.acknowledge_later(ACKNOWLEDGED_AFTER_S, ids)
                del ids
        finally:
            await stream.close()


def _event(message: Message) -> bytes:
    """Return the event with a message. It has the fields of a plain read.

    Encoded JSON has no line breaks, so it is one `data` line.
    """
    data = _encode(Message(message.text, message.id))
    return b"id: %b\nevent: message\ndata: %b\n\n" % (message.id.encode(), data)


def _opened(lease: str) -> bytes:
    """Return the event with the lease of the messages that follow it."""
    return b'event: open\ndata: {"lease":"%b"}\n\n' % lease.encode()
