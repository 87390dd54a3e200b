"""The permission under which one request is served. It can end before the request does.

A token can expire or be revoked while its request waits. `chat_service.server.exchange` ends the
permit then; the handler has said before what to stop.
"""

from collections.abc import Callable


def _do_nothing() -> object:
    return None


class Permit:
    """The permission of one request. `problem` is set once it has ended."""

    __slots__ = ("on_end", "problem", "recipient")

    def __init__(self) -> None:
        self.problem: Exception | None = None
        #: Called when the permission ends. A handler that waits sets it to the function that ends
        #: its wait, such as `Future.cancel`: a wait that is already over is answered.
        self.on_end: Callable[[], object] = _do_nothing
        #: The username in the body of a post, for the log. The handler that reads it sets it.
        self.recipient = ""

    def end(self, problem: Exception) -> None:
        """End the permission. The request is answered with the problem if it still waits."""
        self.problem = problem
        self.on_end()
