"""The single-call commands of a shard. They run beside its batches, so that a slow one delays none.

There is a bounded number of places, and clients take turns to get them. An acknowledgement of
thousands of messages takes up many, and one client at most half. `workers.shard` creates this and
hands it the commands of each batch.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from workers.commands import Acknowledge, Finish, Release
from workers.errors import Overloaded
from workers.metrics import WorkerMetrics
from workers.queue import QueueLimits, ShardQueue
from workers.work_item import WorkItem

#: The places of a shard, and those that one client can have.
PLACES, CLIENT_PLACES = 64, 32
#: A command takes up one place, and one more for each so many messages that it names.
IDS_IN_A_PLACE = 200
#: Commands that can wait for a place.
WAITING_MAX = 2000


class SingleCalls:
    """The commands that are in flight, and those that wait for a place."""

    def __init__(
        self, carry_out: Callable[[WorkItem], Coroutine[Any, Any, None]], metrics: WorkerMetrics
    ) -> None:
        """`carry_out` sends a command to the store, and answers it however that ends."""
        self._carry_out = carry_out
        self._on_refused = metrics.refused.labels("overloaded").inc
        limits = QueueLimits(WAITING_MAX, 1 << 62, WAITING_MAX)
        self._waiting = ShardQueue(limits, self._on_refused)
        self._tasks: dict[asyncio.Task[None], WorkItem] = {}
        self._taken: Counter[str] = Counter()
        self._places = PLACES

    @property
    def is_idle(self) -> bool:
        """Whether no command waits or is in flight."""
        return not self._tasks and not self._waiting.qsize()

    @property
    def in_flight(self) -> Iterable[WorkItem]:
        """Return the commands that were sent to the store and not answered yet."""
        return self._tasks.values()

    def submit(self, items: Iterable[WorkItem]) -> None:
        """Start these commands, each as soon as there are places for it."""
        for item in items:
            try:
                self._waiting.put_or_refuse(item)
            except Overloaded as refusal:
                if item.fail(refusal):
                    self._on_refused()
        self._start()

    def expire(self, now: float) -> int:
        """Fail the waiting commands whose deadline has passed. Returns how many there were."""
        return self._waiting.expire(now)

    async def finish(self) -> None:
        """Wait until all commands are answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def abandon(self) -> tuple[list[WorkItem], dict[asyncio.Task[None], WorkItem]]:
        """Start no more. Returns the commands that wait, and the tasks of those in flight."""
        return self._waiting.take_all(), {**self._tasks}

    def _start(self) -> None:
        while (item := self._waiting.reads.take_next(self._has_places)) is not None:
            if not item.is_open:
                continue
            places = _places_of(item)
            self._places -= places
            self._taken[item.client] += places
            task = asyncio.create_task(self._carry_out(item))
            self._tasks[task] = item
            task.add_done_callback(self._on_done)

    def _has_places(self, item: WorkItem) -> bool:
        # One free place is enough for any command: otherwise small ones could always be faster.
        is_within = self._taken.get(item.client, 0) + _places_of(item) <= CLIENT_PLACES
        return is_within and self._places > 0

    def _on_done(self, task: asyncio.Task[None]) -> None:
        item = self._tasks.pop(task)
        places = _places_of(item)
        self._places += places
        self._taken[item.client] -= places
        if not self._taken[item.client]:
            del self._taken[item.client]
        self._start()


def _places_of(item: WorkItem) -> int:
    """Return how many places a command takes up."""
    command = item.command
    if isinstance(command, Acknowledge | Finish | Release) and command.ids is not None:
        return min(1 + len(command.ids) // IDS_IN_A_PLACE, CLIENT_PLACES)
    return 1
