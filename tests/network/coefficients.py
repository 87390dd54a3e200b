"""How many round trips a lone request waits for: measured on hosts, as root.

usage: python -m tests.network.coefficients [--checkout FOLDER] [--times N]

Prints for each kind of request a and b of its latency a*c + b*m, where c is the round trip between
node and primary, and m the one between members. Takes about a minute. `--checkout` measures the
service of another checkout.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import NamedTuple

from config.settings import PROJECT_ROOT
from tests.network.fleet import Fleet
from tests.network.hosts import missing
from tests.support.code_path import code_path
from tests.support.load import Connection

#: The round trips that are measured, in seconds: each of them to the primary, with each between the
#: members.
ROUND_TRIPS_S = (0.01, 0.05)
#: The round trips that each kind of request may wait for: a and b, with this tolerance.
GOALS: Mapping[str, tuple[int, int]] = {
    "post": (1, 2),
    "read with messages": (2, 2),
    "empty read": (1, 2),
}
TOLERANCE = 0.2


class Sample(NamedTuple):
    """The median latency of a kind of request with these round trips, in seconds."""

    primary_s: float
    members_s: float
    latency_s: float


async def measure(checkout: Path, times: int) -> dict[str, list[Sample]]:
    """Return the samples of each kind of request, each of so many requests."""
    samples: dict[str, list[Sample]] = {kind: [] for kind in GOALS}
    with tempfile.TemporaryDirectory(prefix="coefficients-") as folder:
        async with Fleet(Path(folder), nodes=1) as fleet:
            with fleet.server(0, PYTHONPATH=code_path(checkout)) as server:
                host, port = server.address
                client = await Connection.open(port, host)
                for primary_s, members_s in itertools.product(ROUND_TRIPS_S, repeat=2):
                    fleet.delay_nodes(primary_s / 2)
                    fleet.delay_members(members_s / 2)
                    for kind, latency_s in (await _latencies(client, times)).items():
                        samples[kind].append(Sample(primary_s, members_s, latency_s))
                client.close()
    return samples


async def _latencies(client: Connection, times: int) -> dict[str, float]:
    """Return the median latency of each kind of request, one request at a time, in seconds."""
    took: dict[str, list[float]] = {kind: [] for kind in GOALS}

    async def timed(kind: str, request: Awaitable[object]) -> object:
        began = time.perf_counter()
        answer = await request
        took[kind].append(time.perf_counter() - began)
        return answer

    # The first one may still meet what was sent with the earlier delays.
    for number in range(times + 1):
        inbox = f"inbox-{number}"
        await timed("post", client.post(inbox, "hello"))
        assert await timed("read with messages", client.read(inbox))
        assert not await timed("empty read", client.read(inbox))
    return {kind: statistics.median(values[1:]) for kind, values in took.items()}


def fit(samples: list[Sample]) -> tuple[float, float]:
    """Return a and b by least squares.

    Each round trip to the primary is combined with each between the members, so one does not
    depend on the other, and a fit for each alone is the fit for both.
    """
    latencies = [sample.latency_s for sample in samples]
    a = statistics.linear_regression([sample.primary_s for sample in samples], latencies)
    b = statistics.linear_regression([sample.members_s for sample in samples], latencies)
    return a.slope, b.slope


def main() -> int:
    """Print the coefficients. Return 1 if one exceeds its goal."""
    parser = argparse.ArgumentParser("python -m tests.network.coefficients")
    parser.add_argument("--checkout", type=Path, default=PROJECT_ROOT)
    parser.add_argument("--times", type=int, default=15, help="requests of each kind and delay")
    options = parser.parse_args()
    if lacks := missing():
        sys.exit(f"this needs {lacks}")
    is_met = True
    samples = asyncio.run(measure(options.checkout.resolve(), options.times))
    for kind, goal in GOALS.items():
        a, b = fit(samples[kind])
        is_good = a <= goal[0] + TOLERANCE and b <= goal[1] + TOLERANCE
        is_met = is_met and is_good
        print(f"{kind}: {a:.2f}c + {b:.2f}m, goal {goal[0]}c + {goal[1]}m", end="")
        print("" if is_good else " MISSED")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
