"""Makes messages unread again that were claimed for a reader that never received them.

A shard adds the messages of readers that left, and claims with an unknown outcome. The pool's
maintenance carries out the rollback. No message in here was ever returned to a client.
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

#: A claim counts as over this long after its time, since clocks differ a little. In ms.
MARGIN_MS = 1000
_ASK_EVERY_S = 0.1


class _Rollback(NamedTuple):
    #: Due when the database's clock shows this, in ms. 0 for at once.
    due_ms: int
    claim: Claim | DiscardedClaims
    ids: Sequence[str]


class ClaimRollback:
    """The rollback of one pool. If the process is killed, the messages in here stay claimed."""

    def __init__(
        self, store: Store, clock: DatabaseClock, metrics: WorkerMetrics, waiters: Waiters
    ) -> None:
        self._store = store
        self._waiters = waiters
        self._clock = clock
        self._metrics = metrics
        self._waiting: list[_Rollback] = []
        self._turn = asyncio.Lock()

    def add(self, claim: Claim | DiscardedClaims, ids: Sequence[str], is_final: bool) -> None:
        """Schedule a rollback of these ids: at once if `is_final`, so that no copy of the claim can
        still take effect, otherwise when the claim's time is over.
        """
        due_ms = 0 if is_final else claim.until_ms + MARGIN_MS
        self._waiting.append(_Rollback(due_ms, claim, ids))

    async def carry_out(self) -> None:
        """Carry out the rollbacks that are due. If the store raises, the rest stays due.

        They follow the database's clock: if it is set back, a claim can take effect for longer.
        """
        # A drain may call this while the maintenance job is running.
        async with self._turn:
            now_ms = self._clock.now_ms()
            if any(0 < rollback.due_ms <= now_ms for rollback in self._waiting):
                # A claim that takes effect after its rollback would lose its messages, so make sure
                # that the clock has not been set back since the last comparison.
                await self._store.measure_clock()
                now_ms = self._clock.now_ms()
            for rollback in [each for each in self._waiting if each.due_ms <= now_ms]:
                released = 0
                if not await self._is_kept(rollback.claim):
                    released = await self._store.unclaim(rollback.claim, rollback.ids)
                self._waiting.remove(rollback)
                if not released:
                    continue
                self._metrics.released.inc(released)
                self._waiters.wake(rollback.claim.usernames)
                log.info(
                    "claims were rolled back; their messages are unread again", messages=released
                )

    async def _is_kept(self, claim: Claim | DiscardedClaims) -> bool:
        """Whether the batch of discarded claims holds after all: its deletion may have failed."""
        if isinstance(claim, Claim):
            return False
        holding = await self._store.find_batches([claim.key], self._clock.now_ms())
        return claim.key in holding and holding[claim.key].ids == claim.ids

    async def drain(self, timeout_s: float) -> bool:
        """Carry out all rollbacks. Returns False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting:
                    try:
                        await self.carry_out()
                    except ServiceError as error:
                        log.debug("a claim rollback was postponed", reason=str(error))
                    if self._waiting:
                        await asyncio.sleep(_ASK_EVERY_S)
        except TimeoutError:
            messages = sum(len(rollback.ids) for rollback in self._waiting)
            log.error(
                "claims with an unknown outcome could not be rolled back in time",
                messages_at_most=messages,
            )
        return not self._waiting
