"""The breaker opens for a database that does not answer, and for nothing else."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from workers.circuit_breaker import FAILURES, CircuitBreaker
from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.loop_lag import LoopLag
from workers.maintenance import WATCH_EVERY_S
from workers.metrics import WorkerMetrics

AWAY = StoreUnavailable("no primary", is_unavailable=True)


@pytest.fixture
def breaker(metrics: WorkerMetrics) -> CircuitBreaker:
    """A breaker on a loop that is watched."""
    return CircuitBreaker(metrics, LoopLag(WATCH_EVERY_S))


async def turn(breaker: CircuitBreaker, seconds: float) -> None:
    """Have the loop turn for so long, watched as the pool watches it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        breaker.lag.tick()
        await asyncio.sleep(0.01)


async def test_a_database_that_is_away_opens_it(breaker: CircuitBreaker) -> None:
    begun = breaker.lag.mark()
    await turn(breaker, 0.3)
    breaker.observe(AWAY, begun)
    assert breaker.is_open


async def test_answers_that_stay_away_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        assert not breaker.is_open
        begun = breaker.lag.mark()
        await turn(breaker, 0.1)
        breaker.observe(OutcomeUnknown("no answer"), begun)
    assert breaker.is_open


@pytest.mark.parametrize("failure", [AWAY, OutcomeUnknown("no answer")])
@pytest.mark.parametrize("is_heard_first", [True, False])
async def test_a_loop_that_stood_still_does_not_open_it(
    breaker: CircuitBreaker, failure: ServiceError, is_heard_first: bool
) -> None:
    """Whether the timeout or the tick is the first that the loop runs afterwards."""
    for _ in range(FAILURES + 1):
        await turn(breaker, 0.05)
        begun = breaker.lag.mark()
        time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
        if not is_heard_first:
            breaker.lag.tick()
        breaker.observe(failure, begun)
    assert not breaker.is_open


async def test_a_stall_before_an_operation_excuses_nothing(breaker: CircuitBreaker) -> None:
    time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
    begun = breaker.lag.mark()
    await turn(breaker, 0.3)
    breaker.observe(AWAY, begun)
    assert breaker.is_open


async def test_a_stall_hides_no_failures_before_it(
    breaker: CircuitBreaker, registry: CollectorRegistry
) -> None:
    for _ in range(FAILURES - 1):
        begun = breaker.lag.mark()
        await turn(breaker, 0.1)
        breaker.observe(OutcomeUnknown("no answer"), begun)
    begun = breaker.lag.mark()
    time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
    breaker.observe(OutcomeUnknown("no answer"), begun)
    assert not breaker.is_open
    begun = breaker.lag.mark()
    await turn(breaker, 0.1)
    breaker.observe(OutcomeUnknown("no answer"), begun)
    assert breaker.is_open
    assert registry.get_sample_value("chat_database_away") == 1


async def test_a_missing_index_does_not_open_it(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES + 1):
        breaker.observe(IndexMissing("no index"), breaker.lag.mark())
    assert not breaker.is_open
