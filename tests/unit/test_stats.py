"""The counts and histograms of `chat load`."""

import random

import pytest

from chat_service.loadgen import report
from chat_service.loadgen.generator import Outcome
from chat_service.loadgen.stats import Latencies, LoadStats


def test_ranks_are_right_to_two_percent() -> None:
    rng = random.Random(7)
    seconds = sorted(rng.lognormvariate(-6, 1.5) for _ in range(5000))
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    for share in (0.1, 0.5, 0.9, 0.99, 0.999):
        exact_ms = seconds[int(share * len(seconds)) - 1] * 1000
        assert latencies.rank_ms(share) == pytest.approx(exact_ms, rel=0.021)
    assert latencies.rank_ms(1) == pytest.approx(seconds[-1] * 1000)
    assert Latencies().rank_ms(0.5) == 0


def outcome(status: int, messages: int, at: float) -> Outcome:
    """Return an answer with this many messages that took 10 ms."""
    return Outcome(status, b'{"text":"x","id":"1"}' * messages, at - 0.01, at)


def test_a_load_is_accounted_for_and_drawn_second_by_second() -> None:
    stats = LoadStats(began=100.0)
    for second in range(3):
        stats.count(outcome(201, 0, 100.5 + second))
        stats.count(outcome(201, 0, 100.6 + second))
        stats.count(outcome(200, 1, 100.7 + second))
    stats.count(outcome(503, 0, 102.8))
    stats.is_sweeping = True
    stats.count(outcome(200, 2, 103.5))
    assert (stats.accepted, stats.read, stats.swept, stats.missing) == (6, 3, 2, 1)
    drawn = "\n".join(report.report(stats, 3))
    assert "10 requests in 3.0 s: 3 per second" in drawn
    assert "accepted 6 = read 3 + read at the end 2 + missing 1" in drawn
    assert "errors with status 503: 1" in drawn
    assert "requests/s  ▇▇█  3 to 4" in drawn
    assert "█" * 40 in drawn
