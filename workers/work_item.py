"""One request on its way through a shard: a command, a deadline, and a future."""

import asyncio
from collections.abc import Callable
from typing import Any

from workers.commands import Command


class WorkItem:
    """A command and the future that its caller awaits.

    A caller gives up by cancelling the future. The shard then drops the item, unless it was already
    sent to the database. An item is answered once; later `resolve` and `fail` return False.
    """

    __slots__ = (
        "client",
        "command",
        "deadline",
        "entered",
        "future",
        "number",
        "on_done",
        "trace",
        "wait_until",
    )

    def __init__(
        self,
        command: Command[Any],
        entered: float,
        deadline: float,
        future: asyncio.Future[Any],
        wait_until: float = 0.0,
        trace: object = None,
        client: str = "",
    ) -> None:
        self.command = command
        #: Whose request it is. Clients take turns in the queue.
        self.client = client
        #: Its place in the order of arrival, set by its queue.
        self.number = 0
        #: The times, on the event loop's clock, at which the item entered the queue and by which it
        #: must be answered. Both are set again when a long poll is woken.
        self.entered = entered
        self.deadline = deadline
        self.future = future
        #: The loop time until which a long poll waits for a message. Once it waits, `on_done` is
        #: called when it is answered or cancelled.
        self.wait_until = wait_until
        self.on_done: Callable[[WorkItem], None] | None = None
        #: The value of `workers.tracing.current` when the request was accepted.
        self.trace = trace

    @property
    def is_open(self) -> bool:
        """Whether the caller is still waiting."""
        return not self.future.done()

    def done(self, _: asyncio.Future[Any]) -> None:
        """Call `on_done`. The callback of the future of a long poll."""
        assert self.on_done is not None
        self.on_done(self)

    def resolve(self, outcome: object) -> bool:
        """Return a result to the caller. Returns False if nobody is waiting any more."""
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True

    def fail(self, error: Exception) -> bool:
        """Raise an error in the caller. Returns False if nobody is waiting any more."""
        if self.future.done():
            return False
        self.future.set_exception(error)
        return True
