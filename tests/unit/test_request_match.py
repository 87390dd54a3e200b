"""The fast path's matcher: which bytes are a whole request, and what its parts are."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_service.access.gate import Gate
from chat_service.api.request_policy import HostRule
from chat_service.server.header_cache import HeaderCache
from chat_service.server.request_match import NoMatch, RequestMatch, match_request

HEADER_MAX: Final = 1000
BODY_MAX: Final = 100
POST: Final = b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n{body!}"
READ: Final = b"GET /chat/eve HTTP/1.1\r\nHost: a\r\n\r\n"


def match(data: bytes) -> RequestMatch | NoMatch:
    """Match with an empty header cache."""
    return match_request(data, HeaderCache(BODY_MAX, HostRule(), Gate("off")), HEADER_MAX)


def matched(data: bytes) -> RequestMatch:
    """Return the match of data that begins with a whole, eligible request."""
    found = match(data)
    assert isinstance(found, RequestMatch)
    return found


def test_a_post_is_matched_with_its_body() -> None:
    found = matched(POST)
    assert (found.method, found.route) == ("POST", "/chat")
    assert (found.parameter, found.query) == ("", "")
    assert POST[found.body_start : found.end] == b"{body!}"
    assert found.end == len(POST)


def test_a_read_is_matched_with_its_username_and_query() -> None:
    for target, parameter, query in (
        (b"eve", "eve", ""),
        (b"eve?", "eve", ""),
        (b"eve?limit=1&wait=2.5", "eve", "limit=1&wait=2.5"),
        (b"%C3%A9", "%C3%A9", ""),
        (b"a:b@c?x=/?", "a:b@c", "x=/?"),
        (b"batch", "batch", ""),
        (b"%zz", "%zz", ""),
    ):
        found = matched(b"GET /chat/%b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert (found.method, found.route) == ("GET", "/chat/:username")
        assert (found.parameter, found.query) == (parameter, query)


def test_a_read_may_have_a_body() -> None:
    data = b"GET /chat/eve HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    found = matched(data)
    assert (found.body_start, found.end) == (len(data) - 2, len(data))


def test_an_id_and_a_trace_are_found() -> None:
    lines = b"Host: a\r\nX-Request-ID: order-66\r\ntraceparent: 00-1\r\n\r\n"
    head = matched(b"GET /chat/eve HTTP/1.1\r\n" + lines).head
    assert (head.request_id, head.traceparent) == ("order-66", "00-1")


@pytest.mark.parametrize("first", [POST, READ])
@given(behind=st.binary(max_size=80))
def test_a_match_ends_where_the_next_request_begins(first: bytes, behind: bytes) -> None:
    assert matched(first + behind) == matched(first)
    assert matched(first + behind).end == len(first)


def test_pipelined_requests_are_matched_one_after_the_other() -> None:
    data, methods = POST + READ + READ + POST, []
    while data:
        found = matched(data)
        methods.append(found.method)
        data = data[found.end :]
    assert methods == ["POST", "GET", "GET", "POST"]


def test_a_head_without_its_whole_body_is_incomplete() -> None:
    head_end = POST.index(b"\r\n\r\n") + 4
    for end in range(head_end, len(POST)):
        assert match(POST[:end]) is NoMatch.INCOMPLETE


def test_an_incomplete_head_is_ineligible() -> None:
    for request in (POST, READ):
        for end in range(request.index(b"\r\n\r\n") + 4):
            assert match(request[:end]) is NoMatch.INELIGIBLE


INELIGIBLE: Final = {
    "another method": b"PUT /chat HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get /chat/eve HTTP/1.1\r\nHost: a\r\n\r\n",
    "another route": b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
    "a post to another route": b"POST /chat/batch HTTP/1.1\r\nHost: a\r\n\r\n",
    "a query on a post": b"POST /chat?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a post's slash": b"POST /chat/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "no username": b"GET /chat/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "another segment": b"GET /chat/eve/read HTTP/1.1\r\nHost: a\r\n\r\n",
    "a whole URL": b"GET http://a/chat/eve HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /chat/eve#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a letter beyond ASCII": b"GET /chat/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character": b"GET /chat/e\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a quote in the query": b'GET /chat/eve?x=" HTTP/1.1\r\nHost: a\r\n\r\n',
    "two spaces": b"GET  /chat/eve HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space at the end of the line": b"GET /chat/eve HTTP/1.1 \r\nHost: a\r\n\r\n",
    "an empty line first": b"\r\nGET /chat/eve HTTP/1.1\r\nHost: a\r\n\r\n",
    "an old version": b"GET /chat/eve HTTP/1.0\r\nHost: a\r\n\r\n",
    "no version": b"GET /chat/eve\r\nHost: a\r\n\r\n",
    "bare line feeds": b"GET /chat/eve HTTP/1.1\nHost: a\n\n",
    "no header lines": b"GET /chat/eve HTTP/1.1\r\n\r\n",
    "a body in chunks": b"POST /chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("data", INELIGIBLE.values(), ids=INELIGIBLE)
def test_any_other_request_is_ineligible(data: bytes) -> None:
    assert match(data) is NoMatch.INELIGIBLE


@given(st.binary(max_size=200))
def test_no_bytes_make_the_matcher_fail(data: bytes) -> None:
    assert match(data) is NoMatch.INELIGIBLE


@given(st.integers(0, len(POST) - 1), st.binary(max_size=3))
def test_a_match_is_never_longer_than_the_data(position: int, inserted: bytes) -> None:
    data = POST[:position] + inserted + POST[position:]
    found = match(data)
    if isinstance(found, RequestMatch):
        assert found.body_start <= found.end <= len(data)
        assert found.end - found.body_start == found.head.length


def test_the_head_may_have_a_limited_number_of_bytes() -> None:
    start = b"GET /chat/eve HTTP/1.1\r\nHost: a\r\nX: "
    for size, is_eligible in ((HEADER_MAX, True), (HEADER_MAX + 1, False)):
        data = start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"
        assert len(data) == size
        assert isinstance(match(data), RequestMatch) is is_eligible


def test_the_body_may_have_a_limited_number_of_bytes() -> None:
    for size, is_eligible in ((BODY_MAX, True), (BODY_MAX + 1, False)):
        head = b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        assert isinstance(match(head + b"x" * size), RequestMatch) is is_eligible
        expected = NoMatch.INCOMPLETE if is_eligible else NoMatch.INELIGIBLE
        assert match(head) is expected
