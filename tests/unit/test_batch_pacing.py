"""The pace of batches: which start at once, and which wait for further requests."""

import asyncio

import pytest

from workers.batch_pacing import ENOUGH, FEW, FULL_RATE, SHARE, BatchPacing


class Pace:
    """A pacing, and the number of open requests that it is told."""

    def __init__(self, longest_s: float = 0.02) -> None:
        self.open = 0
        self.pacing = BatchPacing(longest_s, lambda: self.open)

    def arrive(self, requests: int = 1) -> None:
        for _ in range(requests):
            self.open += 1
            self.pacing.arrived()

    def answer(self, requests: int) -> None:
        # A lane looks when it may start a batch, here before the answers.
        self.pacing.missing(0)
        self.open -= requests


def test_the_interval_grows_with_the_rate() -> None:
    pacing = Pace().pacing
    assert pacing.interval(0.0) == 0
    intervals = []
    for second in range(1, 12):
        for _ in range(int(FULL_RATE / 5)):
            pacing.arrived()
        intervals.append(pacing.interval(float(second)))
    assert intervals == sorted(intervals)
    # An average over the last seconds, taken once a second, is more than the rate itself.
    assert 0.2 * 0.02 < intervals[-1] < 0.4 * 0.02
    for _ in range(int(FULL_RATE * 3)):
        pacing.arrived()
    assert pacing.interval(12.0) == 0.02
    assert pacing.interval(60.0) == pytest.approx(0)


def test_a_lone_client_never_waits() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.arrive()
        assert pace.pacing.missing(1) == 0
        pace.answer(1)


def test_a_batch_waits_for_requests_that_usually_come() -> None:
    pace = Pace()
    pace.arrive(12)
    pace.answer(12)
    pace.arrive()
    assert pace.pacing.missing(1) == FEW - 1
    pace.arrive(FEW - 1)
    assert pace.pacing.missing(FEW) == 0


def test_a_batch_is_larger_if_more_requests_are_open() -> None:
    pace = Pace()
    pace.arrive(60)
    pace.answer(60)
    pace.arrive(FEW)
    assert pace.pacing.missing(FEW) == int(60 * SHARE) - FEW


def test_a_batch_starts_once_all_clients_wait() -> None:
    pace = Pace()
    pace.arrive(12)
    pace.answer(4)
    assert pace.pacing.missing(1) > 0
    pace.arrive(4)
    # The other requests are in flight: nobody is left who could send one.
    assert pace.pacing.missing(1) == 0


def test_a_batch_with_many_requests_does_not_wait() -> None:
    pace = Pace()
    pace.arrive(10 * ENOUGH)
    pace.answer(10 * ENOUGH)
    pace.arrive(ENOUGH)
    assert pace.pacing.missing(ENOUGH) == 0
    assert pace.pacing.missing(ENOUGH - 1) == 1


def test_what_did_not_come_is_expected_less() -> None:
    pace = Pace()
    pace.arrive(100)
    pace.answer(100)
    pace.arrive()
    waits = 0
    while pace.pacing.missing(1):
        pace.pacing.waited()
        waits += 1
    assert 0 < waits < 20


async def test_a_wait_ends_with_the_missing_request() -> None:
    pace = Pace(longest_s=60.0)
    pace.arrive(300)
    pace.answer(300)
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(pace.pacing.wait(loop.time(), lambda: pace.open))
    await asyncio.sleep(0)
    for _ in range(ENOUGH - 1):
        pace.arrive()
        await asyncio.sleep(0)
        assert not waiting.done()
    pace.arrive()
    async with asyncio.timeout(5):
        await waiting


async def test_a_wait_ends_with_the_interval() -> None:
    pace = Pace(longest_s=0.01)
    pace.arrive(300)
    pace.answer(300)
    async with asyncio.timeout(5):
        await pace.pacing.wait(asyncio.get_running_loop().time(), lambda: 0)
    # It counts from the start of the last batch, which may be long ago.
    await pace.pacing.wait(0.0, lambda: 0)


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    pace = Pace(longest_s=60.0)
    pace.arrive(300)
    pace.answer(300)
    began = asyncio.get_running_loop().time()
    waits = [asyncio.create_task(pace.pacing.wait(began, lambda: 0)) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.gather(waits[0], return_exceptions=True)
    pace.arrive(ENOUGH)
    await asyncio.sleep(0)
    waits[1].cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert not pace.pacing._sleepers


async def test_without_an_interval_nothing_waits() -> None:
    pace = Pace(longest_s=0.0)
    pace.arrive(300)
    pace.answer(300)
    async with asyncio.timeout(5):
        await pace.pacing.wait(asyncio.get_running_loop().time(), lambda: 0)
