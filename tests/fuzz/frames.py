"""WebSocket frames to the bit: encode valid and invalid frames of a client, decode a server's."""

import random
import struct
from typing import NamedTuple

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
HANDSHAKE = (
    b"GET /chat/%b/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Frame(NamedTuple):
    """One frame that a server wrote."""

    opcode: int
    is_final: bool
    data: bytes


def encode(
    rng: random.Random,
    opcode: int,
    data: bytes,
    *,
    is_final: bool = True,
    is_masked: bool = True,
    reserved: int = 0,
    width: int | None = None,
    declared: int | None = None,
) -> bytes:
    """Return a client's frame. Its length may be written in `width` bytes, and may be wrong."""
    length = len(data) if declared is None else declared
    if width is None:
        width = 0 if length < 126 else 2 if length < 1 << 16 else 8
    mask_bit = 0x80 if is_masked else 0
    head = bytes([(0x80 if is_final else 0) | reserved << 4 | opcode])
    if width == 0:
        head += bytes([mask_bit | length])
    elif width == 2:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    if not is_masked:
        return head + data
    mask = rng.randbytes(4)
    return head + mask + bytes(each ^ mask[at % 4] for at, each in enumerate(data))


def decode(received: bytearray) -> list[Frame]:
    """Remove the complete frames of a server from the received bytes, and return them."""
    frames = []
    while len(received) >= 2:
        length, at = received[1] & 0x7F, 2
        if received[1] & 0x80:
            raise ValueError("a server's frame is masked")
        if length == 126:
            length, at = int.from_bytes(received[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(received[2:10], "big"), 10
        if len(received) < at + length:
            break
        data = bytes(received[at : at + length])
        frames.append(Frame(received[0] & 0x0F, bool(received[0] & 0x80), data))
        if received[0] & 0x70:
            raise ValueError("a server's frame has reserved bits")
        del received[: at + length]
    return frames
