"""Requests that no user intended read and write nothing, and get an error that says why."""

import json
from typing import Final

import pytest

from chat_service.api.problems import Problem
from chat_service.api.request_policy import host_rule, is_loopback_address, reject_other_hosts
from tests.conftest import Connect, StartService
from tests.support.cases import each_case
from tests.support.client import ChatClient

GUARDED: Final = (
    ("GET", "/chat/bob"),
    ("GET", "/chat/bob?wait=5"),
    ("HEAD", "/chat/bob"),
    ("POST", "/chat"),
    ("POST", "/chat/batch"),
    ("POST", "/chat/bob"),
    ("POST", "/chat/bob/read"),
    ("POST", "/chat/bob/lease"),
    ("POST", "/chat/bob/ack"),
    ("POST", "/chat/bob/release"),
    ("POST", "/chat/bob/extend"),
    ("GET", "/chat/bob/stream"),
    ("GET", f"/messages/{'0' * 32}/status"),
    ("DELETE", f"/messages/{'0' * 32}"),
)


#: Headers of every browser, without those that name the page.
BROWSER: Final = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36",
    "Accept-Language": "en-US,en;q=0.9",
    "Accept": "*/*",
}
IMAGE: Final = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"

PREFETCHES: Final = (
    {"Sec-Purpose": "prefetch"},
    {"Sec-Purpose": "prefetch;prerender"},
    {"Purpose": "prefetch"},
    {"X-Purpose": "preview"},
    {"X-Moz": "prefetch"},
)
#: `{host}` stands for the address of the service, `{name}` for the same without the port.
OF_OTHER_PAGES: Final = {
    "a page of another site": {"Sec-Fetch-Site": "cross-site"},
    "a page on another port": {"Sec-Fetch-Site": "same-site"},
    "both headers, which no browser sends": {"Sec-Fetch-Site": "same-origin,cross-site"},
    "another origin": {"Origin": "http://evil.test"},
    "an origin with another port": {"Origin": "http://{name}:1"},
    "an origin without the port": {"Origin": "http://{name}"},
    "an origin that begins like the host": {"Origin": "http://{host}.evil.test"},
    "an origin that ends like the host": {"Origin": "http://evil.test/{host}"},
    "a browser extension": {"Origin": "chrome-extension://{host}"},
    "a sandboxed frame": {"Origin": "null"},
    "typed in, with another page as referrer": {
        "Origin": "http://evil.test",
        "Sec-Fetch-Site": "none",
    },
    "another referrer": {"Referer": "http://evil.test/"},
    "a referrer with the host in its path": {"Referer": "http://evil.test/http://{host}/"},
    "a referrer with the host before an @": {"Referer": "http://{host}@evil.test/"},
    "an invalid referrer": {"Referer": "about:blank"},
    "an image without a referrer": {"Accept": IMAGE},
    "a browser without any of the headers": BROWSER,
}
#: Headers of the service's own pages, and of programs.
OF_OUR_OWN: Final = {
    "a program": {},
    "a program that calls itself Mozilla": {
        "User-Agent": "Mozilla/5.0 (Windows NT 10.0; en-US) PowerShell/7.4.0"
    },
    "a program with Accept-Language": {"User-Agent": "node", "Accept-Language": "*"},
    "the service's page": {"Sec-Fetch-Site": "same-origin"},
    "the service's page, with an origin": {
        "Origin": "http://{host}",
        "Sec-Fetch-Site": "same-origin",
    },
    "the service's page, without an origin": {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    "the service's page behind another name": {
        "Origin": "https://chat.test",
        "Sec-Fetch-Site": "same-origin",
    },
    "the service's page over plain HTTP": {"Origin": "http://{host}"} | BROWSER,
    "a GET of the service's page over plain HTTP": {"Referer": "http://{host}/sub/"} | BROWSER,
    "typed in by a user": {"Sec-Fetch-Site": "none"} | BROWSER,
}


def filled(headers: dict[str, str], chat: ChatClient) -> dict[str, str]:
    """Return these headers as arguments, with the address of this service."""
    host = chat.base.removeprefix("http://")
    name = host.partition(":")[0]
    return {
        header.replace("-", "_"): value.replace("{host}", host).replace("{name}", name)
        for header, value in headers.items()
    }


async def assert_refused(chat: ChatClient, headers: dict[str, str], kind: str) -> None:
    """Assert that every guarded route refuses these headers and changes nothing."""
    await chat.post("bob", "hello")
    before = await chat.metric("chat_messages_accepted_total")
    body = b'{"text": "x", "username": "bob", "lease": "0"}'
    for method, path in GUARDED:
        sent = body if method == "POST" else None
        answer = await chat.request(method, path, sent, **filled(headers, chat))
        assert answer.code == 403, (method, path)
        if method != "HEAD":
            problem = json.loads(answer.body)
            assert problem["type"] == f"urn:chat:problem:{kind}"
            assert problem["detail"]
    assert await chat.metric("chat_messages_accepted_total") == before
    assert await chat.texts("bob") == ["hello"]


@pytest.mark.parametrize("headers", PREFETCHES, ids=str)
async def test_prefetches_touch_nothing(chat: ChatClient, headers: dict[str, str]) -> None:
    await assert_refused(chat, headers, "speculative")


@each_case(OF_OTHER_PAGES)
async def test_pages_of_other_origins_touch_nothing(
    headers: dict[str, str], chat: ChatClient
) -> None:
    await assert_refused(chat, headers, "cross-origin")


@each_case(OF_OUR_OWN)
async def test_own_pages_and_programs_read_and_write(
    headers: dict[str, str], chat: ChatClient
) -> None:
    body = b'{"text": "hi", "username": "bob"}'
    posted = await chat.request("POST", "/chat", body, **filled(headers, chat))
    assert posted.code == 201
    read = await chat.request("GET", "/chat/bob", None, **filled(headers, chat))
    assert [each["text"] for each in json.loads(read.body)] == ["hi"]


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://chat.test", "chat.test"),
        ("https://chat.test", "chat.test:443"),
        ("http://chat.test", "Chat.test:80"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
async def test_own_pages_are_known_at_every_address(
    start_service: StartService, connect: Connect, origin: str, host: str
) -> None:
    chat = connect(await start_service(allowed_hosts=("chat.test",)))
    body = b'{"text": "hi", "username": "bob"}'
    for headers in (
        {"Host": host, "Origin": origin},
        {"Host": host, "Referer": f"{origin}/inbox/"},
    ):
        answer = await chat.request("POST", "/chat", body, **headers)
        assert answer.code == 201, answer.body


async def test_an_allowed_origin_opens_streams_and_no_more(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(allowed_origins=("https://friend.test",)))
    friend = {"Origin": "https://friend.test", "Sec_Fetch_Site": "cross-site"}
    for method, path in GUARDED:
        if not path.endswith("/stream"):
            sent = b"{}" if method == "POST" else None
            assert (await chat.request(method, path, sent, **friend)).code == 403, path


async def test_no_route_of_an_inbox_consumes_on_head_or_options(chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    for path in dict.fromkeys(path for _, path in GUARDED):
        options = await chat.request("OPTIONS", path)
        assert options.code == 204
        assert "OPTIONS" in options.headers["Allow"]
        head = await chat.request("HEAD", path)
        allowed = "HEAD" in options.headers["Allow"]
        assert head.code == (200 if allowed else 405)
    assert await chat.texts("bob") == ["hello"]


HEALTH: Final = ("/livez", "/readyz")
LOOPBACK_HOSTS: Final = {
    "127.0.0.1": True,
    "127.0.0.1:8080": True,
    "192.0.2.7:8080": True,
    "[::1]:8080": True,
    "localhost": True,
    "LocalHost.:8080": True,
    "inbox.localhost:8080": True,
    "": True,
    "evil.test": False,
    "evil.test:8080": False,
    "localhost.evil.test": False,
    "notlocalhost": False,
    "127.0.0.1.evil.test": False,
    "127.0.0.1:80:80": False,
    "[evil.test]": False,
    "[127.0.0.1": False,
}


@pytest.mark.settings(allowed_hosts=())
@each_case(
    {
        f"{method} {path} of {host}": (method, path, host, is_answered)
        for host, is_answered in LOOPBACK_HOSTS.items()
        for method, path in (("HEAD", "/chat/bob"), ("GET", "/chat/nobody"), ("GET", "/ops"))
    }
)
async def test_on_loopback_only_loopback_names_are_served(
    case: tuple[str, str, str, bool], chat: ChatClient
) -> None:
    method, path, host, is_answered = case
    await chat.post("bob", "hello")
    answer = await chat.request(method, path, Host=host)
    assert answer.code == (200 if is_answered else 421)
    if method == "GET" and not is_answered:
        assert "allowed_hosts" in json.loads(answer.body)["detail"]
    assert await chat.texts("bob") == ["hello"]


async def test_probes_are_answered_for_every_host(
    start_service: StartService, connect: Connect
) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        chat = connect(await start_service(host=host, allowed_hosts=("good.test",)))
        for path in HEALTH:
            assert (await chat.request("GET", path, Host="balancer.test")).code == 200
            assert (await chat.request("GET", path, Host="a b")).code == 400
        assert (await chat.request("GET", "/chat/bob", Host="balancer.test")).code == 421


@pytest.mark.parametrize(
    ("addresses", "has_addresses", "host", "is_answered"),
    [
        (["0.0.0.0"], False, "good.test", True),
        (["0.0.0.0"], False, "192.0.2.7", False),
        (["127.0.0.1", "0.0.0.0"], False, "localhost", False),
        (["0.0.0.0"], True, "192.0.2.7:9090", True),
        (["0.0.0.0"], True, "evil.test:9090", False),
        (["127.0.0.1", "::1"], True, "[::1]:9090", True),
        (["127.0.0.1", "::1"], False, "evil.test", False),
    ],
)
def test_named_hosts_hold_and_operators_ask_by_address(
    addresses: list[str], has_addresses: bool, host: str, is_answered: bool
) -> None:
    rule = host_rule(("Good.test.",), addresses, has_addresses=has_addresses)
    if is_answered:
        reject_other_hosts(host, rule)
    else:
        with pytest.raises(Problem):
            reject_other_hosts(host, rule)


def test_loopback_addresses_are_recognized() -> None:
    loopback = ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1")
    others = ("0.0.0.0", "::", "192.0.2.7", "::ffff:192.0.2.7", "localhost", "")
    assert all(is_loopback_address(each) for each in loopback)
    assert not any(is_loopback_address(each) for each in others)
