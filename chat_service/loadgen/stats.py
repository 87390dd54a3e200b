"""Counts the outcomes of a load test: latencies, errors, and requests in each second."""

import math
from collections import Counter
from dataclasses import dataclass, field

from chat_service.loadgen.generator import Outcome

#: Each class of latencies is wider than the one before by the factor exp(1/50), two percent.
_STEPS = 50
_LEAST_S = 1e-6


class Latencies:
    """A histogram of latencies with a precision of two percent, in constant memory."""

    def __init__(self) -> None:
        self.classes: Counter[int] = Counter()
        self.count = 0
        self.worst_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one latency."""
        self.classes[int(math.log(max(seconds, _LEAST_S) / _LEAST_S) * _STEPS)] += 1
        self.count += 1
        self.worst_s = max(self.worst_s, seconds)

    def rank_ms(self, share: float) -> float:
        """Return the latency that this share of all did not exceed, in ms; 0 if there are none."""
        left = share * self.count
        for each in sorted(self.classes):
            left -= self.classes[each]
            if left <= 0:
                return min(_LEAST_S * math.exp((each + 1) / _STEPS), self.worst_s) * 1000
        return self.worst_s * 1000

    def between(self, low_ms: float, high_ms: float) -> int:
        """Return how many latencies lie from `low_ms` to below `high_ms`."""
        return sum(
            count
            for each, count in self.classes.items()
            if low_ms <= _LEAST_S * math.exp((each + 0.5) / _STEPS) * 1000 < high_ms
        )


@dataclass
class Second:
    """The requests that were answered in one second."""

    latencies: Latencies = field(default_factory=Latencies)
    errors: int = 0


@dataclass
class LoadStats:
    """The counts of a load test. `began` is a time of `time.perf_counter`."""

    began: float
    all: Latencies = field(default_factory=Latencies)
    seconds: list[Second] = field(default_factory=list)
    #: Errors by status; 0 if the connection was lost before the answer.
    errors: Counter[int] = field(default_factory=Counter)
    accepted: int = 0
    read: int = 0
    #: Messages that were read at the end to empty the inboxes.
    swept: int = 0
    is_sweeping: bool = False

    def count(self, outcome: Outcome) -> None:
        """Count the outcome of a request."""
        status = outcome.status
        messages = outcome.answer.count(b'"id":"') if status == 200 else 0
        if self.is_sweeping:
            self.swept += messages
            if status == 201:
                # A post from before the sweep, answered late.
                self.accepted += 1
            elif status != 200:
                self.errors[status] += 1
            return
        now = int(outcome.at - self.began)
        while len(self.seconds) <= now:
            self.seconds.append(Second())
        second = self.seconds[now]
        for latencies in (self.all, second.latencies):
            latencies.add(outcome.at - outcome.due)
        self.read += messages
        if status == 201:
            self.accepted += 1
        elif status != 200:
            self.errors[status] += 1
            second.errors += 1

    @property
    def missing(self) -> int:
        """Return how many accepted messages were not read. Lost confirmations make it negative."""
        return self.accepted - self.read - self.swept
