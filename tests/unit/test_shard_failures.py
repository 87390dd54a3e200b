"""Failures and bugs inside a shard: each request is answered truly, and the shard goes on."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.pools import gather_answers, post
from tests.support.stores import FailingStore, GateStore, MemoryStore
from tests.unit.conftest import MakePool
from workers.commands import Slice
from workers.errors import OutcomeUnknown, StoreUnavailable


async def test_a_failed_search_fails_only_its_reads(make_pool: MakePool) -> None:
    store = FailingStore(failures={"find": StoreUnavailable("away")})
    pool = await make_pool(store)
    answers = await gather_answers(post(pool, "a"), pool.read("b"), pool.read("c"))
    assert isinstance(answers[0], str)
    assert isinstance(answers[1], StoreUnavailable)
    assert isinstance(answers[2], StoreUnavailable)


async def test_a_lost_claim_is_unknown_and_never_empty(make_pool: MakePool) -> None:
    store = FailingStore(failures={"claim": OutcomeUnknown("lost")})
    pool = await make_pool(store)
    await post(pool, "bob")
    answers = await gather_answers(pool.read("bob"), pool.read("bob"), pool.read("nobody"))
    assert isinstance(answers[0], OutcomeUnknown)
    assert isinstance(answers[1], OutcomeUnknown)
    assert answers[2] == Slice((), False)


async def test_a_bug_fails_only_its_part_of_a_batch(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(failures={"insert": ZeroDivisionError("a bug")})
    pool = await make_pool(store)
    answers = await gather_answers(post(pool, "a"), pool.read("b"))
    assert isinstance(answers[0], OutcomeUnknown)
    assert answers[1] == Slice((), False)
    store.failures.clear()
    assert isinstance(await post(pool, "a"), str)
    assert pool.is_alive


async def test_a_dead_shard_answers_its_items_and_is_restarted(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    # Not an Exception, so no part of a shard handles it.
    store = FailingStore(failures={"insert": asyncio.CancelledError()})
    pool = await make_pool(store)
    answers = await gather_answers(post(pool, "a"))
    assert isinstance(answers[0], OutcomeUnknown)
    store.failures.clear()
    assert isinstance(await post(pool, "a"), str)
    assert registry.get_sample_value("chat_worker_restarts_total") == 1


@pytest.mark.parametrize("broken", ["plan", "sort"])
async def test_items_that_cannot_be_sorted_are_answered(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    pool = await make_pool(MemoryStore())

    def fail(_: object) -> None:
        monkeypatch.undo()
        raise AssertionError("a bug")

    monkeypatch.setattr(f"workers.shard.{broken}", fail)
    request = post(pool, "bob") if broken == "plan" else pool.read("bob")
    with pytest.raises(StoreUnavailable, match="the shard stopped"):
        async with asyncio.timeout(20):
            await request


@pytest.mark.parametrize("dies", ["insert", "find"])
async def test_a_lane_that_dies_takes_the_other_with_it(
    make_pool: MakePool, registry: CollectorRegistry, dies: str
) -> None:
    """All requests that were taken from the queue are answered, and those in it are served."""
    is_dying, death = asyncio.Event(), asyncio.Event()

    class Dying(GateStore):
        async def _pass(self, kind: str) -> None:
            if kind != dies or death.is_set():
                return await super()._pass(kind)
            is_dying.set()
            await death.wait()
            raise asyncio.CancelledError

    store = Dying(shut={"insert", "find"})
    pool = await make_pool(store)
    taken: list[asyncio.Future[Any]] = [post(pool, "bob"), pool.read("eve"), pool.read("bob")]
    await store.reached()
    await is_dying.wait()
    queued: list[asyncio.Future[Any]] = [post(pool, "ann"), pool.read("cy")]
    death.set()
    answers = await gather_answers(*taken)
    assert [type(each) for each in answers] == [OutcomeUnknown, OutcomeUnknown, StoreUnavailable]
    store.open()
    assert not any(isinstance(each, Exception) for each in await gather_answers(*queued))
    assert registry.get_sample_value("chat_worker_restarts_total") == 1
