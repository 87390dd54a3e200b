"""Run fuzzers for some seconds, or one case again, on a separate mongod."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tests.fuzz.access import PathsWithAccess
from tests.fuzz.decoders import Decoders
from tests.fuzz.fuzzer import Case, Finding, Fuzzer
from tests.fuzz.paths import Paths
from tests.fuzz.sockets import Sockets

FUZZERS: Sequence[type[Fuzzer]] = (Paths, PathsWithAccess, Sockets, Decoders)
#: The longest time, in seconds, that one round of cases takes even on a busy machine. A service
#: that blocks its loop forever would otherwise never be reported.
_HANGS_S = 300.0
#: Stop a fuzzer after this many findings, because they are mostly the same.
_FINDINGS_MAX = 5


class Result(NamedTuple):
    """The result of one fuzzer."""

    name: str
    cases: int
    seconds: float
    tally: dict[str, int]
    findings: list[Finding]

    def __str__(self) -> str:
        tally = ", ".join(f"{count} {what}" for what, count in sorted(self.tally.items()))
        rate = self.cases / max(self.seconds, 0.001)
        verdict = f"{len(self.findings)} FOUND" if self.findings else "nothing found"
        line = f"{self.name}: {self.cases} cases in {self.seconds:.0f} s ({rate:.0f}/s), {verdict}"
        return "\n".join([line, f"  {tally}", *(str(finding) for finding in self.findings)])


async def fuzz(
    kind: type[Fuzzer],
    seed: int,
    seconds: float,
    mongo_uri: str,
    *,
    findings_max: int = _FINDINGS_MAX,
    shortens: bool = True,
) -> Result:
    """Run the cases of one fuzzer in order until time is up."""
    fuzzer = kind(seed, mongo_uri)
    fuzzer.shortens, fuzzer.enough = shortens, findings_max
    began, number = time.monotonic(), 0
    findings: list[Finding] = []
    async with fuzzer:
        while time.monotonic() - began < seconds and len(findings) < findings_max:
            cases = [fuzzer.case(number + each) for each in range(kind.at_once)]
            number += len(cases)
            with _watched(f"{cases[0]} to {cases[-1].number}"):
                findings += await fuzzer.judge(cases)
    return Result(kind.name, number, time.monotonic() - began, dict(fuzzer.tally), findings)


async def replay(kind: type[Fuzzer], seed: int, number: int, mongo_uri: str) -> Result:
    """Run one case alone."""
    began = time.monotonic()
    async with kind(seed, mongo_uri) as fuzzer:
        case = Case(kind.name, seed, number)
        with _watched(str(case)):
            findings = await fuzzer.judge([case])
    return Result(kind.name, 1, time.monotonic() - began, dict(fuzzer.tally), findings)


def share_out(kinds: Sequence[type[Fuzzer]], seconds: float) -> dict[type[Fuzzer], float]:
    """Return the seconds that each fuzzer gets."""
    total = sum(kind.share for kind in kinds)
    return {kind: seconds * kind.share / total for kind in kinds}


@contextmanager
def _watched(what: str) -> Iterator[None]:
    """Exit the process if the block never ends, because a blocked loop cannot be cancelled."""

    def give_up() -> None:
        sys.stderr.write(f"FOUND a hang: {what}\n")
        sys.stderr.flush()
        os._exit(1)

    timer = threading.Timer(_HANGS_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
