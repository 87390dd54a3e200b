"""A simulated replica set: a dictionary, on a virtual clock."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.documents import Documents, Stored
from workers.commands import Claim, Post
from workers.store.base import Insertion

EPOCH_S = 1_800_000_000.0


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without sockets. Its time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Advance the time, where a real loop waits."""
        assert timeout is not None, "deadlock: every task waits, and no timer is set"
        self._now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class Database(Documents):
    """The replica set that all nodes share. `undo` reverts the writes that no majority has
    confirmed.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, fault_rate: float) -> None:
        super().__init__()
        self.loop = loop
        self.rng = rng
        self.fault_rate = fault_rate
        self.unavailable_until = 0.0
        self.term = 0
        #: The change streams of the nodes. A dictionary, because it is ordered.
        self.feeds: dict[asyncio.Queue[str | None], None] = {}
        # Events to send once they are confirmed, by their position in the log.
        self._news: dict[int, str | None] = {}
        self._confirmed = 0

    def now_ms(self) -> int:
        """Return the time by the database's own clock."""
        return int((EPOCH_S + self.loop.time()) * 1000)

    @property
    def position(self) -> int:
        """The end of the log."""
        return self._confirmed + len(self.undo)

    def confirm(self, position: int) -> None:
        """Confirm the log up to a position: a majority has it."""
        for each in range(self._confirmed + 1, position + 1):
            if each in self._news:
                news, after_s = self._news.pop(each), self.rng.choice((0.001, 0.01, 0.03))
                self.loop.call_later(after_s, self._tell, news)
        if position > self._confirmed:
            del self.undo[: position - self._confirmed]
            self._confirmed = position

    def _tell(self, news: str | None) -> None:
        for feed in self.feeds:
            feed.put_nowait(news)

    def fail_over(self) -> None:
        """Make another member the primary. It has only what a majority has."""
        self._confirmed = self.position
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        self._news.clear()
        self.term += 1

    @contextmanager
    def majority(self) -> Iterator[None]:
        """Show only what a majority has confirmed."""
        for undo in reversed(self.undo):
            undo()
        try:
            yield
        finally:
            for redo in self.undo:
                redo()

    def _insert(self, post: Post) -> Insertion:
        before = len(self.documents)
        outcome = super()._insert(post)
        if len(self.documents) > before:
            self._news[self.position] = post.username
        return outcome

    def change(self, stored: Stored, **fields: Any) -> None:
        super().change(stored, **fields)
        if fields.get("unread"):
            # The event of an update says only that there was one.
            self._news[self.position] = None

    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        return super().is_claimable(stored, claim) and self.now_ms() < claim.until_ms
