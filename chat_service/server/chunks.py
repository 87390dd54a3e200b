"""Reads bodies in chunks (RFC 9112, 7.1) at a cost proportional to their bytes.

Tornado's reader resumes its coroutine several times for each chunk, so a body in one-byte chunks
costs a hundred times as much as one with a length. This reader parses all chunks in the buffer at
once. Called by `chat_service.server.connection`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

from tornado.httputil import HTTPInputError

from chat_service.server.http_stream import STREAM_BUFFER_BYTES, HttpStream

#: By how many bytes the framing of small chunks may exceed their content.
FRAMING_MAX: Final = 64 << 10
#: After this number of chunks, other connections get their turn.
_CHUNKS_PER_TURN: Final = 1024
#: The longest line with a chunk's size, in bytes, including its end.
_SIZE_LINE_MAX: Final = 64
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")

Deliver = Callable[[bytes], Awaitable[None]]


async def read_chunks(stream: HttpStream, deliver: Deliver) -> None:
    """Read a body in chunks to its end, and pass its content to `deliver`.

    Raises `HTTPInputError` if it is malformed, if it has extensions or trailers, or if the framing
    of small chunks exceeds their content by more than `FRAMING_MAX` bytes.
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
            # The next read may return at once. In a flood, other connections still need their turn.
            await asyncio.sleep(0)
            if not is_turn_over:
                break
        rest = data


class ChunkReader:
    """Parses chunks from data that may be split anywhere."""

    def __init__(self) -> None:
        self.is_done = False
        # The missing bytes of the current chunk, and whether its CR LF is missing.
        self._left = 0
        self._wants_end = False
        self._excess = 0

    def take(self, data: bytes) -> tuple[bytearray, int, bool]:
        """Parse as many chunks as possible.

        Returns their content, the position of the rest, and whether other connections should get
        their turn before the rest is parsed.
        """
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
                    raise HTTPInputError("a chunk is longer than its size")
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
            # A large chunk does not make up for small ones: each costs as much as its framing.
            self._excess += max(line.end() - position + 2 - size, 0)
            if self._excess > FRAMING_MAX:
                raise HTTPInputError("the chunks of a body are too small")
            position = line.end()
        else:
            return body, position, True
        return body, position, False

    def _check_beginning(self, data: bytes, position: int) -> None:
        """Raise `HTTPInputError` unless `data` has the beginning of a line with a size."""
        begun = data[position : position + _SIZE_LINE_MAX]
        if len(begun) >= _SIZE_LINE_MAX or not re.fullmatch(rb"[0-9A-Fa-f]{0,16}\r?", begun):
            raise HTTPInputError("the size of a chunk is not a hexadecimal number")

    def _end(self, data: bytes, position: int) -> None:
        end = data[position : position + 2]
        if not b"\r\n".startswith(end):
            raise HTTPInputError("a body in chunks has trailers")
        self.is_done = end == b"\r\n"
