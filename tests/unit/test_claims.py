"""Claims that fail, are late, or lose to other readers: every read gets a true answer."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.pools import post, texts
from tests.support.stores import FailingStore, LateStore, MemoryStore, new_batch, new_claim
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers.claim_rollback import ClaimRollback
from workers.commands import (
    Acknowledge,
    Audit,
    Claim,
    DiscardedClaims,
    Finish,
    KeyedBatch,
    Lease,
    Message,
    Slice,
    delivery,
)
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.store.base import Claimed
from workers.waiters import Waiters

KEY = "k" * 64


@dataclass
class OvertakenStore(MemoryStore):
    """Each of the first claims misses a message, as if another reader had taken it."""

    overtaken: int = 1
    #: Whether no copy of these claims can still take effect.
    is_final: bool = False

    async def claim(self, claim: Claim) -> Claimed:
        if not self.overtaken:
            return await super().claim(claim)
        self.overtaken -= 1
        await self._call("claim")
        self.data.claim(claim, claim.ids[1:])
        return Claimed(self.data.owned(claim), is_final=self.is_final)


async def test_a_bug_in_a_claim_fails_only_its_reads(make_pool: MakePool) -> None:
    store = FailingStore(failures={"claim": ZeroDivisionError("a bug")})
    pool = await make_pool(store)
    await post(pool, "bob")
    outcomes = await asyncio.gather(pool.read("bob"), pool.read("eve"), return_exceptions=True)
    assert isinstance(outcomes[0], OutcomeUnknown)
    assert outcomes[1] == Slice((), False)
    assert pool.is_alive


async def test_a_claim_that_was_not_sent_leaves_the_messages_unread(make_pool: MakePool) -> None:
    store = FailingStore(failures={"claim": StoreUnavailable("no primary")})
    pool = await make_pool(store)
    await post(pool, "bob")
    with pytest.raises(StoreUnavailable):
        await pool.read("bob")
    assert not store.calls["unclaim"], "there is nothing to undo"
    store.failures.clear()
    assert texts(await pool.read("bob")) == ["x"]


async def test_a_late_claim_makes_no_other_read_empty(make_pool: MakePool) -> None:
    store = LateStore()
    pool = await make_pool(store)
    await post(pool, "bob")
    first, second = pool.read("bob"), pool.read("bob")
    claims: list[int] = []
    second.add_done_callback(lambda _: claims.append(store.calls["claim"]))
    assert [texts(await first), texts(await second)] == [["x"], []]
    # Callbacks run in the next turn of the loop.
    await asyncio.sleep(0)
    assert claims == [2], "it was answered while the message was still unread"


async def test_a_late_claim_does_not_make_an_inbox_look_empty(make_pool: MakePool) -> None:
    store = LateStore()
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


async def test_a_claim_that_lost_some_returns_the_others(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = OvertakenStore()
    pool = await make_pool(store)
    for text in "abc":
        await post(pool, "bob", text)
    first, second = await asyncio.gather(pool.read("bob"), pool.read("bob"))
    assert texts(first) == ["b", "c"]
    assert first.more, "the claim may have been late, so the rest may still be unread"
    assert texts(second) == ["a"], "it was still unread"
    assert registry.get_sample_value("chat_claim_conflicts_total") == 1


async def test_a_late_copy_of_a_lease_is_never_acknowledged(make_pool: MakePool) -> None:
    pool = await make_pool(OvertakenStore())
    for text in "ab":
        await post(pool, "bob", text)
    lease = Lease(delivery("lease"), 30_000)
    with pytest.raises(OutcomeUnknown, match="other readers were faster"):
        await pool.read("bob", lease=lease)


async def test_a_final_claim_of_a_lease_returns_what_it_has(make_pool: MakePool) -> None:
    pool = await make_pool(OvertakenStore(is_final=True))
    for text in "ab":
        await post(pool, "bob", text)
    assert texts(await pool.read("bob", lease=Lease(delivery("lease"), 30_000))) == ["b"]


@dataclass
class ForgetfulStore(MemoryStore):
    """Fails to return the messages of a key a number of times, after their claim."""

    failing: int = 1

    async def keyed_messages(self, batch: KeyedBatch, now_ms: int) -> Sequence[Message]:
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable("the answer was lost")
        return await super().keyed_messages(batch, now_ms)


async def test_a_keyed_read_without_its_messages_can_be_repeated(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    pool = await make_pool(ForgetfulStore())
    await post(pool, "bob")
    with pytest.raises(OutcomeUnknown, match="the answer was lost"):
        await pool.read_keyed("bob", KEY)
    assert texts(await pool.read_keyed("bob", KEY)) == ["x"]
    assert await pool.read("bob") == Slice((), False), "the key has the message"

    async def is_counted() -> bool:
        return registry.get_sample_value("chat_messages_read_total") == 1

    await eventually(is_counted)


async def test_a_message_taken_from_its_key_is_not_counted_as_read(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = ForgetfulStore()
    pool = await make_pool(store)
    await post(pool, "bob")
    with pytest.raises(OutcomeUnknown, match="the answer was lost"):
        await pool.read_keyed("bob", KEY)
    ((claim, ids),) = store.later
    # The other process has discarded the batch, and makes its messages unread again.
    store.data.unclaim(claim, ids)

    async def is_resolved() -> bool:
        return not store.later

    await eventually(is_resolved)
    assert registry.get_sample_value("chat_messages_read_total") == 0


async def test_a_repeat_gets_no_more_than_the_first_answer(make_pool: MakePool) -> None:
    pool = await make_pool(OvertakenStore(is_final=True))
    for text in "ab":
        await post(pool, "bob", text)
    for _ in range(2):
        assert texts(await pool.read_keyed("bob", KEY)) == ["b"]
    assert texts(await pool.read("bob")) == ["a"], "it is unread again"


@dataclass
class DiscardingStore(MemoryStore):
    """Another process discards the first batch of a key before it is delivered."""

    discarding: int = 1

    async def mark_delivered(self, batch: KeyedBatch) -> bool:
        if self.discarding:
            self.discarding -= 1
            await self.discard_batch(batch)
        return await super().mark_delivered(batch)


async def test_a_discarded_batch_gives_its_messages_back(make_pool: MakePool) -> None:
    store = DiscardingStore()
    pool = await make_pool(store)
    await post(pool, "bob")
    # The keyed read itself may find the message again.
    got = texts(await pool.read_keyed("bob", KEY))

    async def is_read() -> bool:
        got.extend(texts(await pool.read("bob")))
        return got == ["x"]

    await eventually(is_read, 15)


@dataclass
class Unclaiming(MemoryStore):
    """Counts rollbacks, and fails them a number of times."""

    failing: int = 0
    is_discarded: bool = True
    steps: list[str] = field(default_factory=list)

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable("not now")
        self.steps.append("void")

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        self.steps.append("unclaim")
        return len(ids)

    async def discard_batch(self, batch: KeyedBatch) -> bool:
        return self.is_discarded


def rollback_on(store: Any, metrics: WorkerMetrics) -> ClaimRollback:
    """Return a rollback without a pool."""
    return ClaimRollback(store, metrics, Waiters(10, lambda item: None))


def abandoned() -> Claim:
    """Return a claim for the message `a` whose time is not over."""
    return new_claim(["bob"], ["a"], int(time.time() * 1000), valid_s=3600)


async def test_a_rollback_closes_messages_before_it_returns_them(metrics: WorkerMetrics) -> None:
    store = Unclaiming()
    rollback = rollback_on(store, metrics)
    rollback.add(abandoned(), ["a"], is_final=False)
    await rollback.carry_out()
    assert store.steps == ["void", "unclaim"], "a late copy of the claim would keep them"


async def test_a_final_claim_is_rolled_back_in_one_step(metrics: WorkerMetrics) -> None:
    store = Unclaiming()
    rollback = rollback_on(store, metrics)
    rollback.add(abandoned(), ["a"], is_final=True)
    await rollback.carry_out()
    assert store.steps == ["unclaim"]


async def test_a_drain_repeats_a_failed_rollback(metrics: WorkerMetrics) -> None:
    store = Unclaiming(failing=2)
    rollback = rollback_on(store, metrics)
    rollback.add(abandoned(), ["a"], is_final=False)
    assert await rollback.drain(30)
    assert store.steps == ["void", "unclaim"]


async def test_a_drain_gives_up_in_time(
    metrics: WorkerMetrics, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Unclaiming(failing=1000)
    rollback = rollback_on(store, metrics)
    rollback.add(abandoned(), ["a", "b"], is_final=False)
    assert not await rollback.drain(0.05)
    assert store.steps == []
    assert "could not be rolled back in time" in capsys.readouterr().out


async def test_messages_of_a_valid_batch_are_not_released(metrics: WorkerMetrics) -> None:
    now_ms = int(time.time() * 1000)
    store = Unclaiming(is_discarded=False)
    rollback = rollback_on(store, metrics)
    late = DiscardedClaims(new_batch(KEY, "bob", ["a"], now_ms + 60_000), now_ms)
    rollback.add(late, ["a"], is_final=False)
    await rollback.carry_out()
    assert store.steps == [], "another process delivered the batch before it was discarded"
    store.is_discarded = True
    rollback.add(late, ["a"], is_final=False)
    await rollback.carry_out()
    assert store.steps == ["void", "unclaim"]


@dataclass
class UnauditedStore(MemoryStore):
    """A store that cannot find out which messages an acknowledgement has missed."""

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        raise StoreUnavailable("no primary")


async def test_an_ack_without_an_audit_is_never_false(make_pool: MakePool) -> None:
    pool = await make_pool(UnauditedStore())
    ids = tuple([await post(pool, "bob", text) for text in "ab"])
    assert texts(await pool.read("bob", 1, lease=Lease(delivery("lease"), 30_000))) == ["a"]
    with pytest.raises(OutcomeUnknown):
        await pool.submit(Finish("bob", "lease", ids))
    # The repeat changes nothing, so nothing is unknown about it.
    with pytest.raises(StoreUnavailable):
        await pool.submit(Finish("bob", "lease", ids))
    finished = await pool.submit(Finish("bob", "lease", ids[:1]))
    assert (finished.messages, finished.is_all) == (1, True), "nothing needs an audit"
