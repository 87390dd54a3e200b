"""The request policy: each rule lets one request pass and rejects another."""

import pytest

from chat_service.api.problems import Problem
from chat_service.api.request_policy import (
    HostRule,
    host_rule,
    is_loopback_address,
    reject_malformed_hosts,
    reject_other_hosts,
    reject_other_pages,
    reject_prefetches,
)

BROWSER = {"User-Agent": "Mozilla/5.0", "Accept-Language": "en"}
ELSEWHERE = "https://evil.example"


@pytest.mark.parametrize(
    "headers", [{}, {"Purpose": "other"}, {"Sec-Purpose": ""}, {"X-Other": "prefetch"}]
)
def test_normal_request_is_not_a_prefetch(headers: dict[str, str]) -> None:
    reject_prefetches(headers)


@pytest.mark.parametrize("name", ["Sec-Purpose", "Purpose", "X-Moz", "X-Purpose"])
@pytest.mark.parametrize("value", ["prefetch", "Prefetch;prerender", "preview"])
def test_prefetch_is_rejected(name: str, value: str) -> None:
    with pytest.raises(Problem) as raised:
        reject_prefetches({name: value})
    assert (raised.value.status, raised.value.kind) == (403, "speculative")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"User-Agent": "curl/8"},
        {"User-Agent": "Mozilla/5.0 PowerShell"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Origin": ELSEWHERE},
        {"Sec-Fetch-Site": "none", **BROWSER},
        {"Origin": "http://chat.example"},
        {"Origin": "http://CHAT.example:80"},
        {"Origin": "http://chat.example", "Referer": ELSEWHERE},
        {"Referer": "http://chat.example/page", **BROWSER},
    ],
)
def test_request_of_the_same_origin_passes(headers: dict[str, str]) -> None:
    reject_other_pages({"Host": "chat.example", **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "Cross-Site "},
        {"Sec-Fetch-Site": "none", "Origin": ELSEWHERE},
        {"Origin": ELSEWHERE},
        {"Origin": "null"},
        {"Origin": "http://chat.example:8080"},
        {"Origin": "http://chat.example.evil.example"},
        {"Referer": f"{ELSEWHERE}/page"},
        {"Referer": "junk"},
        BROWSER,
        {"Accept": "image/png,*/*"},
    ],
)
def test_request_of_another_origin_is_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(Problem) as raised:
        reject_other_pages({"Host": "chat.example", **headers})
    assert (raised.value.status, raised.value.kind) == (403, "cross-origin")


def test_allowed_origin_passes() -> None:
    headers = {"Host": "chat.example", "Origin": ELSEWHERE, "Sec-Fetch-Site": "cross-site"}
    reject_other_pages(headers, frozenset({ELSEWHERE}))
    with pytest.raises(Problem):
        reject_other_pages(headers, frozenset({"https://other.example"}))


@pytest.mark.parametrize("host", ["", "chat.example", "chat.example:80", "[::1]:8080"])
def test_host_name_is_well_formed(host: str) -> None:
    reject_malformed_hosts(host)


@pytest.mark.parametrize("host", ["a b", "a,b", "a/b", "a@b", "é"])
def test_malformed_host_is_rejected(host: str) -> None:
    with pytest.raises(Problem) as raised:
        reject_malformed_hosts(host)
    assert (raised.value.status, raised.value.kind) == (400, "bad-request")


NAMES = frozenset({"chat.example"})


@pytest.mark.parametrize(
    ("rule", "host"),
    [
        (HostRule(), "any.example"),
        (HostRule(NAMES), "chat.example"),
        (HostRule(NAMES), "CHAT.example.:8080"),
        (HostRule(is_loopback=True), "127.0.0.1:8080"),
        (HostRule(is_loopback=True), "[::1]:8080"),
        (HostRule(is_loopback=True), "localhost"),
        (HostRule(is_loopback=True), "app.localhost"),
        (HostRule(is_loopback=True), ""),
        (HostRule(NAMES, is_loopback=True), "chat.example"),
        (HostRule(NAMES, has_addresses=True), "10.0.0.1"),
    ],
)
def test_allowed_host_passes(rule: HostRule, host: str) -> None:
    reject_other_hosts(host, rule)


@pytest.mark.parametrize(
    ("rule", "host"),
    [
        (HostRule(NAMES), "evil.example"),
        (HostRule(NAMES), "10.0.0.1"),
        (HostRule(NAMES), ""),
        (HostRule(is_loopback=True), "evil.example"),
        (HostRule(is_loopback=True), "localhost.evil.example"),
        (HostRule(NAMES, has_addresses=True), "evil.example"),
    ],
)
def test_other_host_is_rejected(rule: HostRule, host: str) -> None:
    with pytest.raises(Problem) as raised:
        reject_other_hosts(host, rule)
    assert (raised.value.status, raised.value.kind) == (421, "wrong-host")
    assert "allowed_hosts" in raised.value.detail


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost", False),
    ],
)
def test_loopback_addresses(address: str, is_loopback: bool) -> None:
    assert is_loopback_address(address) is is_loopback


def test_rule_of_a_port() -> None:
    assert host_rule(("Chat.Example.",), ["127.0.0.1"]) == HostRule(NAMES, is_loopback=True)
    assert host_rule((), ["127.0.0.1", "10.0.0.1"]) == HostRule()
    assert host_rule((), []) == HostRule()
