"""The client behind a request: its address, also behind proxies, and the key of its limits."""

import ipaddress
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat_service.access.clients import TrustedProxies, key_of, key_of_address
from chat_service.api.identity import EVERYONE, Identity, Rights
from config.load import SettingsError, load_settings

PROXIES: Final = TrustedProxies(("10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48"))
PROXY: Final = "10.0.0.1"

#: The value of X-Forwarded-For, and the client that it tells.
FORWARDED_FOR: Final = {
    "one client": ("198.51.100.7", "198.51.100.7"),
    "a forged left part": ("203.0.113.9, 198.51.100.7", "198.51.100.7"),
    "several proxies": ("203.0.113.9, 198.51.100.7, 192.0.2.1,10.9.9.9", "198.51.100.7"),
    "a port": ("198.51.100.7:4711", "198.51.100.7"),
    "IPv6": ("2001:db8::7", "2001:db8::7"),
    "IPv6 in brackets with a port": ("[2001:db8::7]:4711", "2001:db8::7"),
    "IPv6 of a proxy": ("198.51.100.7, 2001:db8:1::5", "198.51.100.7"),
    "IPv4 in IPv6": ("::ffff:198.51.100.7", "198.51.100.7"),
    "a proxy in IPv6": ("198.51.100.7, ::ffff:10.0.0.2", "198.51.100.7"),
    "only proxies": ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
    "unknown": ("unknown", PROXY),
    "unknown behind a proxy": ("198.51.100.7, unknown, 10.0.0.2", "10.0.0.2"),
    "an unreadable left part": ("<script>, 198.51.100.7", "198.51.100.7"),
    "no address at the end": ("198.51.100.7,", PROXY),
    "a name": ("example.com", PROXY),
    "zeros in front": ("198.051.100.7", PROXY),
    "a part of an address": ("198.51.100", PROXY),
    "a long port": ("198.51.100.7:123456", PROXY),
    "digits that are not ASCII": ("\u0661.2.3.4", PROXY),
    "a chain of 51 proxies": ("10.0.0.9," * 50 + "10.0.0.9", "10.0.0.9"),
    "a header of 8 KiB": ("203.0.113.9," * 680 + "198.51.100.7", "198.51.100.7"),
}
FORWARDED: Final = {
    "one client": ("for=198.51.100.7", "198.51.100.7"),
    "other pairs": ('By=_a;FOR="198.51.100.7:99"; proto=https', "198.51.100.7"),
    "IPv6": ('for="[2001:db8::7]:4711"', "2001:db8::7"),
    "escapes": (r'for="\1\98.51.100.7"', "198.51.100.7"),
    "several proxies": ("for=203.0.113.9,for=198.51.100.7, for=10.0.0.2", "198.51.100.7"),
    "a comma in quotes": ('for=198.51.100.7;host="a,for=203.0.113.9"', "198.51.100.7"),
    "obfuscated": ("for=203.0.113.9, for=_hidden", PROXY),
    "unknown": ("for=unknown", PROXY),
    "no for": ("for=203.0.113.9, by=_a", PROXY),
    "an open quote": ('for="203.0.113.9, for=198.51.100.7', PROXY),
    "a quote that ends in the proxy's part": (
        'for="203.0.113.9, for=198.51.100.7;host="a"',
        PROXY,
    ),
    "a bare address": ("198.51.100.7", PROXY),
    "nothing at the end": ("for=198.51.100.7,", PROXY),
    "a header of 8 KiB": ("for=203.0.113.9," * 500 + "for=198.51.100.7", PROXY),
}


@pytest.mark.parametrize("case", FORWARDED_FOR.values(), ids=FORWARDED_FOR.keys())
def test_a_proxy_tells_its_client_in_x_forwarded_for(case: tuple[str, str]) -> None:
    header, client = case
    assert PROXIES.client_of(PROXY, header, "") == client
    # The second answer comes from memory.
    assert PROXIES.client_of(PROXY, header, "") == client


@pytest.mark.parametrize("case", FORWARDED.values(), ids=FORWARDED.keys())
def test_a_proxy_tells_its_client_in_forwarded(case: tuple[str, str]) -> None:
    header, client = case
    assert PROXIES.client_of(PROXY, "", header) == client


@pytest.mark.parametrize("peer", ["198.51.100.9", "2001:db8::9", "::ffff:198.51.100.9", ""])
def test_headers_of_untrusted_peers_are_ignored(peer: str) -> None:
    assert PROXIES.client_of(peer, "203.0.113.9", "for=203.0.113.9") == peer


def test_two_headers_count_only_if_they_agree() -> None:
    # A proxy that writes one passes on the other as it was sent.
    assert PROXIES.client_of(PROXY, "198.51.100.7", "for=203.0.113.9") == PROXY
    assert PROXIES.client_of(PROXY, "198.51.100.7", "for=198.51.100.7") == "198.51.100.7"


@given(st.text('0123456789abcdef:.[]%, "\\;=for\t_-xé\x00', max_size=60))
@example('for="')
def test_a_client_cannot_hide_behind_forged_headers(forged: str) -> None:
    behind = f"{forged}, 198.51.100.7" if forged else "198.51.100.7"
    assert PROXIES.client_of(PROXY, behind, "") == "198.51.100.7"
    behind = f"{forged}, for=198.51.100.7"
    # The quotes of the forged part can make the header unreadable, but never name another client.
    assert PROXIES.client_of(PROXY, "", behind) in ("198.51.100.7", PROXY)
    behind = f'{forged}, for="[2001:db8::7]:99";proto=http'
    assert PROXIES.client_of(PROXY, "", behind) in ("2001:db8::7", PROXY)


def test_the_key_is_the_subject_or_else_the_address() -> None:
    assert key_of(EVERYONE, "198.51.100.7") == key_of_address("198.51.100.7")
    alice = Identity("alice", Rights())
    assert key_of(alice, "198.51.100.7") == key_of(alice, "2001:db8::7")
    # A subject may be named like an address.
    named = Identity("198.51.100.7", Rights())
    assert key_of(named, "198.51.100.7") != key_of_address("198.51.100.7")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_addresses_of_one_ipv6_network_share_a_key(net: int, one: int, other: int) -> None:
    first, second = (str(ipaddress.IPv6Address((net << 64) | host)) for host in (one, other))
    if (
        not ipaddress.IPv6Address(first).ipv4_mapped
        and not ipaddress.IPv6Address(second).ipv4_mapped
    ):
        assert key_of_address(first) == key_of_address(second)
        neighbor = str(ipaddress.IPv6Address(((net ^ 1) << 64) | one))
        assert key_of_address(first) != key_of_address(neighbor)


def test_an_ipv4_address_has_one_key_in_all_forms() -> None:
    assert key_of_address("::ffff:198.51.100.7") == key_of_address("198.51.100.7")
    assert key_of_address("198.51.100.7") != key_of_address("198.51.100.8")
    assert key_of_address("fe80::1%eth0") == key_of_address("fe80::2")
    # The peer of a Unix socket has no address.
    assert key_of_address("") == "ip:local"


@pytest.mark.parametrize("network", ["10.0.0.1/8", "proxy", "10.0.0.0/33", "::/129"])
def test_an_invalid_network_is_refused_at_the_start(network: str) -> None:
    with pytest.raises(SettingsError, match="trusted_proxies: "):
        load_settings({"trusted_proxies": network}, {})
