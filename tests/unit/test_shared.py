"""Shared answers: concurrent requests get one answer, which is computed at a limited rate."""

import asyncio

import pytest

from chat_service.api.shared_answers import Pace, Shared


class Maker:
    """Makes increasing numbers, each when the test allows it."""

    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.made += 1
        number = self.made
        await self.go.wait()
        return number


async def test_all_who_ask_meanwhile_get_the_same() -> None:
    maker = Maker()
    shared = Shared(maker, 60)
    asking = [asyncio.create_task(shared.get()) for _ in range(10)]
    await asyncio.sleep(0)
    maker.go.set()
    assert await asyncio.gather(*asking) == [1] * 10
    assert await shared.get() == 1
    assert maker.made == 1


async def test_an_asker_that_goes_away_takes_nothing_from_others() -> None:
    maker = Maker()
    shared = Shared(maker, 60)
    first, second = (asyncio.create_task(shared.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait((first,))
    assert first.cancelled()
    maker.go.set()
    assert await second == 1
    assert maker.made == 1


async def test_an_old_answer_is_renewed() -> None:
    maker = Maker()
    maker.go.set()
    shared = Shared(maker, 0)
    assert [await shared.get() for _ in range(3)] == [1, 2, 3]


async def test_however_long_it_takes_one_is_made_at_a_time() -> None:
    maker = Maker()
    shared = Shared(maker, 0)
    asking = []
    for _ in range(3):
        asking.append(asyncio.create_task(shared.get()))
        await asyncio.sleep(0.001)
    maker.go.set()
    assert await asyncio.gather(*asking) == [1, 1, 1]


async def test_all_who_ask_get_the_same_error() -> None:
    async def fail() -> int:
        raise ValueError("no")

    shared = Shared(fail, 60)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await shared.get()


async def test_an_unfinished_answer_ends_with_its_owner() -> None:
    shared = Shared(Maker(), 60)
    asking = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    await shared.close()
    await asyncio.wait((asking,))
    assert asking.cancelled()
    await Shared(Maker(), 60).close()


async def test_those_beyond_the_pace_wait_and_then_go_on() -> None:
    pace = Pace(3, 0.3)
    asking = [asyncio.create_task(pace.turn()) for _ in range(5)]
    await asyncio.sleep(0)
    assert [each.done() for each in asking] == [True, True, True, False, False]
    await asyncio.gather(*asking)


async def test_one_that_asks_now_and_then_never_waits() -> None:
    pace = Pace(1, 0.01)
    for _ in range(5):
        asking = asyncio.create_task(pace.turn())
        await asyncio.sleep(0)
        assert asking.done()
        await asyncio.sleep(0.02)
