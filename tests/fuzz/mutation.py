"""Damage to bytes, as networks, faulty clients and attackers cause it."""

import random
from collections.abc import Sequence
from itertools import pairwise

#: Inserted besides random bytes: the syntax of HTTP and of JSON.
_TOKENS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\n\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b": ",
        b"\x0b",
        b"\x85",
    ),
    *(b"HTTP/1.1", b"HTTP/1.0", b"GET ", b"POST ", b"Content-Length: 3\r\n", b"%", b"%00", b"%2F"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Host: a\r\n",
        b"0\r\n\r\n",
        b"?",
        b"&",
        b"=",
        b"#",
        b"/",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b",",
        b"null",
        b"true",
        b"-",
        b"1e9",
    ),
    *(b"\xff", b"\xc3", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf"),
)


def mutate(rng: random.Random, data: bytes, times: int) -> bytes:
    """Return the same bytes, damaged this many times."""
    for _ in range(times):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 1, 2, 3, 8, 40)))
        match rng.randrange(7):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2 | 3:
                data = data[:at] + rng.choice(_TOKENS) + data[at:]
            case 4:
                data = data[:at] + rng.choice(_TOKENS) + data[end:]
            case 5:
                to = rng.randrange(len(data) + 1)
                data = data[:to] + data[at:end] + data[to:]
            case _:
                if rng.random() < 0.2:
                    data = data[:at]
                elif at < len(data):
                    data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data


def pieces(rng: random.Random, data: bytes) -> Sequence[bytes]:
    """Return the same bytes in segments in which a network may deliver them."""
    match rng.randrange(6):
        case 0 | 1 | 2:
            cuts = []
        case 3:
            cuts = [rng.randrange(len(data) + 1)]
        case 4:
            cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(2, 9))]
        case _:
            start = rng.randrange(len(data) + 1)
            cuts = list(range(start, min(len(data), start + 40)))
    places = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places) if a < b]
