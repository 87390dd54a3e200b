"""A simulated replica set: a dictionary, on a virtual clock.

A member that was deposed may not know it for a while. Until then it answers searches from the data
that it had as primary. It can be elected again later; then it has what the others have.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from tests.support.documents import Documents, Stored
from workers.commands import Post
from workers.store.base import LEADER_LEASE_S, Insertion, Leader, PendingCount

EPOCH_S = 1_800_000_000.0
#: How often an event of a message that becomes unread again names its inbox.
_NAMED_RATE = 0.8
#: When an event is reported that is late, in seconds. None stands for never.
_LATE_NEWS_S = (0.5, 2.0, None)
MEMBERS = ("a", "b", "c")
#: Seconds for which a deposed member still answers searches.
_STALE_S = (0.0, 0.05, 1.0, 5.0)


class Deposed(NamedTuple):
    """The data of a deposed member, and the time at which it learns that it was deposed."""

    documents: dict[str, Stored]
    until: float


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
        #: Whether an outage is one of the majority only: the primary still answers searches.
        self.is_cut_off = False
        self.term = 0
        #: The inboxes that got messages, in the order in which change streams report them. None
        #: stands for any inbox.
        self.arrivals: list[str | None] = []
        self._arrived = asyncio.Event()
        self.leader: Leader | None = None
        self.primary = MEMBERS[0]
        self.elected_at = 0.0
        self.deposed: dict[str, Deposed] = {}
        # Events to send once they are confirmed, by their position in the log.
        self._news: dict[int, str | None] = {}
        self._confirmed = 0

    def now_ms(self) -> int:
        """Return the time by the database's own clock."""
        return int((EPOCH_S + self.loop.time()) * 1000)

    def lead(self, name: str, pending: PendingCount | None) -> Leader:
        """Take or renew the leader lease. No failover takes it back: that would change little."""
        now_ms = self.now_ms()
        if self.leader is None or name == self.leader.node or self.leader.until_ms <= now_ms:
            last = PendingCount(None, 0, 0) if self.leader is None else self.leader.pending
            until_ms = now_ms + int(LEADER_LEASE_S * 1000)
            self.leader = Leader(name, True, until_ms, pending or last)
        return self.leader._replace(is_own=name == self.leader.node)

    def resign(self, name: str) -> None:
        """Give up the leader lease."""
        if self.leader is not None and self.leader.node == name:
            self.leader = self.leader._replace(until_ms=0)

    @property
    def position(self) -> int:
        """The end of the log."""
        return self._confirmed + len(self.undo)

    def confirm(self, position: int) -> None:
        """Confirm the log up to a position: a majority has it."""
        for each in range(self._confirmed + 1, position + 1):
            if each in self._news:
                news = self._news.pop(each)
                after_s: float | None = self.rng.choice((0.001, 0.01, 0.03))
                if self.rng.random() < self.fault_rate:
                    after_s = self.rng.choice(_LATE_NEWS_S)
                if after_s is not None:
                    self.loop.call_later(after_s, self._tell, news)
        if position > self._confirmed:
            del self.undo[: position - self._confirmed]
            self._confirmed = position

    def _tell(self, news: str | None) -> None:
        self.arrivals.append(news)
        self._arrived.set()
        self._arrived = asyncio.Event()

    async def arrival_after(self, position: int) -> None:
        """Wait until more than `position` arrivals can be reported."""
        while len(self.arrivals) <= position:
            await self._arrived.wait()

    def fail_over(self, to: str = "") -> None:
        """Make this member the primary, or any other one. It has only what a majority has."""
        now = self.loop.time()
        documents = {each: replace(stored) for each, stored in self.documents.items()}
        self.deposed[self.primary] = Deposed(documents, now + self.rng.choice(_STALE_S))
        self.primary = to or self.rng.choice([each for each in MEMBERS if each != self.primary])
        self.deposed.pop(self.primary, None)
        self.elected_at = now
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

    @contextmanager
    def as_seen_by(self, member: str) -> Iterator[bool]:
        """Show what a member has. Yields False if it knows that it is not the primary."""
        documents, is_answering = self.documents, member == self.primary
        if member in self.deposed:
            self.documents, until = self.deposed[member]
            is_answering = self.loop.time() < until
        try:
            yield is_answering
        finally:
            self.documents = documents

    def note(self) -> None:
        """Write an entry to the log that changes nothing."""
        self.undo.append(lambda: None)

    def is_over(self, stored: Stored, now_ms: int) -> bool:
        """Return whether a lease or a delay is over. This clock judges delays, no leader's."""
        return super().is_over(stored, now_ms) and (
            not stored.is_scheduled or stored.until_ms is None or stored.until_ms < self.now_ms()
        )

    def _insert(self, post: Post) -> Insertion:
        before = len(self.documents)
        outcome = super()._insert(post)
        # A scheduled message is not unread yet.
        if len(self.documents) > before and not post.due_ms:
            self._news[self.position] = post.username
        return outcome

    def change(self, stored: Stored, **fields: Any) -> None:
        super().change(stored, **fields)
        if fields.get("unread"):
            # An update by an earlier version says only that there was one.
            is_named = self.rng.random() < _NAMED_RATE
            self._news[self.position] = stored.post.username if is_named else None
