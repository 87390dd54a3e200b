"""The base of every fuzzer: numbered cases, each derived only from a seed and its number.

A fuzzer judges a few cases at a time, and returns a `Finding` for each case that broke a rule.
`tests.fuzz.running` runs fuzzers for some seconds, or repeats one case.
"""

import hashlib
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, NamedTuple

#: Seconds for which a finding may be shortened.
SHRINK_S = 20.0


class Case(NamedTuple):
    """One case of one fuzzer."""

    fuzzer: str
    seed: int
    number: int

    @property
    def rng(self) -> random.Random:
        """A new random generator, which yields the same values each time."""
        return random.Random(str(self))

    @property
    def tag(self) -> str:
        """A unique word for its inboxes. A mutation of another case is unlikely to produce it."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:10]

    def __str__(self) -> str:
        return f"{self.fuzzer}:{self.seed}:{self.number}"


class Finding(NamedTuple):
    """A case that broke a rule: which rule, and what was seen."""

    case: Case
    rule: str
    seen: str

    def __str__(self) -> str:
        lines = "\n".join(f"    {line}"[:2000] for line in self.seen.splitlines())
        return f"FOUND {self.rule}\n  replay: scripts/fuzz --replay {self.case}\n{lines}"


class Fuzzer(ABC):
    """Generates and judges cases. Use as an async context. `tally` counts what was reached."""

    name: ClassVar[str]
    #: How many cases are judged together.
    at_once: ClassVar[int]
    #: Its share of the time, relative to the others.
    share: ClassVar[int]

    def __init__(self, seed: int, mongo_uri: str) -> None:
        self.seed = seed
        self.mongo_uri = mongo_uri
        self.tally: Counter[str] = Counter()
        #: Whether findings are shortened as far as possible.
        self.shortens = True
        #: Stop a round after this many findings.
        self.enough = 5

    def case(self, number: int) -> Case:
        """Return the case with this number."""
        return Case(self.name, self.seed, number)

    async def __aenter__(self) -> "Fuzzer":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    @abstractmethod
    async def judge(self, cases: Sequence[Case]) -> list[Finding]:
        """Run these cases, and return their findings."""


async def shrink(data: bytes, is_found: Callable[[bytes], Awaitable[bool]]) -> bytes:
    """Return a shorter input that still shows the finding, by removing ever smaller pieces."""
    ends = time.monotonic() + SHRINK_S
    size = len(data) // 2
    while size:
        start = 0
        while start < len(data):
            if time.monotonic() > ends:
                return data
            shorter = data[:start] + data[start + size :]
            if await is_found(shorter):
                data = shorter
            else:
                start += size
        size //= 2
    return data
