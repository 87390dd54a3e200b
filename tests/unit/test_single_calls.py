"""Commands beside the batches: no client takes all places, and batches take one turn together."""

import asyncio
import json
from collections import Counter
from typing import Any

from chat_service.api.types import Request
from chat_service.api.validation import MessageLimits
from chat_service.handlers.batch import BatchHandlers
from tests.support.stores import GateStore, MemoryStore
from tests.unit.conftest import MakePool
from workers.commands import Acknowledge, Finish, Track
from workers.errors import Expired
from workers.pool import WorkerPool
from workers.single_calls import CLIENT_PLACES, PLACES
from workers.store.base import Settled

IDS = tuple(f"{number:032x}" for number in range(5000))


class SlowStore(MemoryStore):
    """Holds acknowledgements and statuses until `gate` is set. Notes which ones it has."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.gate = asyncio.Event()

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        self.begun.append(command.lease)
        await self.gate.wait()
        return await super().acknowledge(command, now_ms)

    async def track(self, command: Track, now_ms: int) -> Any:
        self.begun.append(command.id)
        await self.gate.wait()
        return await super().track(command, now_ms)


async def test_a_long_acknowledgement_delays_only_its_client(make_pool: MakePool) -> None:
    store = SlowStore()
    pool = await make_pool(store)
    long = [pool.submit(Finish("bob", f"{n:x}", IDS), client="heavy") for n in range(10)]
    await asyncio.sleep(0.05)
    assert len(store.begun) == 1
    other = pool.submit(Finish("eve", "f00", IDS[:3]), client="light")
    await asyncio.sleep(0.05)
    assert store.begun == ["0", "f00"]
    store.gate.set()
    await asyncio.gather(*long, other)


async def test_short_commands_of_one_client_leave_places(make_pool: MakePool) -> None:
    store = SlowStore()
    pool = await make_pool(store)
    heavy = [pool.submit(Track(f"h{number}", "r"), client="heavy") for number in range(100)]
    await asyncio.sleep(0.05)
    assert len(store.begun) == CLIENT_PLACES < PLACES
    light = [pool.submit(Track(f"l{number}", "r"), client="light") for number in range(5)]
    await asyncio.sleep(0.05)
    assert store.begun[CLIENT_PLACES:] == [f"l{number}" for number in range(5)]
    store.gate.set()
    await asyncio.gather(*heavy, *light)


async def test_a_command_that_waits_too_long_is_never_sent(make_pool: MakePool) -> None:
    store = SlowStore()
    pool = await make_pool(store, deadline_s=0.1)
    asked = [pool.submit(Finish("bob", f"{n:x}", IDS), client="heavy") for n in range(3)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in outcomes[1:]] == [Expired, Expired]
    assert store.begun == ["0"]
    store.gate.set()


def batch_of(messages: int) -> Request:
    items = [{"username": f"user-{n % 7}", "text": str(n)} for n in range(messages)]
    return Request("id", "POST", "", "", {}, json.dumps(items).encode())


def new_handlers(pool: WorkerPool) -> BatchHandlers:
    return BatchHandlers(pool, MessageLimits(128, 1000, 60, 600), 500, lambda *_: None)


async def test_batches_share_a_turn_of_the_loop(make_pool: MakePool) -> None:
    pool = await make_pool(MemoryStore())
    turn, turns = 0, Counter[int]()
    post = pool.post

    def noted(*arguments: Any, **options: Any) -> asyncio.Future[str]:
        turns[turn] += 1
        return post(*arguments, **options)

    pool.post = noted  # type: ignore[method-assign]
    handlers = new_handlers(pool)
    batches = [asyncio.create_task(handlers.post(batch_of(200))) for _ in range(3)]
    while not all(batch.done() for batch in batches):
        await asyncio.sleep(0)
        turn += 1
    assert turns.total() == 600
    # The next batch can begin in the turn in which another one ends its part.
    assert max(turns.values()) <= 2 * 16


async def test_a_batch_that_is_cancelled_midway_stores_no_more(make_pool: MakePool) -> None:
    store = GateStore(shut={"insert"})
    pool = await make_pool(store)
    first = pool.post("early", "x", 1, 60)
    await store.reached()
    batch = asyncio.create_task(new_handlers(pool).post(batch_of(500)))
    await asyncio.sleep(0)
    batch.cancel()
    await asyncio.gather(batch, return_exceptions=True)
    store.open()
    await first
    await pool.drain(5)
    assert len(store.data.documents) == 1
