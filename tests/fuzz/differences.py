"""What may differ between an answer of the fast path and one of Tornado's, and why.

Everything that is not named here must be the same to the byte.
"""

import re
from typing import NamedTuple


class Difference(NamedTuple):
    """What is not compared: every match is replaced by `shown` on both sides."""

    reason: str
    pattern: re.Pattern[bytes]
    shown: bytes


DIFFERENCES = (
    Difference(
        "an id is random: of a message, a lease, or a request that brings none",
        re.compile(rb"\b(?:[0-9a-f]{32}|[0-9a-f]{12}-[0-9a-f]+)\b"),
        b"ID",
    ),
    Difference(
        "a receipt is random",
        re.compile(rb"(?<=X-Receipt: )[A-Za-z0-9_-]+|(?<=\"receipt\":\")[A-Za-z0-9_-]+"),
        b"RECEIPT",
    ),
    Difference(
        "the two answers are written in different seconds",
        re.compile(rb"(?<=\r\nDate: )[^\r]+"),
        b"NOW",
    ),
)


#: A head up to its body's length, and what is left of it.
_LENGTH = re.compile(rb"(\r\nContent-Length: )(\d+)(\r\n(?:[^\r\n]+\r\n)*\r\n)")


#: An answer in chunks: a read comes in slices where others in its batch leave it no more room,
#: which is a matter of what else goes on. What counts is the body.
_CHUNKED = re.compile(
    rb"\r\nTransfer-Encoding: chunked(\r\n(?:[^\r\n]+\r\n)*\r\n)"
    rb"((?:[0-9a-f]+\r\n[^\r]+\r\n)*)0\r\n\r\n"
)
_CHUNK = re.compile(rb"[0-9a-f]+\r\n([^\r]+)\r\n")


def _whole(answer: re.Match[bytes]) -> bytes:
    body = b"".join(_CHUNK.findall(answer[2]))
    return b"\r\nContent-Length: %d%b%b" % (len(body), answer[1], body)


def masked(answers: bytes) -> bytes:
    """The bytes of answers without what may differ.

    A length is that of the body as it is shown: ids grow with their number.
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
