"""What every fuzzer is: numbered cases, each made from a seed and its number alone.

A fuzzer judges a few cases at a time, and returns a `Finding` for each one that broke a rule.
`tests.fuzz.running` runs fuzzers for some seconds, or one case again.
"""

import hashlib
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, NamedTuple

#: How long a finding may be shortened for, in seconds.
SHRINK_S = 20.0


class Case(NamedTuple):
    """One case of one fuzzer: its generator of randomness, and a word that no other case has."""

    fuzzer: str
    seed: int
    number: int

    @property
    def rng(self) -> random.Random:
        """A new generator, which gives the same each time."""
        return random.Random(str(self))

    @property
    def tag(self) -> str:
        """A word for the names of its inboxes: no mutation of another case's word is likely."""
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
    """Makes and judges cases. Use as an async context; `tally` counts what was reached."""

    name: ClassVar[str]
    #: How many cases are judged together.
    at_once: ClassVar[int]
    #: Its part of the time, relative to the others'.
    share: ClassVar[int]

    def __init__(self, seed: int, mongo_uri: str) -> None:
        self.seed = seed
        self.mongo_uri = mongo_uri
        self.tally: Counter[str] = Counter()
        #: Whether what is found is made as short as it can be.
        self.shortens = True
        #: Findings of one round after which the others are left.
        self.enough = 5

    def case(self, number: int) -> Case:
        """The case of this number."""
        return Case(self.name, self.seed, number)

    async def __aenter__(self) -> "Fuzzer":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    @abstractmethod
    async def judge(self, cases: Sequence[Case]) -> list[Finding]:
        """Run these cases; what they found."""


async def shrink(data: bytes, is_found: Callable[[bytes], Awaitable[bool]]) -> bytes:
    """A shorter input that is still found, by leaving out ever smaller pieces, for some seconds."""
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
