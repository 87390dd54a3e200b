"""Seeded bugs of keys, receipts, counters and long polls."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest import mock

from msgspec.structs import replace

from chat_service.api.identity import Client
from chat_service.api.request_options import hash_of
from tests.faults.faulty_store import SimulatedStore
from tests.faults.races import (
    CONVERSATIONS,
    OVERTAKEN,
    FaultlessWorld,
    LateKeyedClaims,
    OvertakenWorld,
)
from tests.faults.seeded_bugs import Bug, PatchedWorld, bug, with_store
from tests.faults.simulated_replica_set import Database
from workers.claims import Claims
from workers.commands import (
    Claim,
    DiscardedClaims,
    KeyedBatch,
    MessageStatus,
    Post,
    Revoke,
    Track,
)
from workers.errors import OutcomeUnknown
from workers.pool import WorkerPool
from workers.store.base import (
    ArrivalStream,
    CountedEvent,
    Insertion,
)
from workers.waiters import Waiters
from workers.work_item import WorkItem


class ClaimsForDiscardedBatch(LateKeyedClaims):
    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        if isinstance(claim, Claim):
            await super().void(claim, ids)


class ForgetsKeyedBatches(SimulatedStore):
    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        await self._reach()
        return {}


class KeepsKeysInMemory(SimulatedStore):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._batches: dict[str, KeyedBatch] = {}

    async def record_batch(self, batches: Sequence[KeyedBatch], now_ms: int) -> list[KeyedBatch]:
        await self._reach()
        return [self._batches.setdefault(batch.key, batch) for batch in batches]

    async def find_batches(self, keys: Sequence[str], now_ms: int) -> Mapping[str, KeyedBatch]:
        await self._reach()
        return {key: self._batches[key] for key in keys if key in self._batches}


class StoresKeyedRepeat(Database):
    def _insert(self, post: Post) -> Insertion:
        return super()._insert(replace(post, key=None))


class RevokesReadMessages(Database):
    def revoke(
        self, command: Revoke, now_ms: int, mark: str = ""
    ) -> tuple[MessageStatus | None, int]:
        fate = self.track(command, now_ms)
        if fate is None or fate.status != "read":
            return super().revoke(command, now_ms, mark)
        self.change(self.documents[command.id], revoked_ms=now_ms, mark=mark)
        return MessageStatus("revoked", now_ms), 1


class ReportsAllAsPending(SimulatedStore):
    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        fate = await super().track(command, now_ms)
        return fate and MessageStatus("pending", None)


class IgnoresResolvedWrites(SimulatedStore):
    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        return {}


class NeverWakesWaiters(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(Waiters, "wake"):
            yield


class MissesWakeUps(PatchedWorld, FaultlessWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        @contextmanager
        def record_wakes(self: Waiters) -> Iterator[set[str | None]]:
            yield set()

        with mock.patch.object(Waiters, "record_wakes", record_wakes):
            yield


class ForgetsWaitsDuringOpening(PatchedWorld, FaultlessWorld):
    """Takes an inbox for watched that somebody began to wait for while the stream was opened."""

    @contextmanager
    def patches(self) -> Iterator[None]:
        take_over = SimulatedStore.arrivals
        pools: dict[SimulatedStore, Waiters] = {}
        start = WorkerPool.start

        async def start_known(self: WorkerPool) -> None:
            assert isinstance(self._store, SimulatedStore)
            pools[self._store] = self._waiters
            await start(self)

        async def arrivals(
            self: SimulatedStore,
            usernames: Collection[str] | None,
            after: ArrivalStream | None = None,
        ) -> ArrivalStream:
            stream = await take_over(self, usernames, after)
            waiters = pools[self]
            waiters.set_reported({*(usernames or ()), *waiters.usernames()})
            return stream

        with (
            mock.patch.object(SimulatedStore, "arrivals", arrivals),
            mock.patch.object(WorkerPool, "start", start_known),
        ):
            yield


class NeverWaits(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        with mock.patch.object(Waiters, "add", return_value=False):
            yield


class RollsBackKeyedBatch(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        give = Claims._deliver_batch

        async def give_or_roll_back(self: Claims, item: WorkItem, batch: KeyedBatch) -> bool:
            claims: list[Claim] = []
            new_claim = self._new_keyed_claim

            def noted(batch: KeyedBatch) -> Claim:
                claims.append(new_claim(batch))
                return claims[-1]

            try:
                with mock.patch.object(self, "_new_keyed_claim", noted):
                    return await give(self, item, batch)
            except OutcomeUnknown:
                for claim in claims:
                    self._rollback.add(claim, claim.ids, is_final=False)
                raise

        with mock.patch.object(Claims, "_deliver_batch", give_or_roll_back):
            yield


class SharesKeys(PatchedWorld):
    @contextmanager
    def patches(self) -> Iterator[None]:
        def hash_for_everybody(_client: Client, *parts: str) -> str:
            return hash_of(*parts)

        with mock.patch("tests.faults.simulated_clients.post_key_hash", hash_for_everybody):
            yield


#: Bugs of keys, receipts, counters and long polls.
KEY_BUGS = (
    bug(ForgetsKeyedBatches, "inconsistent"),
    bug(KeepsKeysInMemory, "inconsistent", "lost"),
    bug(RollsBackKeyedBatch, "duplicated"),
    Bug(
        "ClaimsForDiscardedBatch",
        with_store(ClaimsForDiscardedBatch, OvertakenWorld),
        frozenset({"lost", "missed"}),
        OVERTAKEN,
    ),
    bug(StoresKeyedRepeat, "duplicated"),
    bug(RevokesReadMessages, "revoked"),
    bug(ReportsAllAsPending, "untrue"),
    bug(IgnoresResolvedWrites, "unaccounted"),
    bug(NeverWakesWaiters, "missed"),
    bug(SharesKeys, "foreign key")._replace(steps={"keyed post": 1}),
    bug(MissesWakeUps, "missed")._replace(steps=CONVERSATIONS),
    bug(ForgetsWaitsDuringOpening, "missed")._replace(steps=CONVERSATIONS),
    bug(NeverWaits, "impatient"),
)
