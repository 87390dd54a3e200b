"""The pool and its shards on a small store: batches, fairness, faults and shutdown."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.stores import FailingStore, GateStore, LateStore, MemoryStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers.commands import Slice
from workers.errors import (
    Draining,
    Expired,
    OutcomeUnknown,
    Overloaded,
    ServiceError,
    StoreUnavailable,
)
from workers.pool import WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits
from workers.store.base import Found


def post(pool: WorkerPool, username: str, text: str = "x") -> asyncio.Future[str]:
    return pool.post(username, text, len(text), 60)


def texts(read: Slice) -> list[str]:
    return [message.text for message in read.messages]


async def gather_answers(*futures: asyncio.Future[Any]) -> list[object]:
    async with asyncio.timeout(30):
        return list(await asyncio.gather(*futures, return_exceptions=True))


async def test_a_hundred_requests_take_a_few_round_trips(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "early")
    await store.reached()
    posts = [post(pool, f"poster-{number}") for number in range(50)]
    reads = [pool.read(f"reader-{number}") for number in range(50)]
    store.open()
    await asyncio.gather(first, *posts, *reads)
    assert store.calls == {"insert": 2, "find": 1}


async def test_a_read_finds_the_post_before_it(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore())
    futures: list[asyncio.Future[Any]] = [
        post(pool, "bob", "1"),
        post(pool, "bob", "2"),
        pool.read("bob"),
    ]
    answers = await asyncio.gather(*futures)
    assert isinstance(answers[2], Slice)
    assert texts(answers[2]) == ["1", "2"]


async def test_a_slow_insert_delays_no_read_of_another_inbox(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    posted = post(pool, "bob")
    await store.reached()
    for _ in range(3):
        assert await pool.read("eve") == Slice((), False)
        assert await pool.count("eve") == 0
    assert not posted.done()
    store.open()
    await posted


async def test_a_slow_search_delays_no_post(make_pool: MakePool) -> None:
    store = GateStore(shut={"find"})
    pool = await make_pool(store)
    read = pool.read("bob")
    await store.reached()
    for _ in range(3):
        await post(pool, "bob")
    assert not read.done()
    store.open()
    assert len((await read).messages) == 3


async def test_a_read_waits_for_a_post_in_flight(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "bob", "1")
    await store.reached()
    reads: list[asyncio.Future[Any]] = [pool.read("bob", 1), pool.read("bob"), pool.count("bob")]
    assert await pool.read("eve") == Slice((), False)
    assert store.calls["find"] == 1
    assert store.calls["count"] == 0
    store.open()
    assert [texts(await read) for read in reads[:2]] == [["1"], []]
    assert first.done()
    assert await reads[2] <= 1


async def test_a_read_waits_for_a_post_that_its_client_left(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    left = post(pool, "bob", "1")
    await store.reached()
    left.cancel()
    read = pool.read("bob")
    await asyncio.sleep(0)
    store.open()
    assert texts(await read) == ["1"]


async def test_a_read_waits_for_all_posts_of_its_client(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(2, 1 << 20, 50, 5.0))
    posts = [post(pool, "bob", str(number)) for number in range(9)]
    read = pool.read("bob")
    assert texts(await read) == list("012345678")
    assert all(each.done() for each in posts)


async def test_a_flood_of_an_inbox_does_not_keep_its_owner_away(make_pool: MakePool) -> None:
    store = GateStore()
    pool = await make_pool(store, batch=ShardLimits(10, 1 << 20, 50, 5.0))
    flood = [pool.post("bob", "x", 1, 60, client="flood") for _ in range(300)]
    read = pool.read("bob", client="bob")
    assert (await read).messages
    # Only its first batch of posts had to be stored before, and some were while the read searched.
    assert store.calls["insert"] <= 15
    await asyncio.gather(*flood)


async def test_reads_of_an_inbox_stay_in_order_behind_its_posts(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "bob", "1")
    await store.reached()
    second = post(pool, "bob", "2")
    reads = [pool.read("bob", 1) for _ in range(2)]
    store.open_once()
    await first
    # The first post is answered, and the second one in flight: a new read comes last.
    reads.append(pool.read("bob", 1))
    store.open()
    await second
    assert [texts(await read) for read in reads] == [["1"], ["2"], []]


async def test_concurrent_reads_share_no_message(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(100, 1 << 20, 5, 5.0))
    ids = [await post(pool, "bob") for _ in range(23)]
    reads = await asyncio.gather(*(pool.read("bob", 3) for _ in range(9)))
    got = [message.id for read in reads for message in read.messages]
    assert sorted(got) == ids


async def test_large_inboxes_hide_no_others(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore(), batch=ShardLimits(500, 1 << 20, 5, 5.0))
    names = [f"user-{number}" for number in range(20)]
    await asyncio.gather(*(post(pool, name) for name in names for _ in range(12)))
    reads = await asyncio.gather(*(pool.read(name) for name in names))
    assert all(read.messages for read in reads)
    assert all(read.more for read in reads if len(read.messages) < 12)


async def test_a_slow_count_delays_no_other_request(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    count = pool.count("full")
    await store.reached()
    for number in range(3):
        await post(pool, "bob")
        assert texts(await pool.read("bob")) == ["x"]
        assert not count.done()
        pool.count(f"another-{number}")
    store.open()
    assert await count == 0


async def test_counts_of_one_inbox_share_one_search(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    await post(pool, "bob")
    counts = [pool.count("bob") for _ in range(50)]
    await post(pool, "eve")
    store.open()
    assert await asyncio.gather(*counts) == [1] * 50
    assert await first == 0
    assert store.calls["count"] <= 3


async def test_waiting_counts_are_bounded(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.shard.COUNTS_MAX", 5)
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    counts = [pool.count(f"user-{number}") for number in range(8)]
    refused = await asyncio.gather(*counts[5:], return_exceptions=True)
    assert [type(each) for each in refused] == [Overloaded] * 3
    store.open()
    assert await asyncio.gather(first, *counts[:5]) == [0] * 6


async def test_a_count_past_its_deadline_is_answered(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store, deadline_s=0.2)
    first = pool.count("early")
    await store.reached()
    waiting = pool.count("bob")
    outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [OutcomeUnknown, Expired]


async def test_a_pool_that_stops_answers_its_counts(make_pool: MakePool) -> None:
    store = GateStore(shut={"count"})
    pool = await make_pool(store)
    first = pool.count("early")
    await store.reached()
    waiting = pool.count("bob")
    await asyncio.sleep(0.05)
    await pool.stop()
    outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
    assert all(isinstance(each, StoreUnavailable) for each in outcomes)


async def test_a_post_cancelled_in_its_queue_stores_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "early")
    await store.reached()
    given_up = post(pool, "bob")
    given_up.cancel()
    store.open()
    await first
    assert texts(await pool.read("bob")) == []
    assert len(store.data.documents) == 1


async def test_a_reader_that_left_before_the_claim_consumes_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"find"})
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.open()
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


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


async def test_a_claim_for_a_reader_that_left_is_rolled_back(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = GateStore(shut={"claim"})
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.open()

    async def is_released() -> bool:
        return registry.get_sample_value("chat_messages_released_total") == 1

    await eventually(is_released)
    assert registry.get_sample_value("chat_messages_read_total") == 0
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


async def test_a_drain_waits_for_a_running_rollback(make_pool: MakePool) -> None:
    store = GateStore(shut={"claim"})
    pool = await make_pool(store)
    await post(pool, "bob")
    read = pool.read("bob")
    await store.reached()
    read.cancel()
    store.shut.add("unclaim")
    store.shut.discard("claim")
    store.open_once()
    await store.reached()
    draining = asyncio.create_task(pool.drain(5))
    await asyncio.sleep(0.05)
    store.open()
    assert await draining
    assert store.calls["unclaim"] == 1
    assert not any(each.token for each in store.data.documents.values())


async def test_a_late_claim_does_not_make_an_inbox_look_empty(
    make_pool: MakePool,
) -> None:
    store = LateStore()
    pool = await make_pool(store)
    message_id = await post(pool, "bob")
    assert [message.id for message in (await pool.read("bob")).messages] == [message_id]


async def test_one_failed_read_does_not_open_the_breaker(make_pool: MakePool) -> None:
    store = FailingStore(failures={"find": StoreUnavailable("interrupted")})
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable, match="interrupted"):
        await pool.read("bob")
    await post(pool, "bob")


async def test_requests_are_refused_while_the_database_is_unavailable(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    store = FailingStore(failures={"find": StoreUnavailable("no primary", is_unavailable=True)})
    store.away = True
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable, match="no primary"):
        await pool.read("bob")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="is unavailable"):
            pool.read("bob")
    assert store.calls["find"] == 0
    assert registry.get_sample_value("chat_database_away") == 1
    store.failures.clear()
    store.away = False

    async def is_back() -> bool:
        return registry.get_sample_value("chat_database_away") == 0

    await eventually(is_back)
    await post(pool, "bob")
    assert len((await pool.read("bob")).messages) == 1


async def test_pending_messages_are_unknown_until_counted(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No periodic count comes: only the end of the outage can start one.
    monkeypatch.setattr("workers.pending.PENDING_EVERY_S", 1000.0)
    store = FailingStore()
    pool = await make_pool(store)
    await post(pool, "bob")
    store.failures["find"] = StoreUnavailable("no primary", is_unavailable=True)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await pool.read("bob")
    pending = registry.get_sample_value("chat_messages_pending")
    assert pending is not None
    assert math.isnan(pending)
    store.failures.clear()
    store.away = False

    async def is_counted() -> bool:
        return registry.get_sample_value("chat_messages_pending") == 1

    await eventually(is_counted)


async def test_a_count_from_before_an_outage_is_cancelled(
    make_pool: MakePool, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count hangs on a dead connection."""
    never = asyncio.Event()
    calls = 0

    async def count_pending() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            await never.wait()
        return 7

    monkeypatch.setattr("workers.pool._FIRST_COUNT_S", 0.01)
    monkeypatch.setattr("workers.pending.PENDING_EVERY_S", 1000.0)
    store = FailingStore(failures={"find": StoreUnavailable("no primary", is_unavailable=True)})
    store.away = True
    monkeypatch.setattr(store, "count_pending", count_pending)
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable):
        await pool.read("bob")
    store.failures.clear()
    store.away = False

    async def is_counted() -> bool:
        return registry.get_sample_value("chat_messages_pending") == 7

    await eventually(is_counted)


