"""Finds the client behind a request: its address, also behind proxies, and the key of its limits.

A proxy tells the address of its client in `X-Forwarded-For` or `Forwarded` (RFC 7239). Anyone can
send these headers, so they are read from the right, and only as far as trusted proxies wrote them.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from chat_service.api.identity import Identity

#: The most addresses and keys that are remembered. Finding one costs as much as 20 look-ups.
_REMEMBERED_MAX = 1024
#: The most that is read of a header, in characters. No chain of proxies writes more, and reading it
#: all would cost more than a request.
_HEADER_MAX = 512
#: The longest chain of trusted proxies.
_HOPS_MAX = 16
#: The networks of a client that has many addresses: one subscriber usually gets a whole /64.
_IPV6_PREFIX = 64
#: Stands for a peer without an IP address, such as that of a Unix socket.
_LOCAL = "local"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: One pair of a `Forwarded` header, or none, and what ends it.
_PAIR = re.compile(
    rf'[ \t]*(?:({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*)?(;|,|\Z)', re.DOTALL
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
#: An address as proxies write it: IPv6 perhaps in brackets, and perhaps a port.
_NODE = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)"
)


class TrustedProxies:
    """The proxies whose word about their clients is believed."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Trust these networks, such as `10.0.0.0/8`, or single addresses. Raises `ValueError`."""
        parsed = [ip_network(network) for network in networks]
        self._ipv4 = [each for each in parsed if isinstance(each, IPv4Network)]
        self._ipv6 = [each for each in parsed if isinstance(each, IPv6Network)]
        self._find = lru_cache(_REMEMBERED_MAX)(self._search)
        self._is_trusted = lru_cache(_REMEMBERED_MAX)(self._judge)

    def client_of(self, peer: str, forwarded_for: str, forwarded: str) -> str:
        """Return the address of the client whose request came from `peer`.

        `forwarded_for` and `forwarded` are the values of these headers, several lines joined with
        commas, or empty. The client is the right-most address that is no trusted proxy. If a
        trusted proxy names none that can be read, the proxy itself counts as the client.
        """
        if not (forwarded_for or forwarded):
            return peer
        if len(forwarded) > _HEADER_MAX:
            # A part of it cannot be read alone, because a quotation may begin to the left of it.
            return peer
        return self._find(peer, forwarded_for[-_HEADER_MAX:], forwarded)

    def trusts(self, address: str) -> bool:
        """Return whether this is the address of a trusted proxy."""
        return self._is_trusted(address)

    def _judge(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and self._includes(parsed)

    def _includes(self, address: IPv4Address | IPv6Address) -> bool:
        if isinstance(address, IPv4Address):
            return any(address in network for network in self._ipv4)
        return any(address in network for network in self._ipv6)

    def _search(self, peer: str, forwarded_for: str, forwarded: str) -> str:
        if not self.trusts(peer):
            return peer
        found = {
            self._last_client(peer, hops)
            for header, hops in (
                (forwarded_for, forwarded_for.split(",")),
                (forwarded, [*_nodes(forwarded)]),
            )
            if header
        }
        # A proxy writes one of the two headers and may pass on the other one as its client sent it.
        return found.pop() if len(found) == 1 else peer

    def _last_client(self, peer: str, hops: list[str]) -> str:
        last = peer
        for hop in reversed(hops[-_HOPS_MAX:]):
            node = _NODE.fullmatch(hop.strip(" \t"))
            address = None if node is None else _parsed(node[1] or node[2] or node[3])
            if address is None:
                # What is left of it may be forged, and what is right of it is a proxy.
                return last
            last = str(address)
            if not self._includes(address):
                return last
        return last


def peer_of(address: tuple[object, ...]) -> str:
    """Return the peer's IP address, or '' for a Unix socket. `address` is that of `accept`."""
    return str(address[0]) if address else ""


def key_of(identity: Identity, address: str) -> str:
    """Return the key of a client's limits: its subject, or else its address.

    An IPv6 address counts with its whole /64 network. The keys of subjects and of addresses differ.
    """
    return f"sub:{identity.subject}" if identity.subject else key_of_address(address)


@lru_cache(_REMEMBERED_MAX)
def key_of_address(address: str) -> str:
    """Return the key of an IPv4 address, or of the /64 network of an IPv6 address."""
    parsed = _parsed(address)
    if parsed is None:
        return f"ip:{_LOCAL}"
    if isinstance(parsed, IPv4Address):
        return f"ip:{parsed}"
    return f"ip:{IPv6Network((int(parsed), _IPV6_PREFIX), strict=False)}"


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    """Return an address, IPv4 also if it is mapped into IPv6; None for anything else."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed


def _nodes(forwarded: str) -> Iterator[str]:
    """Yield the `for` of each element of a `Forwarded` header, or '' for one without.

    The quotes of a forged part can swallow what proxies wrote. Then the last one is ''.
    """
    at, node = 0, ""
    while at <= len(forwarded):
        pair = _PAIR.match(forwarded, at)
        if pair is None:
            yield ""
            return
        name, token, quoted, end = pair.groups()
        if name is not None and name.lower() == "for":
            node = token if token is not None else _ESCAPE.sub(r"\1", quoted)
        if end != ";":
            yield node
            node = ""
        # The end of the header has no length.
        at = pair.end() + (not end)
