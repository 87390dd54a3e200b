"""The end of a pool: a drain finishes what was accepted, and a stop answers everything."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.pools import gather_answers, post
from tests.support.stores import GateStore
from tests.unit.conftest import MakePool
from workers.errors import Draining, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.shard import ShardLimits
from workers.store.base import Found


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


async def test_stopping_survives_a_swallowed_cancellation(make_pool: MakePool) -> None:
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
