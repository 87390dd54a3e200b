"""Counts the open connections of one port, in any protocol.

Made by `chat_service.service`. `chat_service.server.listener` and `chat_service.server.fast_path`
count the HTTP connections; `chat_service.server.exchange` counts those that have left HTTP.
"""


class ConnectionCounter:
    """The number of open connections: on the fast path, at Tornado, and WebSockets."""

    def __init__(self) -> None:
        self.open = 0

    def opened(self) -> None:
        """Count a connection that was opened."""
        self.open += 1

    def closed(self) -> None:
        """Stop counting a connection that was closed."""
        self.open -= 1
