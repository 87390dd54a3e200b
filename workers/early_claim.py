"""A claim of what a shard knows to be unread, sent together with the search and not after it.

The search proves that the claimed messages are all that is unread in their inboxes. So a read whose
messages this process stored itself takes one round trip instead of two. If the search finds others,
they are claimed as well, under the same token: a message that was claimed is never given back while
its reader waits, since other reads would miss it meanwhile.

`workers.claims` creates it for each batch of reads. It ends with the batch: messages that no read
was given become unread again.
"""

import asyncio
from collections.abc import Collection, Sequence
from types import TracebackType

from msgspec.structs import replace

from workers.claim_rollback import ClaimRollback
from workers.commands import Claim, Unread
from workers.errors import NotExecuted, OutcomeUnknown
from workers.known_inboxes import KnownInboxes
from workers.store.base import Claimed, Store


class EarlyClaim:
    """The early claim of one batch, or none if nothing is known. Use as an async context."""

    def __init__(
        self,
        store: Store,
        rollback: ClaimRollback,
        known: KnownInboxes,
        claim: Claim | None,
        held: dict[str, Sequence[Unread]],
    ) -> None:
        """`held` has the messages of the claim by inbox."""
        self._store = store
        self._rollback = rollback
        self._known = known
        self._claiming: asyncio.Task[Claimed] | None = None
        self.claim = claim
        #: The messages that no read was given yet, by inbox. The claim may have lost some of them.
        self.held = held

    async def __aenter__(self) -> "EarlyClaim":
        if self.claim is not None:
            self._claiming = asyncio.create_task(self._store.claim(self.claim))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._claiming is None:
            return
        try:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                await asyncio.wait((self._claiming,))
        finally:
            # Without effect unless the batch was cancelled.
            self._claiming.cancel()
            try:
                await asyncio.wait((self._claiming,))
            finally:
                self._release()

    async def extend(self, ids: Sequence[str]) -> Claimed:
        """Return what the claim took, and what it takes of these messages of its inboxes.

        Raises the error of the claim, or `OutcomeUnknown` if only a part of it was carried out.
        """
        assert self.claim is not None
        assert self._claiming is not None
        # If the caller is cancelled, the claim goes on until the batch ends.
        taken = await asyncio.shield(self._claiming)
        if not ids:
            return taken
        try:
            more = await self._store.claim(replace(self.claim, ids=tuple(ids)))
        except NotExecuted as error:
            raise OutcomeUnknown(str(error)) from error
        return Claimed(taken.ids | more.ids, taken.is_final and more.is_final)

    def merge(
        self, found: dict[str, Sequence[Unread]], complete: Collection[str], now_ms: int
    ) -> None:
        """Add the held messages to those that a search found.

        Inboxes with held messages are left out unless their search was complete: what is missing
        may be older.
        """
        for username, held in self.held.items():
            ids = {each.message.id for each in held}
            others = [each for each in found.get(username, ()) if each.message.id not in ids]
            if username not in complete:
                found.pop(username, None)
            elif self._known.are_newer(username, others):
                found[username] = held
            else:
                self._known.forget(username)
                self._known.pause(now_ms)
                found[username] = sorted((*held, *others), key=lambda each: each.message.id)

    def _release(self) -> None:
        """Let the messages that no read was given become unread again. The claim has ended."""
        for username in self.held:
            self._known.forget(username)
        ids = [each.message.id for held in self.held.values() for each in held]
        if not ids or self.claim is None or self._claiming is None:
            return
        if self._claiming.cancelled():
            self._rollback.add(self.claim, ids, is_final=False)
        elif (error := self._claiming.exception()) is None:
            owned, is_final = self._claiming.result()
            ids = [each for each in ids if each in owned or not is_final]
            if ids:
                self._rollback.add(self.claim, ids, is_final)
        elif not isinstance(error, NotExecuted):
            self._rollback.add(self.claim, ids, is_final=False)
