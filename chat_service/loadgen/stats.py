"""Counts what `chat load` is told: how many, how soon, second by second, and what of it failed."""

import math
from collections import Counter
from dataclasses import dataclass, field

from chat_service.loadgen.generator import Outcome

#: A step between two classes of latency is a fiftieth part: two percent.
_STEPS = 50
_LEAST_S = 1e-6


class Latencies:
    """How often each latency occurred, to two percent; it costs the same however many there are."""

    def __init__(self) -> None:
        self.classes: Counter[int] = Counter()
        self.count = 0
        self.worst_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.classes[int(math.log(max(seconds, _LEAST_S) / _LEAST_S) * _STEPS)] += 1
        self.count += 1
        self.worst_s = max(self.worst_s, seconds)

    def rank_ms(self, share: float) -> float:
        """The latency that this share of all did not exceed, in ms; 0 where there are none."""
        left = share * self.count
        for each in sorted(self.classes):
            left -= self.classes[each]
            if left <= 0:
                return min(_LEAST_S * math.exp((each + 1) / _STEPS), self.worst_s) * 1000
        return self.worst_s * 1000

    def between(self, low_ms: float, high_ms: float) -> int:
        """How many lie in a span of ms, the lower bound included."""
        return sum(
            count
            for each, count in self.classes.items()
            if low_ms <= _LEAST_S * math.exp((each + 0.5) / _STEPS) * 1000 < high_ms
        )


@dataclass
class Second:
    """What was answered in one second."""

    latencies: Latencies = field(default_factory=Latencies)
    errors: int = 0


@dataclass
class LoadStats:
    """All of a load. `began` is a moment of `time.perf_counter`."""

    began: float
    all: Latencies = field(default_factory=Latencies)
    seconds: list[Second] = field(default_factory=list)
    #: By status; 0: the connection was lost before the answer.
    errors: Counter[int] = field(default_factory=Counter)
    accepted: int = 0
    read: int = 0
    #: Taken at the end, so that nothing is left in the inboxes.
    swept: int = 0
    is_sweeping: bool = False

    def count(self, outcome: Outcome) -> None:
        """Count a request's outcome."""
        status = outcome.status
        messages = outcome.answer.count(b'"id":"') if status == 200 else 0
        if self.is_sweeping:
            self.swept += messages
            if status == 201:
                # It was posted before, and is answered late.
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
        """Messages that were accepted and have not been seen."""
        return self.accepted - self.read - self.swept
