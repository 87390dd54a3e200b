"""One request on its way through a shard: the command, its deadline, and the one way back."""

import asyncio
from typing import Any

from workers.commands import Command


class WorkItem:
    """A command and the future that its sender awaits.

    The sender gives up by cancelling the future; the shard then leaves out what it has not yet
    sent to the database. A item is settled once: what comes later is ignored, and said so.
    """

    __slots__ = ("command", "deadline", "entered", "future", "timer", "trace", "wait_until")

    def __init__(
        self,
        command: Command[Any],
        entered: float,
        deadline: float,
        future: asyncio.Future[Any],
        wait_until: float = 0.0,
        trace: object = None,
    ) -> None:
        self.command = command
        #: The loop's time at which it was accepted, and by which it must be settled: those of its
        #: last way through a shard, where it has waited for a message.
        self.entered = entered
        self.deadline = deadline
        self.future = future
        #: The loop's time up to which a read waits for a message, and what ends that.
        self.wait_until = wait_until
        self.timer: asyncio.TimerHandle | None = None
        #: What `workers.tracing.current` was when it was accepted.
        self.trace = trace

    @property
    def is_open(self) -> bool:
        """Whether its sender still waits."""
        return not self.future.done()

    def resolve(self, outcome: object) -> bool:
        """Answer it. False where nobody waits any more."""
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True

    def fail(self, error: Exception) -> bool:
        """Answer it with an error. False where nobody waits any more."""
        if self.future.done():
            return False
        self.future.set_exception(error)
        return True
