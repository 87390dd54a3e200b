"""Counts the open connections of one port, in any protocol, and limits those of each client.

Made by `chat_service.service`. `chat_service.server.listener` and
`chat_service.server.fast_connection` count the HTTP connections; `chat_service.server.exchange`
counts those that have left HTTP.
"""

from collections.abc import Callable

from chat_service.access.clients import TrustedProxies, key_of_address, peer_of
from chat_service.access.limits import ClientCounts


class ConnectionCounter:
    """The number of open connections: on the fast path, at Tornado, and WebSockets.

    The addresses are those that `accept` returned.
    """

    def __init__(
        self,
        each_max: int = 0,
        proxies: TrustedProxies | None = None,
        on_limited: Callable[[str, str], None] = lambda _client, _limit: None,
    ) -> None:
        """Each address may have `each_max` connections, except trusted proxies. 0 is no limit.

        `on_limited` is called with the client that has too many, and the name of this limit.
        """
        self.open = 0
        self._each_max = each_max
        self._proxies = proxies
        self._on_limited = on_limited
        self._counts = ClientCounts()

    def admits(self, address: tuple[object, ...]) -> bool:
        """Return whether one more connection from an address may be opened."""
        if not self._each_max:
            return True
        peer = peer_of(address)
        client = key_of_address(peer)
        if self._counts.of(client) < self._each_max or (
            self._proxies and self._proxies.trusts(peer)
        ):
            return True
        self._on_limited(client, "connections")
        return False

    def opened(self, address: tuple[object, ...]) -> None:
        """Count a connection that was opened."""
        self.open += 1
        if self._each_max:
            self._counts.add(key_of_address(peer_of(address)))

    def closed(self, address: tuple[object, ...]) -> None:
        """Stop counting a connection that was closed."""
        self.open -= 1
        if self._each_max:
            self._counts.remove(key_of_address(peer_of(address)))
