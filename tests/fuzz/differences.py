"""The permitted differences between an answer of the fast path and one of Tornado, with reasons.

Everything else must be the same to the byte.
"""

import re
from typing import NamedTuple


class Difference(NamedTuple):
    """A part that is not compared: every match is replaced by `shown` on both sides."""

    reason: str
    pattern: re.Pattern[bytes]
    shown: bytes


DIFFERENCES = (
    Difference(
        "ids of messages, leases and requests without an id are random",
        re.compile(rb"\b(?:[0-9a-f]{32}|[0-9a-f]{12}-[0-9a-f]+)\b"),
        b"ID",
    ),
    Difference(
        "receipts are random",
        re.compile(rb"(?<=X-Receipt: )[A-Za-z0-9_-]+|(?<=\"receipt\":\")[A-Za-z0-9_-]+"),
        b"RECEIPT",
    ),
    Difference(
        "the two answers may be written in different seconds",
        re.compile(rb"(?<=\r\nDate: )[^\r]+"),
        b"NOW",
    ),
)


#: The headers up to the body's length, and the rest of them.
_LENGTH = re.compile(rb"(\r\nContent-Length: )(\d+)(\r\n(?:[^\r\n]+\r\n)*\r\n)")


#: A chunked answer. A read is sliced if other reads in its batch leave it no more room, which
#: depends on timing. Only the body counts.
_CHUNKED = re.compile(
    rb"\r\nTransfer-Encoding: chunked(\r\n(?:[^\r\n]+\r\n)*\r\n)"
    rb"((?:[0-9a-f]+\r\n[^\r]+\r\n)*)0\r\n\r\n"
)
_CHUNK = re.compile(rb"[0-9a-f]+\r\n([^\r]+)\r\n")


def _whole(answer: re.Match[bytes]) -> bytes:
    body = b"".join(_CHUNK.findall(answer[2]))
    return b"\r\nContent-Length: %d%b%b" % (len(body), answer[1], body)


def masked(answers: bytes) -> bytes:
    """Return answers without the permitted differences.

    A content length becomes that of the masked body, because ids grow with their number.
    """
    answers = _CHUNKED.sub(_whole, answers)
    shown, start = [], 0
    while found := _LENGTH.search(answers, start):
        end = found.end() + int(found[2])
        body = _mask(answers[found.end() : end])
        shown += [_mask(answers[start : found.start()]), found[1], b"%d" % len(body)]
        shown += [_mask(found[3]), body]
        start = end
    return b"".join([*shown, _mask(answers[start:])])


def _mask(part: bytes) -> bytes:
    for difference in DIFFERENCES:
        part = difference.pattern.sub(difference.shown, part)
    return part
