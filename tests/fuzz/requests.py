"""Pipelines of HTTP requests, from ordinary ones to those that only an attacker would send."""

import random
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from tests.fuzz import bodies
from tests.fuzz.fuzzer import Case
from tests.fuzz.mutation import mutate, pieces

#: Sent after the pipeline. Its answer shows that everything was served, and the connection ends.
LAST = b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Request-ID: the-last\r\nConnection: close\r\n\r\n"
#: Limits of bodies in the compared services, in bytes.
BODY_MAX, BATCH_MAX, TEXT_MAX = 4096, 8192, 2048
#: Their limits of messages in a batch, and of the seconds of a long poll.
MESSAGES_MAX, WAIT_MAX_S = 5, 0.02

_HOSTS = (
    *(b"Host: a", b"Host: a", b"Host: a", b"host: a:80", b"HOST:a", b"Host: ", b"Host: a b"),
    *(
        b"Host : a",
        b"Host: [::1]:8080",
        b"Host: a, b",
        b"Host: a/",
        b"Host: \xff",
        b"",
        b"Host:\ta\t",
    ),
)
_HEADERS = (
    *(
        b"Connection: keep-alive",
        b"Connection: Keep-Alive",
        b"Connection: close",
        b"connection: CLOSE",
    ),
    *(
        b"Connection: upgrade",
        b"Connection: keep-alive, close",
        b"Connection:",
        b"Connection: TE, close",
    ),
    *(
        b"Accept: */*",
        b"User-Agent: fuzz/1",
        b"X-Request-ID: mine-1",
        b"X-Request-ID: no id",
        b"X: ",
    ),
    *(
        b"X-Request-ID: a\r\nX-Request-ID: b",
        b"traceparent: 00-x",
        b"Cookie: a=b",
        b"X:y",
        b"X: \tz\t ",
    ),
    *(
        b"Content-Type: application/json",
        b"Content-Type: text/plain",
        b"X-Timeout: 5",
        b"Content-Type: application/x-ndjson",
    ),
    *(
        b"Content-Encoding: gzip",
        b"Content-Encoding: identity",
        b"Content-Encoding:",
        b"TE: trailers",
    ),
    *(
        b"Expect: 100-continue",
        b"Expect: 200",
        b"Trailer: X",
        b"Upgrade: websocket",
        b"Upgrade: h2c",
    ),
    *(b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-site", b"Sec-Fetch-Site: same-origin"),
    *(
        b"Origin: http://a",
        b"Origin: http://evil.test",
        b"Origin: null",
        b"Referer: http://evil.test/x",
    ),
    *(
        b"Sec-Purpose: prefetch",
        b"Purpose: preview",
        b"X-Moz: prefetch",
        b"Sec-Fetch-Site:  Cross-Site ",
    ),
    *(
        b"Prefer: receipt",
        b"Prefer: wait=1",
        b"Prefer: wait=x",
        b"Prefer: ,,;,=",
        b"Prefer: receipt, wait=0",
    ),
    *(
        b"Idempotency-Key: short",
        b"Idempotency-Key: ",
        b"Transfer-Encoding: identity",
        b"X : y",
        b"X y",
    ),
    *(
        b" folded: a",
        b"X: a\r\n b",
        b"X: a\r\n\tb",
        b":",
        b": x",
        b"X: a\0b",
        b"X: a\rb",
        b"X: a\nY: b",
    ),
    *(
        b"\xff: x",
        b"X: \xff\xfe",
        b"(X): y",
        b"X\x0b: y",
        b"X: a\x0bb",
        b"X: a\x7fb",
        b"X: " + b"y" * 900,
    ),
    *(
        b"X: " + b"y" * 8000,
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"content-length: 2",
    ),
    *(
        b"Content_Length: 5",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: close",
        b"Last-Event-ID: 1",
    ),
)
_LENGTHS = (
    *(b"Content-Length: %d", b"Content-Length: %d", b"Content-Length: %d", b"content-length:%d"),
    *(
        b"Content-Length: %d\r\nContent-Length: %d",
        b"Content-Length: %d, %d",
        b"Content-Length: +%d",
    ),
    *(
        b"Content-Length: 0%d",
        b"Content-Length: %d ",
        b"Content-Length: -%d",
        b"Content-Length: %d.0",
    ),
    *(
        b"Content-Length: 0x%d",
        b"Content-Length: 9%d",
        b"Content-Length: %d\r\nContent-Length: 1%d",
    ),
    *(b"Content-Length: 1_%d", b"Content-Length: 99999999999999999999%d", b"Content-Length: \xb2"),
    *(
        b"Content-Length:",
        b"Content-Length: \x0b%d",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked",
    ),
    *(b"Content-Length : %d", b"Content-Length: %d\x0b", b"Content-Length: %d\r\n ", b"X: %d"),
)
_QUERIES = (
    *(
        b"limit=1",
        b"limit=2",
        b"limit=0",
        b"limit=01",
        b"limit=-1",
        b"limit=",
        b"limit",
        b"limit=1&limit=2",
    ),
    *(
        b"wait=0",
        b"wait=0.01",
        b"wait=9",
        b"wait=-1",
        b"wait=1e1",
        b"wait=.5",
        b"wait=",
        b"limt=5",
        b"ttl=1",
    ),
    *(
        b"",
        b"&",
        b"=",
        b"a=b",
        b"limit=%31",
        b"%6cimit=1",
        b"limit=1;wait=0",
        b"limit=+1",
        b"wait=0&limit=3",
    ),
    *(
        b"limit=\xb2",
        b"limit=1#x",
        b"x=%",
        b"x=%zz",
        b"limit=1?x",
        b"wait=NaN",
        b"limit=999999999999",
    ),
    *(
        b"&".join([b"x=1"] * 99),
        b"&".join([b"x=1"] * 102),
        b"limit=%D9%A1",
        b"limit=1%00",
        b"a b",
        b"limit=1&",
    ),
)
_VERSIONS = (
    *(
        b"HTTP/1.0",
        b"HTTP/1.2",
        b"HTTP/2.0",
        b"http/1.1",
        b"HTTP/1.1 ",
        b"HTTP/01.1",
        b"HTTP/1",
        b"",
    ),
    *(b"HTTP/1.11", b"HTTP/1.1\t", b" HTTP/1.1", b"ICY/1.1"),
)
_METHODS = (
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"get",
    b"TRACE",
    b"CONNECT",
    b"G\0T",
    b"",
)


class Pipeline(NamedTuple):
    """The bytes for one connection, in the segments in which they are sent.

    A fuzzer that changes something in the middle sends `later` afterwards.
    """

    segments: Sequence[bytes]
    later: Sequence[bytes] = ()

    @property
    def data(self) -> bytes:
        """All segments joined."""
        return b"".join((*self.segments, *self.later))


def pipeline(case: Case) -> Pipeline:
    """Return the requests of a case in segments, with the last request after them."""
    rng = case.rng
    names = [f"{case.tag}-a", f"{case.tag}-b", f"{case.tag}-\u00e9 /"]
    return Pipeline(pieces(rng, requests_for(rng, names) + LAST))


def requests_for(
    rng: random.Random, names: Sequence[str], credentials: Sequence[bytes] = ()
) -> bytes:
    """Return some requests that are about these names.

    Each has one of the lines in `credentials`, if there are any; the first one permits everything.
    """
    # A mostly valid pipeline gets far, and so does a bug in it.
    oddity = rng.choice((0.0, 0.05, 0.05, 0.2, 0.5))
    requests = [
        _request(rng, names, oddity, credentials) for _ in range(rng.choice((1, 1, 2, 3, 4, 6)))
    ]
    if rng.random() < 0.25:
        # More messages than one read takes, in slices of three.
        good = (bodies.message(rng, names[0], True) for _ in range(rng.randrange(2, 6)))
        requests[:0] = [
            _assemble(rng, False, b"POST", b"/chat", body, 0.0, credentials[:1]) for body in good
        ]
    data = b"".join(requests)
    if rng.random() < 0.35:
        data = mutate(rng, data, rng.choice((1, 1, 2, 4)))
    return data


def _request(
    rng: random.Random, names: Sequence[str], oddity: float, credentials: Sequence[bytes]
) -> bytes:
    def is_odd() -> bool:
        return rng.random() < oddity

    name = names[0] if rng.random() < 0.7 else rng.choice(names)
    segment = quote(name, safe="").encode()
    if is_odd():
        segment = rng.choice(
            (segment + b"%", segment + b"%00", segment + b"%zz", segment + b"%C3", b"%2E%2E", b"..")
        )
        if rng.random() < 0.3:
            segment = mutate(rng, segment, 1)
    inbox = b"/chat/" + segment
    method, target, body = b"GET", inbox, None
    match rng.randrange(25):
        case 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8:
            method, target, body = (
                b"POST",
                b"/chat",
                bodies.message(rng, name, not is_odd() or None),
            )
        case 9 | 10 | 11 | 12 | 13 | 14:
            pass
        case 15 | 16:
            target += b"?" + rng.choice(_QUERIES if rng.random() < 0.5 else _QUERIES[:2])
        case 17:
            method, target, body = b"POST", b"/chat/batch", bodies.batch(rng, names, MESSAGES_MAX)
        case 18:
            method, body = b"POST", rng.choice((b"", b"{}", bodies.message(rng, name)))
            target += rng.choice((b"/read", b"/lease", b"", b"/lease?ttl=5", b"/read?limit=1"))
        case 19:
            method, body = b"POST", bodies.about_a_lease(rng)
            target += rng.choice((b"/ack", b"/release", b"/extend"))
        case 20:
            method, target = (
                rng.choice(_METHODS),
                rng.choice((inbox, b"/chat", b"/livez", b"*", b"/")),
            )
        case 21:
            target = rng.choice(
                (
                    b"/livez",
                    b"/readyz",
                    b"/chat",
                    b"/chat/",
                    b"/nothing",
                    b"//chat/x",
                    b"chat",
                    b"/messages/1",
                )
            )
        case 22:
            method, body = b"POST", rng.choice((b"Backup ok", b"", b"\xff", b"{}"))
            target += rng.choice((b"", b"?timeout=5", b"?timeout=x", b"?limit=1"))
        case 23:
            target = rng.choice((b"http://a", b"https://b:1", b"HTTP://a b", b"ftp://a")) + inbox
        case _:
            target += rng.choice(
                (b"#x", b" ", b"\xc3\xa9", b"\\", b"/", b"//", b"/read", b"\t", b'"<>', b"?#")
            )
    return _assemble(rng, is_odd(), method, target, body, oddity, credentials)


def _assemble(
    rng: random.Random,
    is_odd: bool,
    method: bytes,
    target: bytes,
    body: bytes | None,
    oddity: float,
    credentials: Sequence[bytes],
) -> bytes:
    version = b"HTTP/1.1"
    lines = [b"Host: a"]
    if is_odd:
        match rng.randrange(4):
            case 0:
                version = rng.choice(_VERSIONS)
            case 1:
                lines = [rng.choice(_HOSTS)]
            case 2:
                lines.append(rng.choice(_HOSTS))
            case _:
                method += rng.choice((b" ", b"\t", b"\r", b"\0"))
    for _ in range(rng.choice((0, 0, 1, 2))):
        lines.append(rng.choice(_HEADERS[:2] + _HEADERS[8:11]))
    while rng.random() < oddity:
        lines.append(rng.choice(_HEADERS))
    if credentials:
        lines.append(rng.choice(credentials))
    if body is not None or rng.random() < oddity / 2:
        body = body or b""
        if rng.random() < oddity / 2:
            body, chunks = _chunked(rng, body), b"Transfer-Encoding: "
            lines.append(
                chunks + rng.choice((b"chunked", b"Chunked", b"gzip, chunked", b"x", b"chunked,"))
            )
        else:
            length = rng.choice(_LENGTHS) if rng.random() < oddity else _LENGTHS[0]
            declared = len(body) + (rng.choice((-1, 1, 5000)) if rng.random() < oddity / 4 else 0)
            lines.append(length.replace(b"%d", b"%d" % max(declared, 0)))
    rng.shuffle(lines)
    end = b"\r\n" if rng.random() > oddity / 3 else rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r"))
    head = b"\r\n".join(
        [b"%b %b %b" % (method, target, version), *(line for line in lines if line)]
    )
    if end != b"\r\n":
        # Replace the end of one line, or of all lines.
        head = head.replace(b"\r\n", end, rng.choice((1, 2, -1)))
    last = (
        b"\r\n\r\n" if rng.random() > oddity / 3 else rng.choice((end * 2, b"\r\n" + end, b"\r\n"))
    )
    return head + last + (body or b"")


def _chunked(rng: random.Random, body: bytes) -> bytes:
    chunks = []
    for piece in (*pieces(rng, body), b""):
        size = b"%x" % len(piece)
        if rng.random() < 0.1:
            size = rng.choice(
                (b"0x" + size, b"+" + size, size + b";a=b", size + b" ", b"", b"f" * 17, b"-1")
            )
        end = b"\r\n" if rng.random() < 0.97 else rng.choice((b"\n", b"", b"\r"))
        chunks.append(size + end + piece + b"\r\n")
    return b"".join(chunks)
