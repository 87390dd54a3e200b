"""The gate: which token counts, where it may be, and how long an identity stays as it was."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

import pytest
from tornado.httputil import HTTPHeaders

from chat_service.access.gate import Gate
from chat_service.access.token_file import parse
from chat_service.access.verifier import InvalidToken, UnknownKey
from chat_service.api.identity import EVERYONE, UNLIMITED, Identity, Rights
from chat_service.api.problems import Problem
from chat_service.api.request_policy import HostRule
from chat_service.server.header_cache import HeaderCache
from tests.support.access import TOKENS, everybody

BOB: Final = TOKENS["bob"]
SIGNED: Final = "eyJh.eyJz.sig"


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class StubVerifier:
    """Accepts one token, and counts what it is asked."""

    def __init__(self) -> None:
        self.generation = 0
        self.asked = 0
        self.fetched = 0
        self.error: InvalidToken | None = None

    def verify(self, token: str) -> Identity:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if token != SIGNED:
            raise InvalidToken("signature")
        return Identity("jo", Rights(read=("jo",)), 2000.0, 900.0)

    async def fetch_keys(self) -> None:
        self.fetched += 1
        self.error = None


@pytest.fixture
def clock() -> Clock:
    """The clock of the gate."""
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    """A gate for all holders."""
    made = Gate("both", clock)
    made.adopt(parse(everybody()))
    return made


@pytest.fixture
def verifier(gate: Gate) -> StubVerifier:
    """The verifier of that gate."""
    made = StubVerifier()
    gate.use(made)
    return made


def headers(*pairs: tuple[str, str]) -> HTTPHeaders:
    """Return headers, some of them perhaps twice."""
    found = HTTPHeaders()
    for name, value in (("Host", "chat.test"), *pairs):
        found.add(name, value)
    return found


def bearer(token: str) -> HTTPHeaders:
    """Return the headers of a request with a token."""
    return headers(("Authorization", f"Bearer {token}"))


def refusal(gate: Gate, given: HTTPHeaders, query: str = "") -> tuple[int, str]:
    """Return the status and the kind with which a request is refused."""
    with pytest.raises(Problem) as raised:
        gate.identify(given, query)
    return raised.value.status, raised.value.kind


def test_everyone_passes_if_access_is_off() -> None:
    gate = Gate("off")
    assert gate.identify(bearer("junk"), "access_token=x") is EVERYONE
    assert gate.unidentified("192.0.2.1") is UNLIMITED
    assert gate.renew(EVERYONE) is EVERYONE


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_a_token_identifies_its_holder(scheme: str, gate: Gate) -> None:
    identity = gate.identify(headers(("Authorization", scheme + BOB)))
    assert identity.subject == "bob"
    assert identity.rights == Rights(("*",), ("bob",))


#: A page of the service, as browsers describe it, and other pages.
OWN: Final = {
    "same origin": [("Sec-Fetch-Site", "same-origin")],
    "its origin": [("Origin", "https://chat.test")],
    "both": [("Sec-Fetch-Site", "same-origin"), ("Origin", "https://proxy.test")],
}
FOREIGN: Final = {
    "nothing": [],
    "an address that was typed": [("Sec-Fetch-Site", "none")],
    "another site": [("Sec-Fetch-Site", "cross-site"), ("Origin", "https://chat.test")],
    "a neighbor": [("Sec-Fetch-Site", "same-site")],
    "another origin": [("Origin", "https://evil.test")],
    "another port": [("Origin", "https://chat.test:444")],
    "no origin": [("Origin", "null")],
}


@pytest.mark.parametrize("page", OWN.values(), ids=OWN)
def test_a_cookie_of_an_own_page_counts(page: list[tuple[str, str]], gate: Gate) -> None:
    given = headers(("Cookie", f"x=1; __Host-chat={BOB}; y"), *page)
    assert gate.identify(given).subject == "bob"


def test_the_public_address_of_the_service_is_its_own(clock: Clock) -> None:
    gate = Gate("tokens", clock, frozenset({"https://public.test"}))
    gate.adopt(parse(everybody()))
    cookie = ("Cookie", f"__Host-chat={BOB}")
    assert gate.identify(headers(cookie, ("Origin", "https://public.test"))).subject == "bob"
    assert refusal(gate, headers(cookie, ("Origin", "https://evil.test")))[0] == 403


def test_a_cookie_inside_another_one_does_not_count(gate: Gate) -> None:
    # A neighbor of this host can set a cookie for the whole site, but not one with our prefix.
    given = headers(("Cookie", f"x=1,__Host-chat={BOB}"), *OWN["same origin"])
    assert gate.identify(given).subject == ""


@pytest.mark.parametrize("space", ["\xa0", "\x85"])
def test_a_name_that_seems_to_be_our_cookie_is_another(space: str, gate: Gate) -> None:
    # A neighbor can set it, because browsers see no prefix in it.
    given = headers(("Cookie", f"x=1; {space}__Host-chat={BOB}"), *OWN["same origin"])
    assert gate.identify(given).subject == ""


@pytest.mark.parametrize("page", FOREIGN.values(), ids=FOREIGN)
def test_a_cookie_from_elsewhere_is_refused(page: list[tuple[str, str]], gate: Gate) -> None:
    given = headers(("Cookie", f"__Host-chat={BOB}"), *page)
    assert refusal(gate, given) == (403, "cross-origin")


@pytest.mark.parametrize(
    ("host", "subject"),
    [("localhost:80", "bob"), ("127.0.0.1", "bob"), ("[::1]:8", "bob"), ("chat.test", "")],
)
def test_the_plain_cookie_counts_on_this_machine_only(host: str, subject: str, gate: Gate) -> None:
    given = HTTPHeaders({"Host": host, "Cookie": f"chat={BOB}", "Sec-Fetch-Site": "same-origin"})
    assert gate.identify(given).subject == subject


def test_a_token_counts_before_a_cookie(gate: Gate) -> None:
    given = bearer(TOKENS["eve"])
    given.add("Cookie", f"__Host-chat={BOB}")
    assert gate.identify(given).subject == "eve"


def subprotocols(*offered: str) -> list[tuple[str, str]]:
    """Return the headers of a handshake with these subprotocols."""
    return [("Upgrade", "WebSocket"), ("Sec-WebSocket-Protocol", ", ".join(offered))]


def carried(token: str) -> str:
    """Return the subprotocol with a token."""
    return "chat.bearer." + urlsafe_b64encode(token.encode()).decode().rstrip("=")


def test_a_websocket_carries_a_token(gate: Gate) -> None:
    offered = subprotocols("chat.v1", carried(BOB))
    assert gate.identify(headers(*offered)).subject == "bob"
    # Only a handshake can carry it.
    assert gate.identify(headers(offered[1])).subject == ""


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (subprotocols("chat.bearer.!"), 401),
        (subprotocols("chat.bearer."), 401),
        (subprotocols(carried("é")), 401),
        (subprotocols(carried(BOB), carried(BOB)), 400),
        ([*subprotocols(carried(BOB)), ("Authorization", f"Bearer {BOB}")], 400),
    ],
)
def test_a_bad_subprotocol_is_refused(
    given: list[tuple[str, str]], status: int, gate: Gate
) -> None:
    assert refusal(gate, headers(*given))[0] == status


@pytest.mark.parametrize(
    "query",
    ["access_token=x", "limit=1&token=x", f"x={BOB}", f"x={SIGNED}", "TOKEN=x", "%74oken=x"],
)
def test_a_token_in_a_query_is_refused(query: str, gate: Gate) -> None:
    assert refusal(gate, bearer(BOB), query) == (400, "bad-request")


@pytest.mark.parametrize("query", ["limit=1", "wait=5", "tokens=1", "x=cht"])
def test_other_queries_pass(query: str, gate: Gate) -> None:
    assert gate.identify(bearer(BOB), query).subject == "bob"


def test_an_identity_ends_at_its_time(gate: Gate, clock: Clock) -> None:
    end = "until = 1970-01-01T00:20:00Z"
    gate.adopt(parse(everybody(bob=f'read = ["bob"]\n{end}')))
    identity = gate.identify(bearer(BOB))
    assert not gate.has_ended()
    clock.now = 1199.9
    assert gate.renew(identity) is identity
    clock.now = 1200.0
    assert gate.has_ended()
    assert not gate.has_ended()
    assert gate.renew(identity) is None
    assert refusal(gate, bearer(BOB)) == (401, "unauthorized")


@pytest.mark.parametrize("end", ["1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z"])
def test_an_end_long_ago_is_an_end(end: str, gate: Gate) -> None:
    gate.adopt(parse(everybody(bob=f'read = ["bob"]\nuntil = {end}')))
    assert refusal(gate, bearer(BOB)) == (401, "unauthorized")


def test_an_identity_ends_even_if_the_clock_was_set_back(gate: Gate, clock: Clock) -> None:
    end = "until = 1970-01-01T00:20:00Z"
    gate.adopt(parse(everybody(bob=f'read = ["bob"]\n{end}')))
    clock.now = 1300.0
    assert gate.has_ended()
    clock.now = 1100.0
    identity = gate.identify(bearer(BOB))
    clock.now = 1200.0
    assert gate.has_ended()
    assert gate.renew(identity) is None


def test_a_reload_keeps_identities_that_did_not_change(gate: Gate) -> None:
    bob, eve = gate.identify(bearer(BOB)), gate.identify(bearer(TOKENS["eve"]))
    anyone = gate.identify(headers())
    gate.adopt(parse(everybody(eve='read = ["x"]')))
    assert gate.renew(bob) is bob
    assert gate.renew(anyone) is anyone
    assert gate.renew(eve) == gate.identify(bearer(TOKENS["eve"])) != eve


def test_a_name_does_not_outlive_its_token(gate: Gate) -> None:
    bob = gate.identify(bearer(BOB))
    digest = sha256(BOB.encode()).hexdigest()
    gate.adopt(parse(everybody().replace(digest, "0" * 64)))
    assert gate.renew(bob) is None


def test_a_signed_token_is_known_until_it_is_revoked(gate: Gate, verifier: StubVerifier) -> None:
    jo = gate.identify(bearer(SIGNED))
    assert (jo.subject, jo.rights) == ("jo", Rights(read=("jo",)))
    assert gate.renew(jo) is jo
    for before, is_valid in (("00:15:00", True), ("00:15:01", False)):
        revoked = f'[[revoked]]\nsub = "jo"\nbefore = 1970-01-01T{before}Z\n'
        gate.adopt(parse(everybody() + revoked))
        assert (gate.renew(jo) is jo) is is_valid
    assert refusal(gate, bearer(SIGNED)) == (401, "unauthorized")


def test_a_signed_token_ends_with_its_key(gate: Gate, verifier: StubVerifier) -> None:
    jo = gate.identify(bearer(SIGNED))
    assert not gate.has_ended()
    verifier.generation += 1
    assert gate.has_ended()
    assert gate.renew(jo) is jo
    verifier.error = InvalidToken("signature")
    assert gate.renew(jo) is None


async def test_an_unknown_key_is_fetched_once(gate: Gate, verifier: StubVerifier) -> None:
    verifier.error = UnknownKey()
    with pytest.raises(UnknownKey):
        gate.identify(bearer(SIGNED))
    assert (await gate.identify_patiently(bearer(SIGNED))).subject == "jo"
    assert verifier.fetched == 1


def test_an_identity_does_not_show_its_token(gate: Gate, verifier: StubVerifier) -> None:
    shown = repr(gate.identify(bearer(SIGNED)))
    assert SIGNED not in shown
    assert "jo" in shown


@pytest.mark.parametrize("token", ["x" * 4097, f"{SIGNED}x" * 400, "cht_", "a.b.c"])
def test_other_tokens_are_refused(token: str, gate: Gate, verifier: StubVerifier) -> None:
    assert refusal(gate, bearer(token)) == (401, "unauthorized")


def test_a_long_token_is_not_verified(gate: Gate, verifier: StubVerifier) -> None:
    refusal(gate, bearer("a.b" * 3000))
    assert verifier.asked == 0


def block(token: str, number: int = 0) -> bytes:
    """Return the header lines of a request with a token."""
    return f"Host: a\r\nX: {number}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def test_a_cached_head_needs_no_second_lookup(gate: Gate, verifier: StubVerifier) -> None:
    cache = HeaderCache(1000, HostRule(), gate)
    for _ in range(10):
        head = cache.lookup(block(SIGNED))
        assert head is not None
        assert head.identity.subject == "jo"
    assert verifier.asked == 1


def test_a_change_removes_only_the_heads_it_concerns(gate: Gate) -> None:
    cache = HeaderCache(1000, HostRule(), gate)
    bob, eve = cache.lookup(block(BOB)), cache.lookup(block(TOKENS["eve"]))
    gate.adopt(parse(everybody(eve="-")))
    cache.forget_ended()
    assert cache.lookup(block(BOB)) is bob
    assert eve is not None
    assert cache.lookup(block(TOKENS["eve"])) is None


def test_bad_tokens_do_not_fill_the_cache(gate: Gate) -> None:
    cache = HeaderCache(1000, HostRule(), gate)
    bob = cache.lookup(block(BOB))
    for number in range(3000):
        assert cache.lookup(block(f"cht_{number}")) is None
    assert cache.lookup(block(BOB)) is bob