async def test_occasional_failures_do_not_open_the_breaker(
    make_pool: MakePool,
) -> None:
    store = FailingStore()
    pool = await make_pool(store)
    for _ in range(5):
        store.failures["find"] = OutcomeUnknown("interrupted")
        with pytest.raises(OutcomeUnknown, match="interrupted"):
            await pool.read("bob")
        store.failures.clear()
        await pool.read("bob")


async def test_a_full_queue_refuses_at_once(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, queue=QueueLimits(2, 1 << 20, 2))
    waiting = [post(pool, "a")]
    await store.reached()
    waiting += [post(pool, "b"), post(pool, "c")]
    with pytest.raises(Overloaded):
        post(pool, "d")
    store.open()
    await asyncio.gather(*waiting)
    assert len(store.data.documents) == 3


async def test_a_request_past_its_deadline_is_never_executed(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, deadline_s=0.05)
    in_flight = post(pool, "a")
    await store.reached()
    waiting = post(pool, "b")
    answers = await gather_answers(in_flight, waiting)
    assert isinstance(answers[0], OutcomeUnknown)
    assert isinstance(answers[1], Expired)
    store.open()
    await post(pool, "c")
    assert sorted(each.post.username for each in store.data.documents.values()) == ["a", "c"]


async def test_a_deferred_read_past_its_deadline_claims_nothing(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store, deadline_s=0.05)
    first = post(pool, "early")
    await store.reached()
    answers = await gather_answers(first, post(pool, "bob"), pool.read("bob"))
    assert isinstance(answers[2], Expired)
    assert store.calls["claim"] == 0


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


