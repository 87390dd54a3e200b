"""The leader: the one node of the fleet that does the work for the whole database.

Each node looks at the leader lease every two seconds. It takes the lease if nobody has it, so a
leader that dies is replaced within ten seconds. The leader marks expired messages, ends leases,
removes the text of kept messages, and counts the pending ones; `workers.maintenance` does that.

A process that has the database alone renews the lease every ten seconds, which tells operators who
leads. Each renewal costs an idle mongod as much as ten searches.

No guarantee relies on there being one leader. A process may pause for any time after it took the
lease, and then two nodes lead. What they do is atomic for each message, so each is counted once.
"""

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress

import structlog

from workers.engine import Engine
from workers.store.base import LEADER_LEASE_S, SOLE_LEASE_S, Leader, PendingCount
from workers.ticks import until_next

log = structlog.get_logger(__name__)

#: How often a node looks at the lease, in seconds, and the shortest pause between two looks.
LOOK_EVERY_S, LOOK_PAUSE_S = 2.0, 0.25
#: How often a process that has the database alone renews the lease, in seconds.
SOLE_EVERY_S = 10.0
#: Looks come this much earlier or later, so that those of many nodes spread out.
_SPREAD_S = 0.25


class Leadership:
    """Whether this process leads the fleet, and which node does."""

    def __init__(self, engine: Engine) -> None:
        self._store = engine.store
        self._clock = engine.clock
        # The time on the steady clock until which this process leads without asking again.
        self._until_s = -math.inf
        self._unpublished: PendingCount | None = None
        self._is_due = asyncio.Event()
        self._random: Callable[[], float] = random.random
        #: Set from when this process took the lease until it learns that it has lost it.
        self.has_lease = asyncio.Event()
        #: What the last look found, or None before the first one.
        self.seen: Leader | None = None

    @property
    def leads(self) -> bool:
        """Whether this process leads.

        False also if it could not renew its lease in time: another node may have it already.
        """
        return self._clock.steady_s() < self._until_s

    @property
    def leader(self) -> str:
        """The name of the node that leads, or an empty string if that is unknown."""
        if self.seen is None or self.seen.until_ms <= self._clock.now_ms():
            return ""
        return self.seen.node

    @property
    def is_sole(self) -> bool:
        """Whether this process leads and no other one uses the database."""
        return self.leads and self.seen is not None and self.seen.is_sole

    async def look(self) -> bool:
        """Take or renew the lease, or learn who has it. Returns whether this process begins to
        lead.

        Raises `ServiceError` if the database does not answer.
        """
        self._is_due.clear()
        # The lease in the database begins later than this, and thus ends later.
        asked_s, unpublished = self._clock.steady_s(), self._unpublished
        self.seen = seen = await self._store.lead(unpublished)
        had_lease = self.has_lease.is_set()
        if not seen.is_own:
            self._lose()
            if had_lease:
                log.info("another node leads the fleet", leader=seen.node)
            return False
        self._until_s = asked_s + (SOLE_LEASE_S if seen.is_sole else LEADER_LEASE_S)
        if self._unpublished is unpublished:
            self._unpublished = None
        self.has_lease.set()
        if not had_lease:
            log.info("this process leads the fleet", leader=seen.node)
        return not had_lease

    async def wait_until_due(self) -> None:
        """Return when it is time for the next look: before one's lease ends, or when another's
        does.
        """
        wait_s = LOOK_EVERY_S - LOOK_PAUSE_S + (2 * self._random() - 1) * _SPREAD_S
        if self.is_sole:
            wait_s = until_next(SOLE_EVERY_S) - LOOK_PAUSE_S
        if self.seen is not None and not self.seen.is_own:
            left_s = (self.seen.until_ms - self._clock.now_ms()) / 1000
            wait_s = min(wait_s, max(left_s, 0.0) + self._random() * _SPREAD_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._is_due.wait()

    def publish(self, pending: PendingCount) -> None:
        """Publish a count with the next renewal, which is due at once if there are other nodes."""
        if self.has_lease.is_set():
            self._unpublished = pending
            if not self.is_sole:
                self._is_due.set()

    async def resign(self) -> None:
        """Give up the lease, if this process has it. No look may be running.

        Raises `ServiceError` if the database does not answer. Then the lease ends by itself.
        """
        if self.has_lease.is_set():
            self._lose()
            await self._store.resign()

    def _lose(self) -> None:
        self._until_s = -math.inf
        self._unpublished = None
        self.has_lease.clear()
