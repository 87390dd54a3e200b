"""What was claimed for a read that came to nobody, and is to be made unread again.

A shard adds what its reader did not wait for, and claims whose outcome it could not learn; the
pool carries the rollback out. No message in here was ever handed to a front end.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from workers.clock import DatabaseClock
from workers.commands import Claim, DiscardedClaims
from workers.errors import ServiceError
from workers.metrics import WorkerMetrics
from workers.store.base import Store
from workers.waiters import Waiters

log = structlog.get_logger(__name__)

#: A claim counts as over so long after its time, for clocks that differ a little. In ms.
MARGIN_MS = 1000
_ASK_EVERY_S = 0.1


class _Release(NamedTuple):
    #: In seconds of the event loop's clock, which no correction of the time of day moves.
    due: float
    claim: Claim | DiscardedClaims
    ids: Sequence[str]


class ClaimRollback:
    """The rollback of one pool. Lost with the process: what it held then stays claimed."""

    def __init__(
        self, store: Store, clock: DatabaseClock, metrics: WorkerMetrics, waiters: Waiters
    ) -> None:
        self._store = store
        self._waiters = waiters
        self._clock = clock
        self._metrics = metrics
        self._waiting: list[_Release] = []
        self._turn = asyncio.Lock()

    def add(self, claim: Claim | DiscardedClaims, ids: Sequence[str], is_final: bool) -> None:
        """Give these ids back; at once where no copy of the claim can still take effect."""
        due = asyncio.get_running_loop().time()
        if not is_final:
            due += max(claim.until_ms + MARGIN_MS - self._clock.now_ms(), 0) / 1000
        self._waiting.append(_Release(due, claim, ids))

    async def carry_out(self) -> None:
        """Do what is due. Raises what the store raises; what is left is due again."""
        now = asyncio.get_running_loop().time()
        # One at a time: a drain asks for it while the chore may be at it.
        async with self._turn:
            for release in [each for each in self._waiting if each.due <= now]:
                released = 0
                if not await self._is_kept(release.claim):
                    released = await self._store.unclaim(release.claim, release.ids)
                self._waiting.remove(release)
                if not released:
                    continue
                self._metrics.released.inc(released)
                self._waiters.wake(release.claim.usernames)
                log.info("claimed messages are unread again", messages=released)

    async def _is_kept(self, claim: Claim | DiscardedClaims) -> bool:
        """Whether the batch of discarded claims holds after all: its deletion may have failed."""
        if isinstance(claim, Claim):
            return False
        holding = await self._store.find_batches([claim.key], self._clock.now_ms())
        return claim.key in holding and holding[claim.key].ids == claim.ids

    async def drain(self, timeout_s: float) -> bool:
        """Carry out all of them; False where that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting:
                    try:
                        await self.carry_out()
                    except ServiceError as error:
                        log.debug("a release was put off", reason=str(error))
                    if self._waiting:
                        await asyncio.sleep(_ASK_EVERY_S)
        except TimeoutError:
            messages = sum(len(release.ids) for release in self._waiting)
            log.error("claims of unknown outcome could not be released", messages_at_most=messages)
        return not self._waiting
