"""Paths, methods and queries: wrong ones read nothing, and usernames are taken literally."""

from typing import Final

from chat_service.service import Service
from tests.support.cases import by_text, each_case
from tests.support.raw import assert_not_http, assert_problem, get, request, texts_of, unharmed

NOWHERE: Final = {
    "an inbox without a name": b"/chat/",
    "a trailing slash": b"/chat/bob/",
    "a leading slash": b"//chat/bob",
    "a doubled slash": b"/chat//bob",
    "an inbox within an inbox": b"/chat/bob/alice",
    "upper case": b"/CHAT/bob",
    "an escaped slash": b"/chat%2Fbob",
    "a read without a name": b"/chat//read",
    "a trailing slash after read": b"/chat/bob/read/",
    "a dot segment": b"/./chat/bob",
    "a double-dot segment": b"/chat/../chat/bob",
    "another scheme": b"ftp://good.test/chat/bob",
    "no path": b"*",
}


@each_case(NOWHERE)
async def test_a_path_that_is_not_there_is_not_found(target: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for method in (b"GET", b"POST"):
            assert_problem(await wire.ask(request(method, target)), 404, "not-found")
        assert await wire.texts("bob") == ["hi"]


NO_PATH: Final = (b"x/chat/bob", b"chat/chat/bob", b"http:/chat/bob", b"bob@good.test/chat/bob")


@each_case(by_text(NO_PATH))
async def test_a_target_without_a_leading_slash_reaches_no_inbox(
    target: bytes, service: Service
) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for method in (b"GET", b"POST"):
            assert (await wire.ask(request(method, target))).status in (400, 404)
        assert await wire.texts("bob") == ["hi"]


INBOX: Final = "GET, HEAD, POST, OPTIONS"
WRONG_METHODS: Final = {
    **{
        f"{method.decode()} of an inbox": (method, b"/chat/bob", INBOX)
        for method in (b"PUT", b"PATCH", b"DELETE", b"TRACE", b"BREW", b"M" * 1000)
    },
    "lower case": (b"get", b"/chat/bob", INBOX),
    "mixed case": (b"Get", b"/chat/bob", INBOX),
    "GET /chat": (b"GET", b"/chat", "POST, OPTIONS"),
    "HEAD /chat": (b"HEAD", b"/chat", "POST, OPTIONS"),
    "GET of a route for POST": (b"GET", b"/chat/bob/read", "POST, OPTIONS"),
    "HEAD of a route for POST": (b"HEAD", b"/chat/bob/read", "POST, OPTIONS"),
    "POST to a probe": (b"POST", b"/livez", "GET, HEAD, OPTIONS"),
}


@each_case(WRONG_METHODS)
async def test_a_wrong_method_gets_the_allowed_ones(
    case: tuple[bytes, bytes, str], service: Service
) -> None:
    method, target, allowed = case
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        answer = await wire.ask(request(method, target))
        if method != b"HEAD":
            assert_problem(answer, 405, "method-not-allowed")
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert await wire.texts("bob") == ["hi"]


#: A path, and the methods that it allows.
ALLOWED: Final = {
    "/chat": (b"/chat", "POST, OPTIONS"),
    "/chat/bob": (b"/chat/bob", INBOX),
    "/chat/bob/read": (b"/chat/bob/read", "POST, OPTIONS"),
}


@each_case(ALLOWED)
async def test_options_lists_the_methods_and_reads_nothing(
    case: tuple[bytes, str], service: Service
) -> None:
    target, allowed = case
    preflight = (b"Origin: http://evil.test", b"Access-Control-Request-Method: GET")
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        answer = await wire.ask(request(b"OPTIONS", target, *preflight))
        assert (answer.status, answer.headers["allow"]) == (204, allowed)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert await wire.texts("bob") == ["hi"]


async def test_head_counts_and_reads_nothing(service: Service) -> None:
    async with unharmed(service) as wire:
        for count in ("0", "1", "2"):
            answer = await wire.ask(request(b"HEAD", b"/chat/bob?limit=1"))
            assert (answer.status, answer.headers["x-unread-count"]) == (200, count)
            await wire.post("bob", "hi")
        assert await wire.texts("bob") == ["hi"] * 3


# Names in a path.

SAME_NAME: Final = {
    "UTF-8": ("\u00e9", b"%C3%A9"),
    "UTF-8 in lowercase escapes": ("\u00e9", b"%c3%a9"),
    "an unnecessary escape": ("a", b"%61"),
    "a slash": ("a/b", b"a%2Fb"),
    "an escape is decoded once": ("a%2Fb", b"a%252Fb"),
    "a percent sign": ("%", b"%25"),
    "a plus": ("a+b", b"a+b"),
    "a space": ("a b", b"a%20b"),
    "a semicolon": ("a;b", b"a;b"),
    "a comma": ("a,b", b"a,b"),
    "an equals sign": ("a=b", b"a=b"),
    "an ampersand": ("a&b", b"a&b"),
    "an at sign": ("a@b", b"a@b"),
    "a backslash": ("a\\b", b"a\\b"),
    "a question mark": ("a?b", b"a%3Fb"),
    "three dots": ("...", b"%2e.%2E"),
}


@each_case(SAME_NAME)
async def test_an_escaped_name_is_that_name(case: tuple[str, bytes], service: Service) -> None:
    username, segment = case
    async with unharmed(service) as wire:
        await wire.post(username, "hi")
        assert texts_of(await wire.ask(get(b"/chat/" + segment))) == ["hi"]


#: Requests with a name in their path.
NAMING: Final = ((b"GET", b"/chat/%b"), (b"POST", b"/chat/%b"), (b"POST", b"/chat/%b/read"))
NO_NAME: Final = {
    "a dot": b".",
    "an escaped dot": b"%2e",
    "two dots": b"..",
    "two escaped dots": b"%2e%2E",
    "a percent sign": b"%",
    "half an escape": b"bob%2",
    "an incomplete escape": b"%zz",
    "a JavaScript escape": b"%u00e9",
    "a byte that never occurs in UTF-8": b"%ff",
    "Latin-1": b"%e9",
    "an overlong NUL": b"%C0%80",
    "a surrogate": b"%ED%A0%80",
    "a code point above U+10FFFF": b"%F4%90%80%80",
    "a NUL": b"%00",
    "an injected header": b"bob%0d%0aX:1",
    "an escape sequence": b"%1b[2J",
    "a DEL": b"%7f",
    "a control sequence": b"%C2%9B2J",
    "a thousand letters": b"a" * 1000,
    "seven thousand letters": b"a" * 7000,
}


@each_case(NO_NAME)
async def test_an_impossible_name_is_refused(segment: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        for method, target in NAMING:
            answer = await wire.ask(request(method, target % segment))
            assert_problem(answer, 400, "invalid-request", {"username"})
        assert (await wire.ask(request(b"HEAD", b"/chat/" + segment))).status == 400


NOT_ESCAPED: Final = {
    "UTF-8": "\u00e9".encode(),
    "Latin-1": b"\xe9",
    "a control sequence": b"\x9b2J",
    "a byte in the query": b"bob?limit=\xff",
}


@each_case(NOT_ESCAPED)
async def test_a_missing_escape_is_refused(segment: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        # As Latin-1, the bytes of one name would be another name.
        for username in ("\u00e9", "\u00c3\u00a9", "bob"):
            await wire.post(username, "hi")
        for method, target in NAMING:
            answer = await wire.ask(request(method, target % segment))
            assert_problem(answer, 400, "bad-request")
        for username in ("\u00e9", "\u00c3\u00a9", "bob"):
            assert await wire.texts(username) == ["hi"]


@each_case({"a space": b" ", "a tab": b"\t", "a NUL": b"\0", "CR": b"\r"})
async def test_a_path_cannot_hold_space_or_control_characters(
    byte: bytes, service: Service
) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for target in (b"/chat/bob%bx", b"/chat/bob?x=%b1", b"/chat/bob%b"):
            assert_not_http(await wire.ask(get(target % byte)))
        assert await wire.texts("bob") == ["hi"]


# Queries.

BAD_LIMITS: Final = {
    "empty": b"",
    "an empty value": b"0",
    "a negative number": b"-1",
    "a sign": b"%2B5",
    "a plus": b"+5",
    "a word": b"all",
    "a fraction": b"1.0",
    "an exponent": b"1e3",
    "hexadecimal": b"0x10",
    "a separator": b"1_0",
    "a space": b"%201",
    "a NUL": b"1%00",
    "a full-width digit": b"%EF%BC%91",
    "a superscript digit": b"%C2%B2",
    "a byte that never occurs in UTF-8": b"%ff",
    "ten digits": b"1000000000",
    "two thousand digits": b"1" * 2000,
    "two": b"1&limit=1",
    "two different ones": b"1&wait=0&limit=2",
}


@each_case(BAD_LIMITS)
async def test_a_limit_must_be_one_positive_number(limit: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for method, target in ((b"GET", b"/chat/bob"), (b"POST", b"/chat/bob/read")):
            answer = await wire.ask(request(method, target + b"?limit=" + limit))
            assert_problem(answer, 400, "invalid-request", {"limit"})
        assert await wire.texts("bob") == ["hi"]


async def test_a_query_of_1001_fields_is_refused(service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        answer = await wire.ask(get(b"/chat/bob?" + b"&".join([b"a=1"] * 1001)))
        assert_problem(answer, 400, "invalid-request", {"query"})
        assert await wire.texts("bob") == ["hi"]


QUERIES: Final = {
    "an empty value": b"",
    "no fields": b"&&&",
    "more than there are": b"limit=999999999",
    "leading zeros": b"limit=007",
    "an escaped limit": b"l%69mit=%31",
    "a limit and a wait": b"limit=1&wait=0",
}


@each_case(QUERIES)
async def test_a_query_that_limits_nothing_changes_nothing(query: bytes, service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        assert texts_of(await wire.ask(get(b"/chat/bob?" + query))) == ["hi"]


#: Queries, and the parameter that the answer names.
UNKNOWN: Final = {
    b"limt=5": "limt",
    b"limt=5&limit=5": "limt",
    b"timeout=5": "timeout",
    b"LIMIT=1": "LIMIT",
    b"?limit=1": "?limit",
    b"x;limit=1": "x;limit",
    b"limit%00=1": "limit\0",
    b"=1": "",
    b"%zz=%": "%zz",
    b"%ff=x": "\ufffd",
    b"x" * 1000: "x" * 64,
    b"&".join([b"a=1"] * 100): "a",
}
#: Routes that consume or settle messages, and their parameters.
STRICT: Final = {
    (b"GET", b"/chat/bob"): "limit and wait",
    (b"POST", b"/chat/bob/read"): "limit and wait",
    (b"POST", b"/chat/bob/lease"): "limit, wait and ttl",
    (b"GET", b"/chat/bob/stream"): "none",
    (b"POST", b"/chat/bob/ack"): "none",
    (b"POST", b"/chat/bob/release"): "none",
    (b"POST", b"/chat/bob/extend"): "none",
}


@each_case({query[:40].decode(): (query, name) for query, name in UNKNOWN.items()})
async def test_a_misspelled_parameter_consumes_nothing(
    case: tuple[bytes, str], service: Service
) -> None:
    query, name = case
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        for (method, target), known in STRICT.items():
            answer = await wire.ask(request(method, target + b"?" + query))
            assert_problem(answer, 400, "invalid-request", {name})
            assert answer.document["errors"][0]["detail"].endswith(f"it has: {known}")
        assert await wire.texts("bob") == ["hi"]


async def test_a_read_knows_no_ttl(service: Service) -> None:
    async with unharmed(service) as wire:
        await wire.post("bob", "hi")
        answer = await wire.ask(get(b"/chat/bob?ttl=5"))
        assert_problem(answer, 400, "invalid-request", {"ttl"})
        assert await wire.texts("bob") == ["hi"]


async def test_an_inbox_that_nobody_posted_to_is_empty(service: Service) -> None:
    async with unharmed(service) as wire:
        assert (await wire.ask(get(b"/chat/nobody"))).body == b"[]"
        assert (await wire.ask(request(b"POST", b"/chat/nobody/read"))).body == b"[]"
