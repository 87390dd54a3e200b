"""Decides which blocks of header lines are eligible for the fast path, and remembers each decision.

A client's requests differ in their first line and little else: the lines behind it are mostly
those of the request before, to the byte. So each distinct block of header lines is parsed and
checked once. Proxies add lines that differ for each request; these are cut out first.
`chat_service.server.fast_path` asks; whatever is not plain goes the long way, which refuses or
handles it.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from tornado.httputil import HTTPHeaders, HTTPInputError

from chat_service.api.problems import Problem
from chat_service.api.request_policy import (
    HostRule,
    reject_malformed_hosts,
    reject_other_hosts,
    reject_other_pages,
    reject_prefetches,
)

#: Blocks remembered, and the longest of them in bytes: a client that never sends the same one
#: twice costs so much memory, and no more.
_REMEMBERED_MAX, _REMEMBERED_BYTES_MAX = 1024, 1024
#: A head of more lines is not plain: each costs as much as a whole plain head that is remembered,
#: and would be parsed twice.
_LINES_MAX = 100
#: Headers that say how a message is framed or coded, or ask for more than an answer.
_UNUSUAL = (
    *("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade", "Trailer", "TE"),
    *("Idempotency-Key", "Prefer"),
)
_LENGTH = re.compile(r"[0-9]{1,9}")
#: Lines that differ for each request and decide nothing, from the line feed before them to their
#: carriage return. What else could be in a value is left to the parser.
_PER_REQUEST = re.compile(
    rb"\n(X-Request-ID|traceparent|tracestate|X-Forwarded-For|X-Real-IP|X-Amzn-Trace-Id)"
    rb":[\t ]*([\t\x20-\x7e]*)\r(?=\n[^\t ])",
    re.IGNORECASE,
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


class RequestHead(NamedTuple):
    """What a plain request's header lines say: the body's bytes, and the id and the trace that it
    brought, or ''.
    """

    length: int
    request_id: str
    traceparent: str


def request_id_of(headers: Mapping[str, str]) -> str:
    """The id that a request brings, or '' where it brings none that is sensible."""
    given = headers.get("X-Request-ID")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else ""


class HeaderCache:
    """Tells plain blocks of header lines from others."""

    def __init__(self, length_max: int, host_rule: HostRule) -> None:
        """`length_max` bounds the body of a plain request, in bytes."""
        self._length_max = length_max
        self._host_rule = host_rule
        self._remembered: dict[bytes, RequestHead | None] = {}

    def lookup(self, block: bytes) -> RequestHead | None:
        """The head of these header lines, or None where they are not plain.

        `block` begins behind the request line's CR LF and ends with the empty line.
        """
        try:
            return self._remembered[block]
        except KeyError:
            pass
        # What stays, a name, a value, what stays, and so on.
        parts = _PER_REQUEST.split(b"\n" + block)
        if len(parts) == 1:
            return self._remember(block)
        names = [name.lower() for name in parts[1::3]]
        kept = b"".join(parts[::3])[1:]
        lower = kept.lower()
        is_left = b"x-request-id" in lower or b"traceparent" in lower
        if is_left or len({*names}) < len(names) or block.count(b"\n") > _LINES_MAX:
            # The parser knows what becomes of two, or of too many.
            return self._parse(block)
        head = self._remember(kept)
        if head is None:
            return None
        request_id = traceparent = ""
        for name, value in zip(names, parts[2::3], strict=True):
            if name == b"x-request-id":
                request_id = value.decode("ascii").rstrip("\t ")
                request_id = request_id if _REQUEST_ID.fullmatch(request_id) else ""
            elif name == b"traceparent":
                traceparent = value.decode("ascii").rstrip("\t ")
        return RequestHead(head.length, request_id, traceparent)

    def _remember(self, block: bytes) -> RequestHead | None:
        try:
            return self._remembered[block]
        except KeyError:
            head = self._parse(block)
        # One that the expression above did not find may be in it all the same.
        is_single = head is not None and (head.request_id or head.traceparent)
        if len(block) <= _REMEMBERED_BYTES_MAX and not is_single:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[block] = head
        return head

    def _parse(self, block: bytes) -> RequestHead | None:
        # Tornado takes a bare LF for the end of a line, and two for the end of the head.
        lines = block.count(b"\r\n")
        if block.count(b"\n") != lines or lines > _LINES_MAX:
            return None
        try:
            headers = HTTPHeaders.parse(block[:-2].decode("latin1"))
            if "Host" not in headers or any(name in headers for name in _UNUSUAL):
                return None
            reject_malformed_hosts(headers["Host"])
            reject_other_hosts(headers["Host"], self._host_rule)
            reject_prefetches(headers)
            reject_other_pages(headers)
        except (HTTPInputError, Problem):
            return None
        if headers.get("Connection", "keep-alive").lower() != "keep-alive":
            return None
        length = headers.get("Content-Length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > self._length_max:
            return None
        return RequestHead(int(length), request_id_of(headers), headers.get("traceparent", ""))
