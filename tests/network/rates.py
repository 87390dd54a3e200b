"""The rate of several checkouts over a network, in alternating rounds: measured on hosts, as root.

usage: python -m tests.network.rates CHECKOUT [CHECKOUT ...] [--rtt MS] [--members-rtt MS]
       [--members N] [--connections N] [--rounds N] [--seconds S]

Each checkout's service runs on the same node with a database of its own. A load generator on that
node sends half posts and half reads of 1,000 inboxes in a closed loop. Prints the rate and the
processor time of the service for each request, and both relative to the first checkout in the same
round: the medians of the rounds.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec

from chat_service.loadgen.generator import Load
from tests.bench.contenders import processor_s
from tests.bench.generator import Measured
from tests.network.fleet import Fleet
from tests.network.hosts import Host, missing
from tests.support.code_path import CODE_PATH, code_path
from tests.support.server import Server

_PAUSE_S = 0.3


class Round(NamedTuple):
    """A checkout's requests per second in one round, and its processor time for each, in µs."""

    rate: float
    processor_us: float


async def measure(options: argparse.Namespace) -> list[list[Round]]:
    """Return the rounds of each checkout."""
    rounds: list[list[Round]] = [[] for _ in options.checkouts]
    with tempfile.TemporaryDirectory(prefix="rates-") as folder:
        async with Fleet(Path(folder), members=options.members, nodes=1) as fleet:
            host = fleet.network.host(fleet.nodes[0])
            with ExitStack() as stack:
                servers = [
                    stack.enter_context(
                        fleet.server(
                            0,
                            PYTHONPATH=code_path(checkout.resolve()),
                            CHAT_MONGO_DATABASE=f"rate{n}",
                        )
                    )
                    for n, checkout in enumerate(options.checkouts)
                ]
                fleet.delay_nodes(options.rtt / 2000)
                fleet.delay_members(options.members_rtt / 2000)
                for number in range(options.rounds):
                    for server, results in zip(servers, rounds, strict=True):
                        load = Load(
                            *(server.port, options.connections, options.seconds),
                            host=host.address,
                            seed=number,
                        )
                        results.append(_run(load, server, host))
                        await asyncio.sleep(_PAUSE_S)
    return rounds


def _run(load: Load, server: Server, host: Host) -> Round:
    used_s = _used_s(server)
    done = subprocess.run(
        [
            *(*host.prefix, "env", f"PYTHONPATH={CODE_PATH}", sys.executable, "-P"),
            *("-m", "tests.bench.generator", msgspec.json.encode(load).decode(), ""),
        ],
        check=True,
        stdout=subprocess.PIPE,
    )
    used_s = _used_s(server) - used_s
    measured = msgspec.json.decode(done.stdout.partition(b"\n")[2], type=Measured)
    if measured.errors:
        raise RuntimeError(f"{measured.errors} requests failed")
    # The warm-up, too, has used processor time.
    requests = measured.rate * (load.warm_up_s + load.seconds)
    return Round(measured.rate, used_s / requests * 1e6)


def _used_s(server: Server) -> float:
    """Return the processor time that a service has used so far, in seconds."""
    return sum(map(processor_s, (server.process.pid, *server.members())))


def main() -> None:
    """Print a line for each checkout."""
    parser = argparse.ArgumentParser("python -m tests.network.rates")
    parser.add_argument("checkouts", type=Path, nargs="+", metavar="CHECKOUT")
    parser.add_argument("--rtt", type=float, default=20, help="ms between node and primary")
    parser.add_argument("--members-rtt", type=float, default=1, help="ms between members")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    if lacks := missing():
        sys.exit(f"this needs {lacks}")
    rounds = asyncio.run(measure(options))
    for checkout, results in zip(options.checkouts, rounds, strict=True):
        rate, cost = (statistics.median(figures) for figures in zip(*results, strict=True))
        pairs = list(zip(results, rounds[0], strict=True))
        faster = statistics.median(a.rate / b.rate for a, b in pairs)
        dearer = statistics.median(a.processor_us / b.processor_us for a, b in pairs)
        print(f"{checkout}: {rate:.0f}/s ({faster:.2f}), {cost:.0f} µs each ({dearer:.2f})")


if __name__ == "__main__":
    main()
