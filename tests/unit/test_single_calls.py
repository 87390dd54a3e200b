"""Single-call commands beside the batches: bounded, in turn, and all of them answered."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from tests.support.waiting import eventually
from workers import single_calls
from workers.commands import Track
from workers.errors import Overloaded
from workers.metrics import WorkerMetrics
from workers.single_calls import SingleCalls
from workers.work_item import WorkItem


class Calls:
    """Commands that are answered when the test allows it."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self.started: list[WorkItem] = []
        self.may_end = asyncio.Event()
        self.calls = SingleCalls(self._carry_out, metrics)

    async def _carry_out(self, item: WorkItem) -> None:
        self.started.append(item)
        await self.may_end.wait()
        item.resolve(None)

    def submit(self) -> WorkItem:
        """Submit a command of one client."""
        loop = asyncio.get_running_loop()
        item = WorkItem(Track("a" * 32, "r"), 0, loop.time() + 60, loop.create_future())
        self.calls.submit([item])
        return item


async def test_a_command_without_room_to_wait_is_refused(
    metrics: WorkerMetrics, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_calls, "PLACES", 1)
    monkeypatch.setattr(single_calls, "WAITING_MAX", 1)
    calls = Calls(metrics)
    first, waiting, refused = calls.submit(), calls.submit(), calls.submit()
    assert isinstance(refused.future.exception(), Overloaded)
    refusals = {"reason": "overloaded"}
    assert registry.get_sample_value("chat_requests_refused_total", refusals) == 1
    calls.may_end.set()
    assert [await first.future, await waiting.future] == [None, None]


async def test_a_command_whose_client_left_is_never_sent(
    metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_calls, "PLACES", 1)
    calls = Calls(metrics)
    first, left, last = calls.submit(), calls.submit(), calls.submit()
    left.future.cancel()
    calls.may_end.set()
    await last.future
    assert calls.started == [first, last]


async def test_a_finish_waits_for_every_command(metrics: WorkerMetrics) -> None:
    calls = Calls(metrics)
    items = [calls.submit() for _ in range(3)]
    finishing = asyncio.create_task(calls.calls.finish())

    async def all_are_started() -> bool:
        return len(calls.started) == 3

    await eventually(all_are_started)
    assert not finishing.done()
    calls.may_end.set()
    await finishing
    assert all(item.future.done() for item in items)
    assert not list(calls.calls.in_flight)
