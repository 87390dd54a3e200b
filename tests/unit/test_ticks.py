"""Periodic jobs of a process run at common times."""

import asyncio

import pytest

from workers.ticks import until_next


@pytest.mark.parametrize("period_s", [0.25, 0.5, 1.0, 2.0])
async def test_jobs_with_one_period_end_their_pauses_together(period_s: float) -> None:
    loop = asyncio.get_running_loop()
    wait_s = until_next(period_s)
    assert 0 < wait_s <= period_s + 0.002
    part = (loop.time() + wait_s) / period_s
    assert part == pytest.approx(round(part), abs=0.01)


@pytest.mark.parametrize("early_s", [0.0, 1e-18, 1e-9, 1e-3])
async def test_no_multiple_is_used_twice(monkeypatch: pytest.MonkeyPatch, early_s: float) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 8.0 - early_s)
    assert until_next(0.5) == pytest.approx(0.5, abs=0.002)
