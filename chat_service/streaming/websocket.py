"""A stream over a WebSocket. Messages that the client does not acknowledge are delivered again.

    server: {"type": "message", "id", "text", "deliveries"}
    client: {"type": "ack", "id"}, cumulative

The `websockets` package implements the protocol without input or output; this module moves bytes
between it and Tornado's stream. `chat_service.handlers.stream` accepts the handshake, and
`chat_service.server.exchange` then runs the WebSocket.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import structlog
from tornado.iostream import IOStream, StreamClosedError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from chat_service.api.problems import bad_request, no_handshake
from chat_service.api.types import Takeover
from chat_service.streaming.subscription import LEASE_S, Subscription
from workers.commands import Delivered, Origin
from workers.errors import ServiceError

log = structlog.get_logger(__name__)

#: The longest message that a client may send, in bytes. Acknowledgements are short.
MESSAGE_MAX = 16 << 10
#: The interval of pings and of extending leases, in seconds, and the number of intervals without a
#: byte from the client after which it is disconnected.
BEAT_S, SILENT_BEATS_MAX = LEASE_S / 3, 3
#: The most frames of one message. Far fewer than a client may send at once, so that a client that
#: breaks only this rule gets this rule's close code.
_FRAGMENTS_MAX = 20
#: The frames that a client may send: at once, more each second, and more for each message that it
#: is sent. Unused ones add up to the last number.
FRAMES_AT_ONCE, FRAMES_PER_S, _FRAMES_PER_MESSAGE, _FRAMES_SAVED_MAX = 100, 50, 4, 5000
#: How long the connection of a client that sent too many frames is not read before it closes, in
#: seconds. This slows down a client that reconnects at once.
PENALTY_S = 1.0
#: The longest value in a handshake, in characters. A browser's have some dozens.
_LINE_MAX = 1024
#: How long to wait for the client after a close frame, in seconds.
_CLOSE_S = 1.0
#: The most bytes handled in one turn of the loop. A flood of the smallest frames, and the answers
#: to them, then takes a millisecond of each turn.
_READ_BYTES = 1 << 10
#: How much of the input of a closing client is read and dropped, in all and at once, in bytes.
_DISCARD_MAX, _DISCARD_BYTES = 1 << 20, 64 << 10
#: How long one read waits for messages, in seconds.
_WAIT_S = 60.0
#: Errors that mean an ordinary disconnection.
_ENDS = (StreamClosedError, TimeoutError)

#: Why a stream ends whose client may no longer read.
_ENDED = "the token has expired or was revoked, or its rights have changed"

#: The headers of a handshake. No extensions are offered, and one subprotocol.
_HANDSHAKE = ("Host", "Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version")

SUBPROTOCOL = "chat.v1"

_encode = msgspec.json.Encoder().encode


class _Ack(msgspec.Struct, tag_field="type", tag="ack"):
    id: str


class _Message(msgspec.Struct, tag_field="type", tag="message", omit_defaults=True):
    id: str
    text: str
    deliveries: int
    dead: Origin | None = None


class _Refusal(msgspec.Struct, tag_field="type", tag="error"):
    detail: str


_decode = msgspec.json.Decoder(_Ack).decode


def accept(
    request_id: str, headers: Mapping[str, str], stream: Subscription, write_s: float
) -> Takeover:
    """Return the answer to a handshake. Raises a `Problem` if it is not a valid one."""
    # The other ones that a client offers can have a token, which must not be echoed.
    offered = {each.strip() for each in headers.get("Sec-WebSocket-Protocol", "").split(",")}
    chosen = [Subprotocol(SUBPROTOCOL)] if SUBPROTOCOL in offered else None
    handshake = ServerProtocol(subprotocols=chosen)
    # The protocol ignores other headers. It parses the elements of these one by one, so they must
    # be short.
    needed = {name: headers.get(name, "") for name in _HANDSHAKE}
    for name, value in needed.items():
        if len(value) > _LINE_MAX:
            raise bad_request(f"{name} may have at most {_LINE_MAX} characters")
    if chosen:
        needed["Sec-WebSocket-Protocol"] = SUBPROTOCOL
    lines = "".join(f"{name}: {value}\r\n" for name, value in needed.items() if value)
    handshake.receive_data(f"GET / HTTP/1.1\r\n{lines}\r\n".encode("latin1"))
    (request,) = handshake.events_received() or (None,)
    if not isinstance(request, Request):
        raise bad_request("this is not a WebSocket handshake")
    response = handshake.accept(request)
    if response.status_code != 101:
        raise no_handshake(f"this is not a WebSocket handshake: {handshake.handshake_exc}")
    response.headers["X-Request-Id"] = request_id
    handshake.send_response(response)
    answer = b"".join(handshake.data_to_send())
    return Takeover(101, _Socket(answer, stream, write_s).run)


class _Allowance:
    """The number of frames that a client may still send."""

    __slots__ = ("_counted_at", "_frames")

    def __init__(self) -> None:
        self._frames = float(FRAMES_AT_ONCE)
        self._counted_at = asyncio.get_running_loop().time()

    def add_messages(self, messages: int) -> None:
        """Allow the frames with which the client acknowledges messages."""
        self._frames = min(self._frames + messages * _FRAMES_PER_MESSAGE, _FRAMES_SAVED_MAX)

    def take(self, frames: int) -> bool:
        """Count frames that have arrived. Return whether they were allowed."""
        now = asyncio.get_running_loop().time()
        if self._frames < FRAMES_AT_ONCE:
            earned = (now - self._counted_at) * FRAMES_PER_S
            self._frames = min(self._frames + earned, FRAMES_AT_ONCE)
        self._counted_at = now
        self._frames -= frames
        return self._frames >= 0


def _note_end(either: "asyncio.Future[None]", _: "asyncio.Task[None]") -> None:
    if not either.done():
        either.set_result(None)


def _too_many_frames() -> str:
    return f"send at most {FRAMES_PER_S} frames per second and {_FRAMES_PER_MESSAGE} per message"


class _Socket:
    """One open WebSocket."""

    __slots__ = (
        "_allowance",
        "_fragments",
        "_holding",
        "_next_beat",
        "_protocol",
        "_silent_beats",
        "_stream",
        "_transport",
        "_write_s",
    )

    def __init__(self, answer: bytes, stream: Subscription, write_s: float) -> None:
        """`answer` is that to the handshake. It is sent first."""
        self._transport: IOStream
        # Not the one of the handshake, which keeps the request.
        self._protocol = Protocol(Side.SERVER, max_size=MESSAGE_MAX)
        self._protocol.writes.append(answer)
        self._stream = stream
        self._write_s = write_s
        self._allowance = _Allowance()
        self._fragments: list[bytes] = []
        self._silent_beats = 0
        self._next_beat: asyncio.TimerHandle
        self._holding: asyncio.Task[None] | None = None

    async def run(self, transport: IOStream) -> None:
        """Serve the WebSocket until either side ends it. Then release unacknowledged messages."""
        self._transport = transport
        receiving = asyncio.create_task(self._receive())
        delivering = asyncio.create_task(self._deliver())
        # As `asyncio.wait` does it, which needs a kilobyte.
        either = asyncio.get_running_loop().create_future()
        note = partial(_note_end, either)
        receiving.add_done_callback(note)
        delivering.add_done_callback(note)
        self._beat_later()
        try:
            await either
        finally:
            self._next_beat.cancel()
            delivering.cancel()
            await asyncio.wait((delivering,))
            if self._holding is not None:
                await asyncio.wait((self._holding,))
            if self._protocol.state is not State.OPEN:
                # Acknowledgements that the client sent before it closed still count.
                await asyncio.wait((receiving,), timeout=_CLOSE_S)
            await self._stream.close()
            await self._close(receiving)
            for result in await asyncio.gather(receiving, delivering, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, _ENDS):
                    log.error("a WebSocket failed", exc_info=result)

    async def _receive(self) -> None:
        # Send the answer to the handshake.
        await self._flush()
        while not self._protocol.close_expected():
            data = await self._transport.read_bytes(_READ_BYTES, partial=True)
            self._silent_beats = 0
            self._protocol.receive_data(data)
            frames = self._protocol.events_received()
            if self._allowance.take(len(frames)):
                for frame in frames:
                    assert isinstance(frame, Frame)
                    await self._handle(frame)
            elif self._protocol.state is State.OPEN:
                await asyncio.sleep(PENALTY_S)
                self._protocol.fail(CloseCode.POLICY_VIOLATION, _too_many_frames())
            del data, frames
            await self._flush()
            # Bytes that were read ahead arrive without waiting. Other connections need their turn.
            await asyncio.sleep(0)

    async def _handle(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY:
            self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "send text messages only")
        elif frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._fragments.append(bytes(frame.data))
            if len(self._fragments) > _FRAGMENTS_MAX:
                self._protocol.fail(CloseCode.MESSAGE_TOO_BIG, "the message has too many fragments")
            elif frame.fin:
                message, self._fragments = b"".join(self._fragments), []
                await self._take(message)

    async def _take(self, message: bytes) -> None:
        """Acknowledge, or refuse a message that is not an acknowledgement."""
        try:
            message.decode()
            ack = _decode(message)
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_DATA, "the message is not UTF-8")
            return
        except (msgspec.DecodeError, RecursionError):
            self._refuse('send only {"type": "ack", "id": "..."}')
            return
        try:
            is_known = await self._stream.acknowledge_upto(ack.id)
        except ServiceError as error:
            log.warning("an acknowledgement failed", reason=str(error))
            is_known = False
        if not is_known:
            self._refuse(f"{ack.id[:64]} was not delivered here, or is no longer leased")

    def _refuse(self, detail: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(_encode(_Refusal(detail)))

    async def _deliver(self) -> None:
        while not self._stream.is_ending:
            messages = await self._stream.next(_WAIT_S)
            if self._stream.is_ended or self._protocol.state is not State.OPEN:
                # The connection is closing, and these messages are released.
                break
            self._send(messages)
            # They are not kept while the stream waits for more.
            del messages
            await self._flush()
        if self._stream.is_ended and self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.POLICY_VIOLATION, _ENDED)
            await self._flush()

    def _send(self, messages: Sequence[Delivered]) -> None:
        self._allowance.add_messages(len(messages))
        for message in messages:
            frame = _Message(message.id, message.text, message.deliveries, message.dead)
            self._protocol.send_text(_encode(frame))

    def _beat_later(self) -> None:
        self._next_beat = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        """Extend the leases of the client's messages, and check that the client is still there."""
        if self._silent_beats >= SILENT_BEATS_MAX:
            self._protocol.fail(CloseCode.INTERNAL_ERROR, "no answer to a ping")
            self._transport.write(b"".join(self._protocol.data_to_send()))
            self._transport.close()
            return
        self._silent_beats += 1
        if self._stream.unacked and (self._holding is None or self._holding.done()):
            self._holding = asyncio.create_task(self._hold())
        if self._protocol.state is State.OPEN and not self._transport.closed():
            self._protocol.send_ping(b"")
            self._transport.write(b"".join(self._protocol.data_to_send()))
        self._beat_later()

    async def _hold(self) -> None:
        try:
            await self._stream.hold()
        except ServiceError as error:
            log.warning(
                "leases were not extended; messages may be delivered again", reason=str(error)
            )

    async def _flush(self) -> None:
        """Write the bytes that the protocol has to send.

        Raises `TimeoutError` if the client takes nothing for too long.
        """
        data = b"".join(self._protocol.data_to_send())
        if data:
            async with asyncio.timeout(self._write_s):
                await self._transport.write(data)

    async def _close(self, receiving: "asyncio.Task[None]") -> None:
        """Close the connection, with a closing handshake if the client takes part in it."""
        if self._protocol.state is State.OPEN:
            is_ending = self._stream.is_ending
            code = CloseCode.GOING_AWAY if is_ending else CloseCode.INTERNAL_ERROR
            self._protocol.send_close(
                code, "the service is stopping; reconnect" if is_ending else ""
            )
        with suppress(*_ENDS):
            await self._flush()
            await asyncio.wait((receiving,), timeout=_CLOSE_S)
            if receiving.done() and self._protocol.close_rcvd is None:
                await self._discard_rest()
        self._transport.close()

    async def _discard_rest(self) -> None:
        """Read and drop input for a while, so that a sending client can read the close frame.

        A connection that is closed with unread input is reset, and the reset may overtake the close
        frame.
        """
        if self._transport.closed():
            return
        with suppress(OSError):
            self._transport.socket.shutdown(socket.SHUT_WR)
        left = _DISCARD_MAX
        async with asyncio.timeout(_CLOSE_S):
            while left > 0:
                left -= len(await self._transport.read_bytes(_DISCARD_BYTES, partial=True))
                await asyncio.sleep(0)
            # Read no more, so that the client cannot send more.
            await asyncio.Event().wait()
