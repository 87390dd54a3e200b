"""Bodies in chunks (RFC 9112, 7.1), read at a cost in proportion to their bytes.

Tornado's reader turns its coroutine several times for each chunk, so that a body of one-byte
chunks costs a hundred times what its length would. This one takes chunks apart where they lie.
Called by `chat_service.server.connection`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

from tornado.httputil import HTTPInputError

from chat_service.server.http_stream import STREAM_BUFFER_BYTES, HttpStream

#: The framing of small chunks may exceed what is in them by so many bytes.
FRAMING_MAX: Final = 64 << 10
#: After so many chunks, other connections have their turn.
_CHUNKS_PER_TURN: Final = 1024
#: The longest line with a chunk's size, and its end.
_SIZE_LINE_MAX: Final = 64
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")

Deliver = Callable[[bytes], Awaitable[None]]


async def read_chunks(stream: HttpStream, deliver: Deliver) -> None:
    """Read a body in chunks, to its end, and hand its pieces to `deliver`.

    Raise `HTTPInputError` for what is malformed, for extensions and trailers, and for small chunks
    whose framing exceeds what is in them by more than `FRAMING_MAX` bytes.
    """
    reader = ChunkReader()
    rest = b""
    while True:
        data = rest + await stream.read_bytes(STREAM_BUFFER_BYTES, partial=True)
        while True:
            body, position, is_turn_over = reader.take(data)
            if reader.is_done:
                stream.give_back(data[position:])
            if body:
                await deliver(bytes(body))
            data = data[position:]
            if reader.is_done:
                return
            # What is read next may be there already: a flood would keep all others waiting.
            await asyncio.sleep(0)
            if not is_turn_over:
                break
        rest = data


class ChunkReader:
    """Takes chunks apart, from data that may be cut anywhere."""

    def __init__(self) -> None:
        self.is_done = False
        # What is missing of the current chunk; whether its CR LF is.
        self._left = 0
        self._wants_end = False
        self._excess = 0

    def take(self, data: bytes) -> tuple[bytearray, int, bool]:
        """Take what can be taken: the body's bytes, where the rest begins, and whether to yield."""
        body, position = bytearray(), 0
        for _ in range(_CHUNKS_PER_TURN):
            if self._left:
                piece = data[position : position + self._left]
                body += piece
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            if self._wants_end:
                if len(data) < position + 2:
                    break
                if data[position : position + 2] != b"\r\n":
                    raise HTTPInputError("a chunk does not end where it says")
                position += 2
                self._wants_end = False
            line = _SIZE_LINE.match(data, position)
            if line is None:
                self._check_beginning(data, position)
                break
            self._left = size = int(line[1], 16)
            if not size:
                self._end(data, line.end())
                position = line.end() + 2 if self.is_done else position
                break
            self._wants_end = True
            # A large chunk makes up for no small ones: each of those costs as much as its framing.
            self._excess += max(line.end() - position + 2 - size, 0)
            if self._excess > FRAMING_MAX:
                raise HTTPInputError("a body in chunks that are too small")
            position = line.end()
        else:
            return body, position, True
        return body, position, False

    def _check_beginning(self, data: bytes, position: int) -> None:
        """Raise unless `data` holds the beginning of a line with a size."""
        begun = data[position : position + _SIZE_LINE_MAX]
        if len(begun) >= _SIZE_LINE_MAX or not re.fullmatch(rb"[0-9A-Fa-f]{0,16}\r?", begun):
            raise HTTPInputError("a chunk's size is not a hexadecimal number")

    def _end(self, data: bytes, position: int) -> None:
        end = data[position : position + 2]
        if not b"\r\n".startswith(end):
            raise HTTPInputError("a body in chunks may have no trailers")
        self.is_done = end == b"\r\n"
