"""Recognizes the requests that the fast path serves, in the bytes that have arrived.

`match_request` does no input or output. It decides from the request line, whose form is fixed
here, and from the header lines, which `chat_service.server.header_cache` judges. Called by
`chat_service.server.fast_connection`.
"""

import re
from enum import Enum, auto

from msgspec import Struct

from chat_service.api.problems import Effect
from chat_service.api.routing import INBOX_PATH, POST_PATH
from chat_service.server.header_cache import HeaderCache, RequestHead

#: Only RFC 3986's characters for a path segment and a query: in these nothing has to be decided.
_REQUEST_LINE = re.compile(
    rb"(?:POST /chat|GET /chat/([A-Za-z0-9._~%!$&'()*+,;=:@-]+)"
    rb"(?:\?([A-Za-z0-9._~%!$&'()*+,;=:@/?-]*))?) HTTP/1\.1\r\n"
)


class NoMatch(Enum):
    """Why no whole request was matched."""

    #: Tornado has to serve this connection.
    INELIGIBLE = auto()
    #: The head is whole and eligible, but part of the body is missing.
    INCOMPLETE = auto()


class RequestMatch(Struct, frozen=True, gc=False):
    """A whole request at the beginning of the data: a post, or a read of one inbox.

    `parameter` is the username as sent, still percent-encoded, and `query` follows the question
    mark; a post has neither. The body is `data[body_start:end]`.
    """

    method: str
    route: str
    effect: Effect
    parameter: str
    query: str
    head: RequestHead
    body_start: int
    end: int


def match_request(
    data: bytes, header_cache: HeaderCache, header_max: int
) -> RequestMatch | NoMatch:
    """Match the first request in `data`, which may be followed by others.

    The request line and the header lines together may have at most `header_max` bytes. A head that
    is not whole is ineligible: it is too rare to be waited for here.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        return NoMatch.INELIGIBLE
    lines_start = line.end()
    # The search starts at the request line's own CR LF, in case no header lines follow it.
    body_start = data.find(b"\r\n\r\n", lines_start - 2) + 4
    if not 4 <= body_start <= header_max:
        return NoMatch.INELIGIBLE
    head = header_cache.lookup(data[lines_start:body_start])
    if head is None:
        return NoMatch.INELIGIBLE
    end = body_start + head.length
    if len(data) < end:
        return NoMatch.INCOMPLETE
    username, query = line.groups()
    if username is None:
        return RequestMatch("POST", POST_PATH, "stored", "", "", head, body_start, end)
    name, asked = username.decode(), query.decode() if query else ""
    return RequestMatch("GET", INBOX_PATH, "claimed", name, asked, head, body_start, end)