async def test_draining_finishes_accepted_requests_only(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = post(pool, "a")
    await store.reached()
    waiting: list[asyncio.Future[Any]] = [post(pool, "b"), pool.read("c")]
    draining = asyncio.create_task(pool.drain(5))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        post(pool, "d")
    store.open()
    assert await draining
    assert all(not isinstance(each, Exception) for each in await gather_answers(first, *waiting))


async def test_stopping_answers_all_requests(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    in_flight = post(pool, "a")
    await store.reached()
    waiting = post(pool, "b")
    await pool.stop()
    await pool.stop()
    answers = await gather_answers(in_flight, waiting)
    assert isinstance(answers[0], OutcomeUnknown)
    assert isinstance(answers[1], Draining)


async def test_stopping_survives_a_swallowed_cancellation(
    make_pool: MakePool,
) -> None:
    class Swallowing(GateStore):
        """Turns the first cancellation of a search into a database error."""

        async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
            try:
                return await super().find_unread(usernames, limit, now_ms)
            except asyncio.CancelledError:
                raise StoreUnavailable("the connection was closed") from None

    store = Swallowing(shut={"find"})
    pool = await make_pool(store)
    read = pool.read("bob")
    await store.reached()
    async with asyncio.timeout(30):
        await pool.stop()
    assert isinstance((await gather_answers(read))[0], ServiceError)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_lane_that_is_slow_to_stop_loses_nothing(make_pool: MakePool, times: int) -> None:
    """It may go on after a cancellation that a driver turned into an error of its own."""

    class Swallowing(GateStore):
        async def _pass(self, kind: str) -> None:
            for left in reversed(range(times)):
                try:
                    return await super()._pass(kind)
                except asyncio.CancelledError:
                    if not left:
                        raise StoreUnavailable("the connection was closed") from None
            return None

    store = Swallowing(shut={"insert", "find"})
    pool = await make_pool(store, batch=ShardLimits(1, 1 << 20, 50, 5.0))
    requests: list[asyncio.Future[Any]] = [post(pool, "bob"), pool.read("eve"), pool.read("bob")]
    await store.reached()
    requests += [post(pool, "ann"), pool.read("ann"), pool.read("cy")]
    async with asyncio.timeout(30):
        await pool.stop()
    assert all(request.done() for request in requests)
    assert all(isinstance(each, ServiceError) for each in await gather_answers(*requests))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_probe_is_repeated_after_a_blocked_loop(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(away=True)
    pool = await make_pool(store)
    blocked = [True, False]
    lag = pool._breaker.lag
    monkeypatch.setattr(type(lag), "was_blocked_since", lambda *_: blocked.pop(0))
    assert not await pool.database_answers()
    assert blocked == [], "the first failure says nothing about the database"
