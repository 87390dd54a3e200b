"""Generate requests, frames and bodies, and judge what the service makes of them.

usage: python -m tests.fuzz [--seconds N] [--seed S] [--only NAME ...] [--replay NAME:SEED:CASE]

Run by `scripts/fuzz`; `tests.fuzz.test_fuzz` runs a minute. Exits with 1 if it found something.
"""

import argparse
import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path

from config.log import configure_logging
from tests.fuzz.running import FUZZERS, Result, fuzz, replay, share_out
from tests.support.ending import ended_by_signals
from tests.support.mongod import running_mongod


def main() -> int:
    """Run the selected fuzzers. Print a line for each, and its findings."""
    kinds = {kind.name: kind for kind in FUZZERS}
    parser = argparse.ArgumentParser(
        "scripts/fuzz", description="Look for bugs with generated input."
    )
    parser.add_argument("--seconds", type=float, default=60, help="total duration (default 60)")
    parser.add_argument("--seed", type=int, help="seed of all cases; random by default")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=sorted(kinds),
        help=f"run only this fuzzer; may be repeated. One of: {', '.join(kinds)}",
    )
    parser.add_argument("--replay", metavar="NAME:SEED:CASE", help="run only this case")
    arguments = parser.parse_args()
    # Log errors only: refusals are expected here.
    configure_logging("error", "text")
    logging.getLogger("tornado").setLevel(logging.ERROR)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, running_mongod(Path(folder)) as uri:
        if arguments.replay:
            name, seed, number = arguments.replay.split(":")
            results.append(asyncio.run(replay(kinds[name], int(seed), int(number), uri)))
            print(results[-1], flush=True)
        else:
            seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
            print(f"seed {seed}", flush=True)
            chosen = [kinds[name] for name in arguments.only or kinds]
            for kind, seconds in share_out(chosen, arguments.seconds).items():
                results.append(asyncio.run(fuzz(kind, seed, seconds, uri)))
                print(results[-1], flush=True)
    return 1 if any(result.findings for result in results) else 0


if __name__ == "__main__":
    sys.exit(ended_by_signals(main))
