"""Claims the messages that a search found, and answers the reads that get them.

All plain reads of a round share one claim. Each leased read has a claim under its own token. Each
read with a key has its own claim, too, and its messages are recorded before any is claimed.
`workers.shard` creates and calls this.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from workers.batch import Share
from workers.commands import (
    Claim,
    DiscardedClaims,
    KeyedBatch,
    KeyedClaim,
    LeaseClaim,
    Read,
    Slice,
    Unread,
)
from workers.engine import Engine
from workers.errors import NotExecuted, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store.base import Claimed
from workers.term_check import TermCheck
from workers.work_item import WorkItem

log = structlog.get_logger(__name__)

#: A read with a key can be repeated for this long, in ms.
KEY_WINDOW_MS = 60_000


class Unanswered(NamedTuple):
    """The reads that a round of claims has not answered.

    `shares` are those that got nothing, since other readers were faster or there was nothing for
    them. `failed` are those whose claim failed.
    """

    shares: list[Share]
    failed: list[tuple[Share, ServiceError]]


class Claims:
    """Makes claims, and answers the reads that get messages."""

    def __init__(self, engine: Engine, claim_s: float) -> None:
        """A claim can take effect for `claim_s` seconds."""
        self._store = engine.store
        self._clock = engine.clock
        self._claim_ms = int(claim_s * 1000)
        self._metrics = engine.metrics
        self._rollback = engine.rollback
        self._waiters = engine.waiters

    async def make(self, shares: Sequence[Share], check: TermCheck) -> Unanswered:
        """Make the claims for these shares concurrently. If one fails, only its own reads fail.

        Messages may be claimed before it is known whether their search was current, but no read is
        answered before.
        """
        claims = [*self._start(shares, check)]
        if len(claims) == 1:
            # Nearly always. A task for it would cost three turns of the event loop.
            return await claims[0]
        results = await asyncio.gather(*claims)
        return Unanswered(
            [share for result in results for share in result.shares],
            [failure for result in results for failure in result.failed],
        )

    async def repeat(
        self, items: Sequence[WorkItem]
    ) -> tuple[list[WorkItem], list[tuple[Share, ServiceError]]]:
        """Answer the reads whose key was used before. Returns the others, and those that failed."""
        keys = {
            item.command.key: item
            for item in items
            if isinstance(item.command, Read) and item.command.key and item.is_open
        }
        if not keys:
            return [*items], []
        batches = await self._store.find_batches(list(keys), self._clock.now_ms())
        repeated = {keys[key]: batch for key, batch in batches.items()}
        shares = [Share(item, (), more=True) for item in items if item in repeated]
        results = await asyncio.gather(
            *(
                self._guarded([share], partial(self._deliver_again, share, repeated[share.item]))
                for share in shares
            )
        )
        others = [item for item in items if item not in repeated]
        others += [share.item for result in results for share in result.shares]
        return others, [failure for result in results for failure in result.failed]

    def _start(self, shares: Sequence[Share], check: TermCheck) -> Iterator[Awaitable[Unanswered]]:
        plain: list[Share] = []
        for share in shares:
            command = share.item.command
            assert isinstance(command, Read)
            if not share.messages or (command.lease is None and not command.key):
                plain.append(share)
            elif command.key:
                claiming = partial(self._claim_for_key, share, command.key, check)
                yield self._guarded([share], claiming)
            else:
                yield self._guarded([share], partial(self._claim, [share], check))
        if plain:
            yield self._guarded(plain, partial(self._claim, plain, check))

    async def _guarded(
        self, shares: list[Share], claiming: Callable[[], Awaitable[list[Share]]]
    ) -> Unanswered:
        failure: ServiceError
        try:
            return Unanswered(await claiming(), [])
        except ServiceError as error:
            failure = error
        except Exception as error:
            # A bug, or an error that the store does not handle. The other claims continue.
            log.exception("a claim failed unexpectedly", reads=len(shares))
            failure = OutcomeUnknown(f"internal error: {type(error).__name__}")
        return Unanswered([], [(share, failure) for share in shares])

    async def _claim(self, shares: list[Share], check: TermCheck) -> list[Share]:
        """Claim the shares and answer their reads. Returns the shares that got nothing. They have
        `more` if their inbox may have unread messages all the same.
        """
        ids = [unread.message.id for share in shares for unread in share.messages]
        if not ids:
            return shares
        claim = self._new_claim(shares, ids)
        try:
            owned, is_final = await self._store.claim(claim)
        except NotExecuted:
            raise
        except BaseException:
            self._rollback.add(claim, claim.ids, is_final=False)
            raise
        try:
            await _require_current(check)
        except BaseException:
            # Older messages than these may be unread, or newer ones that were posted before.
            self._rollback.add(claim, claim.ids, is_final)
            raise
        lost_some = len(owned) < len(claim.ids)
        if lost_some:
            self._metrics.claim_conflicts.inc(len(claim.ids) - len(owned))
            if not is_final and isinstance(claim, LeaseClaim):
                # A late copy of the claim may take more messages under this token. The reader would
                # acknowledge them with its own, without ever having seen them.
                self._rollback.add(claim, claim.ids, is_final)
                raise OutcomeUnknown(
                    "other readers were faster, or the claim has not taken effect yet"
                )
            if not is_final:
                # A late copy of the claim may still take messages that others release.
                self._rollback.add(claim, [i for i in claim.ids if i not in owned], is_final)
        nothing: list[Share] = []
        given: list[Unread] = []
        # Inboxes in which the claim did not get every message. Other readers were faster, or the
        # claim came too late by the database's clock, and then the rest is still unread.
        unsure: set[str] = set()
        is_leased = isinstance(claim, LeaseClaim)
        for share in shares:
            username, mine = share.item.command.username, share.messages
            if lost_some:
                mine = tuple(unread for unread in mine if unread.message.id in owned)
                if len(mine) < len(share.messages):
                    unsure.add(username)
            more = share.more or username in unsure
            if not mine:
                nothing.append(share._replace(more=more))
            elif share.item.resolve(
                Slice(
                    tuple([each.delivered() if is_leased else each.message for each in mine]), more
                )
            ):
                given += mine
                if more:
                    # Another reader may be waiting for the rest.
                    self._waiters.wake((username,))
            else:
                self._rollback.add(claim, [unread.message.id for unread in mine], is_final)
        if given:
            counter = self._metrics.leased if is_leased else self._metrics.read
            counter.inc(len(given))
            self._metrics.given(claim.at_ms, given)
        return nothing

    async def _claim_for_key(self, share: Share, key: str, check: TermCheck) -> list[Share]:
        """Record the messages for a read with a key, then claim them. Returns the share if it got
        nothing.

        Messages claimed for a key never become unread again: they are kept for repeats of the read.
        So they are chosen only once the search is known to be current.
        """
        if not await check.is_current():
            return [share]
        item, now_ms = share.item, self._clock.now_ms()
        ids = tuple(unread.message.id for unread in share.messages)
        until_ms = now_ms + KEY_WINDOW_MS
        token = secrets.token_hex(16)
        batch = KeyedBatch(key, item.command.username, ids, until_ms, token, share.more)
        batch = (await self._store.record_batch([batch], now_ms))[0]
        return await self._deliver_again(share, batch)

    async def _deliver_again(self, share: Share, batch: KeyedBatch) -> list[Share]:
        return [] if await self._deliver_batch(share.item, batch) else [share]

    async def _deliver_batch(self, item: WorkItem, batch: KeyedBatch) -> bool:
        """Claim the unread messages of a batch, and answer with all that are claimed for it.

        Returns False if there are none and never were: other readers have them, or they expired.
        """
        claim = self._new_keyed_claim(batch)
        if batch.is_given:
            # A repeat gets no more than the first answer had.
            owned, is_final = Claimed(set(), is_final=True)
        else:
            owned, is_final = await self._store.claim(claim)
        try:
            messages = await self._store.keyed_messages(batch, self._clock.now_ms())
            # A batch that was delivered stays valid, even if all its messages have expired.
            is_given = await self._store.mark_delivered(batch) if messages else batch.is_given
            claimed = () if messages or is_given else await self._store.keyed_messages(batch, 0)
        except ServiceError as error:
            # The claimed messages belong to the key, and a repeat of the read returns them, unless
            # another process has discarded the batch meanwhile: then they become unread again.
            if owned:
                self._store.count_later(claim, list(owned))
            raise OutcomeUnknown(str(error)) from error
        if is_given:
            self._metrics.read.inc(len(owned))
            item.resolve(Slice(tuple(messages), batch.more))
            if batch.more:
                # Another reader may be waiting for the rest.
                self._waiters.wake((batch.username,))
            return True
        if messages:
            # Another process discarded the batch: these messages are not delivered for the key.
            self._rollback.add(claim, batch.ids, is_final)
        else:
            # Other readers were faster, or the messages have just expired.
            expired = {each.id for each in claimed}
            self._metrics.read.inc(len(owned & expired))
            await self._discard(batch, [each for each in batch.ids if each not in expired])
        return False

    async def _discard(self, batch: KeyedBatch, ids: Sequence[str]) -> None:
        """Discard a batch, so that the next read with its key chooses again.

        An unanswered claim for the batch may still be on its way, from any process. What it takes
        of these messages becomes unread again, unless the batch turns out to be valid.
        """
        try:
            await self._store.discard_batch(batch)
        finally:
            if ids:
                late = DiscardedClaims(batch, batch.until_ms - KEY_WINDOW_MS)
                self._rollback.add(late, ids, is_final=False)

    def _new_claim(self, shares: Sequence[Share], ids: Sequence[str]) -> Claim:
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self._claim_ms
        usernames = tuple({share.item.command.username for share in shares})
        command = shares[0].item.command
        lease = command.lease if isinstance(command, Read) and shares[0].messages else None
        if lease is None:
            return Claim(secrets.token_hex(16), usernames, tuple(ids), now_ms, until_ms)
        return LeaseClaim(lease.token, usernames, tuple(ids), now_ms, until_ms, lease.ttl_ms)

    def _new_keyed_claim(self, batch: KeyedBatch) -> KeyedClaim:
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self._claim_ms
        token = secrets.token_hex(16)
        names, times = (batch.username,), (now_ms, until_ms)
        return KeyedClaim(token, names, batch.ids, *times, batch.key, batch.token)


async def _require_current(check: TermCheck) -> None:
    """Raise `OutcomeUnknown`, since messages were claimed, unless the searches were current."""
    try:
        is_current = await check.is_current()
    except StoreUnavailable as error:
        raise OutcomeUnknown(f"no majority confirmed the search: {error}") from error
    if not is_current:
        raise OutcomeUnknown("another primary was elected while messages were claimed")
