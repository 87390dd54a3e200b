"""Benchmark the service against what one would write instead. Run by `scripts/bench`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench import budget
from tests.bench.measurements import (
    MEASUREMENTS,
    Bench,
    Progress,
    Scale,
    started_mongod,
)
from tests.bench.report import machine, tables, write_document
from tests.bench.results import Results
from tests.support.ending import ended_by_signals

FULL = Scale(rounds=5, seconds=3, rate_seconds=20, messages=5_000_000)
SHORT = Scale(rounds=1, seconds=1, rate_seconds=2, messages=20_000)

#: Measured only by name: decisions that were taken, figures of docs/capacity.md, and a profile.
_BY_NAME = ("processes", "shards", "costs", "model", "budget")


async def measure(names: Sequence[str], scale: Scale, on: Progress) -> Results:
    """Start a mongod and take these measurements."""
    async with started_mongod() as (uri, mongod):
        bench = Bench(uri, mongod, scale, on)
        for name in names:
            await MEASUREMENTS[name](bench)
    return bench.results


class _Bar:
    """A progress bar on a terminal, lines elsewhere."""

    _WIDTH = 24

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, what: str, done: int, of: int) -> None:
        if self._is_terminal:
            filled = self._WIDTH * done // of
            bar = "█" * filled + "·" * (self._WIDTH - filled)
            sys.stderr.write(f"\r\x1b[K{bar} {done:,} of {of:,}  {what}")
        elif of < 1000:
            sys.stderr.write(f"{done + 1} of {of}  {what}\n")
        sys.stderr.flush()


def main() -> int:
    """Measure, print the tables, and write the requested files."""
    parser = argparse.ArgumentParser(
        "scripts/bench",
        description="Benchmark the service against what one would write instead.",
        epilog="A full run takes 15 minutes. docs/performance.md explains what is compared. "
        f"Measurements: {', '.join(MEASUREMENTS)}. Only --only takes the last {len(_BY_NAME)}.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        metavar="NAME",
        help="take only this measurement; may be repeated",
    )
    parser.add_argument(
        "--short", action="store_true", help="measure everything briefly; takes 2 minutes"
    )
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of each measurement (default {FULL.rounds})"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"seconds of each round (default {FULL.seconds})"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write all figures to this file, as JSON"
    )
    parser.add_argument(
        "--document",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="update the figures and plots of this document; may be repeated",
    )
    options = parser.parse_args()
    scale = SHORT if options.short else FULL
    scale = scale._replace(
        rounds=options.rounds or scale.rounds, seconds=options.seconds or scale.seconds
    )
    names = options.only or [name for name in MEASUREMENTS if name not in _BY_NAME]
    results = asyncio.run(measure(names, scale, _Bar()))
    if options.report:
        options.report.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    for document in options.document:
        write_document(document, results, scale)
    print(f"\n{machine(scale)}\n\n{tables(results, scale)}")
    if results.budgets:
        print(f"\n{budget.tables(results.budgets)}\n\n{budget.functions(results.budgets)}")
    return 0


if __name__ == "__main__":
    sys.exit(ended_by_signals(main))
