"""Chunked bodies are decoded in the same way wherever the network cuts them, and at low cost."""

import sys
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPInputError

from chat_service.server.chunks import FRAMING_MAX, ChunkReader
from tests.support.raw import chunked


def read(*pieces: bytes) -> tuple[bytes, bytes, bool]:
    """Read these pieces. Return the body, the bytes after it, and whether it has ended."""
    reader, body, rest = ChunkReader(), b"", b""
    for piece in pieces:
        rest += piece
        is_turn_over = True
        while is_turn_over and not reader.is_done:
            taken, position, is_turn_over = reader.take(rest)
            body += taken
            rest = rest[position:]
    return body, rest, reader.is_done


@given(st.lists(st.binary(min_size=1, max_size=40)), st.binary(max_size=9), st.data())
def test_a_body_is_the_same_however_it_is_cut(
    chunks: list[bytes], behind: bytes, data: st.DataObject
) -> None:
    sent = chunked(*chunks) + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    bounds = [0, *cuts, len(sent)]
    pieces = [sent[start:end] for start, end in pairwise(bounds)]
    assert read(*pieces) == (b"".join(chunks), behind, True)


REFUSED: Final = {
    "a size with a prefix": b"0x1\r\nx\r\n0\r\n\r\n",
    "a size with a sign": b"+1\r\nx\r\n0\r\n\r\n",
    "a size with a separator": b"1_0\r\n",
    "no size": b"\r\nx\r\n0\r\n\r\n",
    "a size that never ends": b"1" * 100,
    "a size of 17 digits": b"0" * 16 + b"1\r\nx\r\n",
    "an extension": b"1;a=b\r\nx\r\n0\r\n\r\n",
    "an extension that never ends": b"1;" + b"a" * 100,
    "a bare LF": b"1\nx\r\n0\r\n\r\n",
    "a chunk longer than it says": b"1\r\nxx\r\n0\r\n\r\n",
    "a trailer": b"1\r\nx\r\n0\r\nX: a\r\n\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_malformed_chunks_are_refused(sent: bytes) -> None:
    for pieces in ([sent], [bytes([byte]) for byte in sent]):
        with pytest.raises(HTTPInputError):
            read(*pieces)


def test_framing_may_exceed_the_body_by_64_kib_only() -> None:
    # Each byte of the body has five bytes of framing, so each chunk adds four to the excess.
    most = FRAMING_MAX // 4
    body, _, is_done = read(chunked(*[b"x"] * most))
    assert (len(body), is_done) == (most, True)
    with pytest.raises(HTTPInputError, match="too small"):
        read(chunked(*[b"x"] * (most + 1)))


def test_a_large_chunk_makes_up_for_no_small_ones() -> None:
    large = b"x" * (1 << 20)
    with pytest.raises(HTTPInputError, match="too small"):
        read(chunked(large, *[b"x"] * (FRAMING_MAX // 4 + 1)))


def test_chunks_as_long_as_their_framing_are_not_refused() -> None:
    body, _, is_done = read(chunked(*[b"12345"] * 100_000))
    assert (len(body), is_done) == (500_000, True)


def test_tiny_chunks_cost_few_calls() -> None:
    sent, calls = chunked(*[b"x"] * 10_000), 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read(sent)
    finally:
        sys.setprofile(before)
    assert calls / 10_000 < 10
