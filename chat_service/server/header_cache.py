"""Decides which blocks of header lines are eligible for the fast path, and remembers each decision.

The requests of a client differ in their first line and little else: the header lines are mostly
identical. So each distinct block of them is parsed, by Tornado's parser, and checked once. Lines
that proxies add to each request are cut out first. Called by `chat_service.server.request_match`.
Tornado serves or refuses requests that are not eligible.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from tornado.httputil import HTTPHeaders, HTTPInputError

from chat_service.access.credentials import TOKEN_MAX
from chat_service.access.gate import Gate
from chat_service.access.verifier import UnknownKey
from chat_service.api.identity import EVERYONE, Identity
from chat_service.api.log_lines import agent_of
from chat_service.api.problems import Problem
from chat_service.api.request_options import opens_page
from chat_service.api.request_policy import (
    HostRule,
    reject_malformed_hosts,
    reject_other_hosts,
    reject_other_pages,
    reject_prefetches,
)

#: The most blocks in the cache, and the longest of them in bytes. They limit the memory that
#: clients can fill with blocks that are used once.
_REMEMBERED_MAX, _REMEMBERED_BYTES_MAX = 1024, 1024
#: The most header lines of a request. Each costs as much to parse as a whole cached head.
HEADERS_MAX = 100
#: Headers about framing and coding, and those that ask for special handling.
_UNUSUAL = (
    *("Transfer-Encoding", "Content-Encoding", "Expect", "Upgrade", "Trailer", "TE"),
    *("Idempotency-Key", "Prefer"),
)
_LENGTH = re.compile(r"[0-9]{1,9}")
#: Lines that differ for each request and change no decision, from the line feed before them to
#: their carriage return. Blocks with other bytes in these values go to the parser.
_PER_REQUEST = re.compile(
    rb"\n(X-Request-ID|traceparent|tracestate|X-Forwarded-For|Forwarded|X-Real-IP|X-Amzn-Trace-Id)"
    rb":[\t ]*([\t\x20-\x7e]*)\r(?=\n[^\t ])",
    re.IGNORECASE,
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


class RequestHead(NamedTuple):
    """The header lines of an eligible request.

    `length` is that of the body, in bytes, `identity` that of the sender, and `agent` the name of
    its program. The others are the values of headers, or empty. Only `request_id` has been checked.
    """

    length: int
    request_id: str
    traceparent: str
    forwarded_for: str = ""
    forwarded: str = ""
    identity: Identity = EVERYONE
    agent: str = ""


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the id that the client sent, or '' if there is none or it is malformed."""
    given = headers.get("X-Request-ID")
    return given if given is not None and _REQUEST_ID.fullmatch(given) else ""


class HeaderCache:
    """Decides which blocks of header lines are eligible."""

    def __init__(self, length_max: int, host_rule: HostRule, gate: Gate) -> None:
        """`length_max` limits the body of an eligible request, in bytes."""
        self._length_max = length_max
        self._host_rule = host_rule
        self._gate = gate
        #: A signed token has a thousand bytes, and its block must be cached all the same.
        self._bytes_max = _REMEMBERED_BYTES_MAX + (0 if gate.access == "off" else TOKEN_MAX)
        self._remembered: dict[bytes, RequestHead | None] = {}

    def lookup(self, block: bytes) -> RequestHead | None:
        """Return the head of these header lines, or None if they are not eligible.

        `block` begins after the request line's CR LF and ends with the empty line.
        """
        try:
            return self._remembered[block]
        except KeyError:
            pass
        # The last line is the empty one.
        if block.count(b"\n") > HEADERS_MAX + 1:
            return None
        # The pieces are: other lines, a name, a value, other lines, and so on.
        parts = _PER_REQUEST.split(b"\n" + block)
        if len(parts) == 1:
            return self._remember(block)
        names = [name.lower() for name in parts[1::3]]
        kept = b"".join(parts[::3])[1:]
        lower = b"\n" + kept.lower()
        is_left = (
            b"x-request-id" in lower
            or b"traceparent" in lower
            or b"\nx-forwarded-for" in lower
            or b"\nforwarded" in lower
        )
        if is_left or len({*names}) < len(names):
            # The parser decides about repeated lines.
            return self._parse(block)
        head = self._remember(kept)
        if head is None:
            return None
        request_id = traceparent = forwarded_for = forwarded = ""
        for name, value in zip(names, parts[2::3], strict=True):
            if name == b"x-request-id":
                request_id = value.decode("ascii").rstrip("\t ")
                request_id = request_id if _REQUEST_ID.fullmatch(request_id) else ""
            elif name == b"traceparent":
                traceparent = value.decode("ascii").rstrip("\t ")
            elif name == b"x-forwarded-for":
                forwarded_for = value.decode("ascii").rstrip("\t ")
            elif name == b"forwarded":
                forwarded = value.decode("ascii").rstrip("\t ")
        return RequestHead(
            *(head.length, request_id, traceparent, forwarded_for, forwarded),
            *(head.identity, head.agent),
        )

    def forget_ended(self) -> None:
        """Forget the blocks whose identity has changed or ended, and keep the others."""
        renew = self._gate.renew
        self._remembered = {
            block: head
            for block, head in self._remembered.items()
            if head is not None and renew(head.identity) is head.identity
        }

    def _remember(self, block: bytes) -> RequestHead | None:
        try:
            return self._remembered[block]
        except KeyError:
            # What follows is outside of this clause: the trace of an error in it would show the
            # block, and so the token, as the cause.
            pass
        head = self._parse(block)
        # The expression may have missed an id, for example. Such a block must not be cached.
        is_single = head is not None and any(head[1:5])
        # A refused token may be valid later, and a flood of them must evict no good one.
        is_lasting = head is not None or self._gate.access == "off"
        if len(block) <= self._bytes_max and is_lasting and not is_single:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[block] = head
        return head

    def _parse(self, block: bytes) -> RequestHead | None:
        # Tornado accepts a bare LF as the end of a line, and two as the end of the head.
        lines = block.count(b"\r\n")
        if block.count(b"\n") != lines or lines > HEADERS_MAX + 1:
            return None
        try:
            headers = HTTPHeaders.parse(block[:-2].decode("latin1"))
            if "Host" not in headers or any(name in headers for name in _UNUSUAL):
                return None
            if opens_page(headers):
                # A browser gets its errors as pages.
                return None
            reject_malformed_hosts(headers["Host"])
            reject_other_hosts(headers["Host"], self._host_rule)
            reject_prefetches(headers)
            reject_other_pages(headers)
            identity = self._gate.identify(headers)
        except (HTTPInputError, Problem, UnknownKey):
            return None
        if headers.get("Connection", "keep-alive").lower() != "keep-alive":
            return None
        length = headers.get("Content-Length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > self._length_max:
            return None
        return RequestHead(
            int(length),
            request_id_of(headers),
            headers.get("traceparent", ""),
            headers.get("X-Forwarded-For", ""),
            headers.get("Forwarded", ""),
            identity,
            agent_of(headers),
        )
