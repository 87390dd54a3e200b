"""The circuit breaker opens only if the database does not answer."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from workers.circuit_breaker import FAILURES, CircuitBreaker
from workers.errors import IndexMissing, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.loop_lag import LoopLag
from workers.maintenance import WATCH_EVERY_S
from workers.metrics import WorkerMetrics

UNAVAILABLE = StoreUnavailable("no primary", is_unavailable=True)


@pytest.fixture
def breaker(metrics: WorkerMetrics) -> CircuitBreaker:
    """A breaker on a monitored event loop."""
    return CircuitBreaker(metrics, LoopLag(WATCH_EVERY_S))


async def run_loop(breaker: CircuitBreaker, seconds: float) -> None:
    """Let the loop run for this many seconds, monitored as in the pool."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        breaker.lag.tick()
        await asyncio.sleep(0.01)


async def test_an_unavailable_database_opens_the_breaker(breaker: CircuitBreaker) -> None:
    begun = breaker.lag.mark()
    await run_loop(breaker, 0.3)
    breaker.observe(UNAVAILABLE, begun)
    assert breaker.is_open


async def test_missing_answers_open_the_breaker(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        assert not breaker.is_open
        begun = breaker.lag.mark()
        await run_loop(breaker, 0.1)
        breaker.observe(OutcomeUnknown("no answer"), begun)
    assert breaker.is_open


@pytest.mark.parametrize("failure", [UNAVAILABLE, OutcomeUnknown("no answer")])
@pytest.mark.parametrize("is_heard_first", [True, False])
async def test_a_blocked_loop_does_not_open_the_breaker(
    breaker: CircuitBreaker, failure: ServiceError, is_heard_first: bool
) -> None:
    """The loop may process the timeout or the tick first."""
    for _ in range(FAILURES + 1):
        await run_loop(breaker, 0.05)
        begun = breaker.lag.mark()
        time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
        if not is_heard_first:
            breaker.lag.tick()
        breaker.observe(failure, begun)
    assert not breaker.is_open


async def test_a_stall_before_an_operation_is_no_excuse(breaker: CircuitBreaker) -> None:
    time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
    begun = breaker.lag.mark()
    await run_loop(breaker, 0.3)
    breaker.observe(UNAVAILABLE, begun)
    assert breaker.is_open


async def test_an_idle_loop_does_not_count_as_blocked(breaker: CircuitBreaker) -> None:
    breaker.lag.tick()
    breaker.lag.rest()
    await asyncio.sleep(0.3)
    begun = breaker.lag.mark()
    breaker.lag.tick()
    await run_loop(breaker, 0.3)
    breaker.observe(UNAVAILABLE, begun)
    assert breaker.is_open


async def test_a_stall_does_not_reset_earlier_failures(
    breaker: CircuitBreaker, registry: CollectorRegistry
) -> None:
    for _ in range(FAILURES - 1):
        begun = breaker.lag.mark()
        await run_loop(breaker, 0.1)
        breaker.observe(OutcomeUnknown("no answer"), begun)
    begun = breaker.lag.mark()
    time.sleep(0.5)  # noqa: ASYNC251 - the loop is really stalled
    breaker.observe(OutcomeUnknown("no answer"), begun)
    assert not breaker.is_open
    begun = breaker.lag.mark()
    await run_loop(breaker, 0.1)
    breaker.observe(OutcomeUnknown("no answer"), begun)
    assert breaker.is_open
    assert registry.get_sample_value("chat_database_away") == 1


async def test_a_missing_index_does_not_open_the_breaker(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES + 1):
        breaker.observe(IndexMissing("no index"), breaker.lag.mark())
    assert not breaker.is_open
