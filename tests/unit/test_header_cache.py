"""The header cache: which blocks of header lines are eligible, and the values in them."""

import random
from typing import Any, Final

import pytest

from chat_service.access.gate import Gate
from chat_service.access.verifier import InvalidToken, UnknownKey
from chat_service.api.identity import EVERYONE, Identity
from chat_service.api.request_policy import HostRule
from chat_service.server.header_cache import HeaderCache, RequestHead
from tests.support.raw import HOST

ELIGIBLE: Final[dict[bytes, tuple[Any, ...]]] = {
    b"Host: a\r\n\r\n": (0, "", ""),
    b"host:a\r\n\r\n": (0, "", ""),
    b"Host: a\r\nContent-Length: 0\r\n\r\n": (0, "", ""),
    b"Host: a\r\nContent-Length: 007\r\n\r\n": (7, "", ""),
    b"Host: a\r\nContent-Length: 1000\r\n\r\n": (1000, "", ""),
    b"Host: a\r\nConnection: Keep-Alive\r\n\r\n": (0, "", ""),
    b"Host: a\r\nSec-Fetch-Site: same-origin\r\nOrigin: http://b\r\n\r\n": (0, "", ""),
    b"Host: a\r\nOrigin: http://a\r\n\r\n": (0, "", ""),
    b"Host: a\r\nX-Request-ID: one\t \r\n\r\n": (0, "one", ""),
    b"Host: a\r\nX-Request-ID: not one\r\n\r\n": (0, "", ""),
    b"Host: a\r\ntraceparent: 00-1\r\ntracestate: a=b\r\n\r\n": (0, "", "00-1"),
    b"X-Forwarded-For: ::1 \r\nHost: a\r\nX-Real-IP: ::2\r\n\r\n": (0, "", "", "::1"),
    b"Host: a\r\nforwarded:for=_a,for=b\r\n\r\n": (0, "", "", "", "for=_a,for=b"),
    b"Host: a\r\nX-Forwarded-For: a\r\nX-Forwarded-For: b\r\n\r\n": (0, "", "", "a,b"),
}


@pytest.mark.parametrize("block", ELIGIBLE)
def test_an_eligible_block_has_the_same_head_each_time(block: bytes) -> None:
    header_cache = HeaderCache(1000, HostRule(frozenset({"a"})), Gate("off"))
    expected = RequestHead(*ELIGIBLE[block])
    assert header_cache.lookup(block) == expected
    assert header_cache.lookup(block) == expected


@pytest.mark.parametrize(
    "block",
    [
        b"Host: a\n\nGET /chat/bob HTTP/1.1\r\nHost: a\r\n\r\n",
        b"Host: a\nX: b\r\n\r\n",
        b"Host: a\r\n\nX: b\r\n\r\n",
        b"X: no host\r\n\r\n",
        b"Host: a b\r\n\r\n",
        b"Host: elsewhere\r\n\r\n",
        b"Host: a\r\nX\r\n\r\n",
        b"Host: a\r\nX : b\r\n\r\n",
        b"Host: a\r\nX: a\r\n b\r\n\r\n",
        b"Host: a\r\nX: a\0b\r\n\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Host: a\r\nContent-Length: +5\r\n\r\n",
        b"Host: a\r\nContent-Length: \xb2\r\n\r\n",
        b"Host: a\r\nContent-Length: 1001\r\n\r\n",
        b"Host: a\r\nContent-Encoding: gzip\r\n\r\n",
        b"Host: a\r\nExpect: 100-continue\r\n\r\n",
        b"Host: a\r\nConnection: close\r\n\r\n",
        b"Host: a\r\nconnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"Host: a\r\nSec-Purpose: prefetch\r\n\r\n",
        b"Host: a\r\nSec-Fetch-Site: cross-site\r\n\r\n",
        b"Host: a\r\nSec-Fetch-Site: same-site\r\n\r\n",
        b"Host: a\r\nOrigin: http://b\r\n\r\n",
        b"Host: a\r\nReferer: http://b/\r\n\r\n",
        b"\r\n",
    ],
)
def test_any_other_block_is_ineligible_each_time(block: bytes) -> None:
    header_cache = HeaderCache(1000, HostRule(frozenset({"a"})), Gate("off"))
    assert header_cache.lookup(block) is None
    assert header_cache.lookup(block) is None


def test_a_head_is_cached_without_the_id_in_it() -> None:
    header_cache = HeaderCache(1000, HostRule(), Gate("off"))
    for request_id in ("one", "two"):
        block = b"Host: a\r\nX-Request-ID: %b\r\nContent-Length: 7\r\n\r\n" % request_id.encode()
        assert header_cache.lookup(block) == RequestHead(7, request_id, "")
    assert header_cache.lookup(HOST + b"\r\n\r\n") == RequestHead(0, "", "")
    for number in range(3000):
        assert header_cache.lookup(b"Host: a\r\nX: %d\r\n\r\n" % number) == RequestHead(0, "", "")


