"""MongoDB's wire protocol, as far as the emulated router needs it.

Every message is an OP_MSG, except for a driver's first greeting, which is an OP_QUERY. Compression
and checksums are not offered, so nobody uses them.
"""

import struct
from asyncio import StreamReader
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from workers.store.driver import Document

_HEADER = struct.Struct("<iiii")
_QUERY = struct.Struct("<ii")
_REPLY = struct.Struct("<iqii")
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_MORE_TO_COME = 2
#: Keeps every value as it is, also times that a `datetime` cannot express.
_CODEC: CodecOptions[Document] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)


class Message(NamedTuple):
    """A command or a reply. A client that `is_unanswered` does not wait for the reply."""

    number: int
    body: Document
    is_greeting: bool = False
    is_unanswered: bool = False


async def read_message(reader: StreamReader) -> Message:
    """Read one message. Raises `asyncio.IncompleteReadError` at the end of the connection."""
    length, number, _, code = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    rest = await reader.readexactly(length - _HEADER.size)
    if code == _OP_QUERY:
        start = rest.index(0, 4) + 1 + _QUERY.size
        return Message(number, bson.decode(rest[start:], _CODEC), is_greeting=True)
    assert code == _OP_MSG, f"an unexpected kind of message: {code}"
    (flags,) = struct.unpack_from("<I", rest)
    return Message(number, _sections(rest[4:]), is_unanswered=bool(flags & _MORE_TO_COME))


def encode(body: Document, number: int, answers: int = 0) -> bytes:
    """Return a command, or the reply to the message number `answers`."""
    section = b"\0" + bson.encode(body, codec_options=_CODEC)
    length = _HEADER.size + 4 + len(section)
    return _HEADER.pack(length, number, answers, _OP_MSG) + bytes(4) + section


def encode_greeting(body: Document, number: int, answers: int) -> bytes:
    """Return the reply to a greeting."""
    document = bson.encode(body, codec_options=_CODEC)
    length = _HEADER.size + _REPLY.size + len(document)
    head = _HEADER.pack(length, number, answers, _OP_REPLY)
    return head + _REPLY.pack(0, 0, 0, 1) + document


def _sections(data: bytes) -> Document:
    """Return the body of an OP_MSG, with its sequences of documents as lists."""
    body: Document = {}
    sequences: dict[str, Any] = {}
    position = 0
    while position < len(data):
        kind, position = data[position], position + 1
        (size,) = struct.unpack_from("<i", data, position)
        section, position = data[position : position + size], position + size
        if kind == 0:
            body = bson.decode(section, _CODEC)
        else:
            end = section.index(0, 4)
            documents = bson.decode_all(section[end + 1 :], _CODEC)
            sequences[section[4:end].decode()] = documents
    return body | sequences
