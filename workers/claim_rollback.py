"""Makes messages unread again that were claimed for a reader that never received them.

A shard adds the messages of readers that left, and claims with an unknown outcome. The pool's
maintenance carries out the rollback as soon as the database answers. No message in here was ever
returned to a client.

A copy of a claim may still be on its way, in the buffers of a stopped mongod or of a cut
connection. So its messages are closed to it first, and only then made unread again. If the copy
arrives in between, its effect is undone; after that, it has none.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from workers.commands import Claim, DiscardedClaims
from workers.errors import ServiceError
from workers.metrics import WorkerMetrics
from workers.store.base import Store
from workers.waiters import Waiters

log = structlog.get_logger(__name__)

_ASK_EVERY_S = 0.1


class _Rollback(NamedTuple):
    claim: Claim | DiscardedClaims
    ids: Sequence[str]
    #: Whether no copy of the claim can still take effect.
    is_final: bool


class ClaimRollback:
    """The rollback of one pool. If the process is killed, the messages in here stay claimed."""

    def __init__(self, store: Store, metrics: WorkerMetrics, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._metrics = metrics
        self._waiting: list[_Rollback] = []
        self._has_work = asyncio.Event()
        self._turn = asyncio.Lock()

    def add(self, claim: Claim | DiscardedClaims, ids: Sequence[str], is_final: bool) -> None:
        """Schedule a rollback of these ids.

        `is_final` means that no copy of the claim can still take effect.
        """
        self._waiting.append(_Rollback(claim, ids, is_final))
        self._has_work.set()

    async def wait(self) -> None:
        """Wait until there is something to roll back."""
        await self._has_work.wait()

    async def carry_out(self) -> None:
        """Carry out all rollbacks. If the store raises, the rest stays."""
        # A drain may call this while the maintenance job is running.
        async with self._turn:
            while self._waiting:
                rollback = self._waiting[0]
                released = await self._roll_back(rollback)
                del self._waiting[0]
                if not released:
                    continue
                self._metrics.released.inc(released)
                self._waiters.wake(rollback.claim.usernames)
                log.info(
                    "claims were rolled back; their messages are unread again", messages=released
                )
            self._has_work.clear()

    async def _roll_back(self, rollback: _Rollback) -> int:
        claim, ids, is_final = rollback
        # Its deletion may have failed, or another process may have delivered it.
        if isinstance(claim, DiscardedClaims) and not await self._store.discard_batch(claim.batch):
            return 0
        if not is_final:
            await self._store.void(claim, ids)
        return await self._store.unclaim(claim, ids)

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