PIECES: Final = (
    *(b"Host: a\r\n", b"Host: b\r\n", b"Content-Length: 7\r\n", b"Connection: close\r\n"),
    *(b"X-Request-ID: one\r\n", b"x-request-id:two \t\r\n", b"X-Request-ID: a b\r\n"),
    *(b"X-Request-ID:\r\n", b"X-Request-ID : x\r\n", b"X-Request-ID: x\n", b"X-Request-ID\r\n"),
    *(b"X-Request-ID: \xe9\r\n", b"X-Request-ID: a\0\r\n", b"X-Request-ID: a\rHost: b\r\n"),
    *(b"Y-X-Request-ID: y\r\n", b"X-Request-ID: x: y\r\n", b"X-Request-ID: \x7f\r\n"),
    *(b"traceparent: 00-1\r\n", b"TraceParent:\t00-2\r\n", b"tracestate: a=b\r\n"),
    *(b"X-Forwarded-For: 192.0.2.7, ::1\r\n", b"X-Forwarded-For: \r\n", b"X-Real-IP: x\r\n"),
    *(b"X-Forwarded-For: \xe9, a\r\n", b"X-Forwarded-For : x\r\n", b"X-Forwarded-Host: a\r\n"),
    *(b"Forwarded: for=_x;by=y\r\n", b"forwarded:\t\r\n", b'Forwarded: for="\xe9"\r\n'),
    *(b" folded\r\n", b"\tX-Request-ID: folded\r\n", b" \r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Origin: http://b\r\n", b"Accept: */*\r\n", b":\r\n"),
    *(b"Accept: x\r\n" * 120,),
)


def test_lines_that_differ_per_request_change_no_decision() -> None:
    rule = HostRule(frozenset({"a"}))
    pick = random.Random(1)
    cached = HeaderCache(1000, rule, Gate("off"))
    eligible = cut = 0
    for _ in range(20_000):
        pieces = [pick.choice(PIECES[:-1]) for _ in range(pick.randrange(6))]
        if pick.random() < 0.6:
            pieces.insert(pick.randrange(len(pieces) + 1), b"Host: a\r\n")
        if pick.random() < 0.02:
            pieces.append(PIECES[-1])
        block = b"".join(pieces) + b"\r\n"
        expected = HeaderCache(1000, rule, Gate("off"))._parse(block)
        assert cached.lookup(block) == expected, block
        eligible += expected is not None
        cut += expected is not None and bool(expected.request_id)
    # The pieces made enough eligible blocks.
    assert eligible > 1000
    assert cut > 200


def test_a_block_is_parsed_once_despite_lines_of_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    parse = HeaderCache._parse

    def counting(self: HeaderCache, block: bytes) -> object:
        parsed.append(block)
        return parse(self, block)

    monkeypatch.setattr(HeaderCache, "_parse", counting)
    header_cache = HeaderCache(1000, HostRule(), Gate("off"))
    for number in range(100):
        block = b"Host: a\r\nX-Request-ID: %d\r\nX-Forwarded-For: 192.0.2.%d\r\n\r\n"
        assert header_cache.lookup(block % (number, number)) == RequestHead(
            0, str(number), "", f"192.0.2.{number}"
        )
    assert parsed == [b"Host: a\r\n\r\n"]


class LateKeys:
    """A verifier that refuses every token in one way or another, until it accepts all."""

    generation = 0

    def __init__(self) -> None:
        self.refusal: InvalidToken | None = UnknownKey()

    def verify(self, token: str) -> Identity:
        if self.refusal is not None:
            raise self.refusal
        return Identity("bob", EVERYONE.rights)

    async def fetch_keys(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("refusal", [UnknownKey(), InvalidToken("not-yet")])
def test_a_refused_token_may_be_valid_later(refusal: InvalidToken) -> None:
    gate, keys = Gate("jwt"), LateKeys()
    gate.use(keys)
    header_cache = HeaderCache(1000, HostRule(frozenset({"a"})), gate)
    block = b"Host: a\r\nAuthorization: Bearer a.b.c\r\n\r\n"
    keys.refusal = refusal
    assert header_cache.lookup(block) is None
    keys.refusal = None
    head = header_cache.lookup(block)
    assert head is not None
    assert head.identity.subject == "bob"


def test_a_flood_of_bad_tokens_evicts_no_good_one() -> None:
    gate, keys = Gate("jwt"), LateKeys()
    gate.use(keys)
    header_cache = HeaderCache(1000, HostRule(frozenset({"a"})), gate)
    keys.refusal = None
    good = b"Host: a\r\nAuthorization: Bearer g.o.d\r\n\r\n"
    head = header_cache.lookup(good)
    keys.refusal = InvalidToken("signature")
    for number in range(10_000):
        header_cache.lookup(b"Host: a\r\nAuthorization: Bearer b.a.%d\r\n\r\n" % number)
    assert header_cache.lookup(good) is head
