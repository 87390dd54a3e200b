"""A load generator for `scripts/bench`: put load on one service, and measure it.

It is a separate process, so that its cost does not count as the service's processor time:
`python -m tests.bench.generator '{"port": ...}' TOKEN`. It prints one JSON object. It uses the
generator of `chat load`, which is made for people and reports more.
"""

import gc
import math
import sys
import time

import msgspec
import uvloop

from chat_service.loadgen.generator import Load, LoadGenerator, Outcome

#: Printed once all connections are open and the load begins; the result follows.
READY = b"ready\n"


class Measured(msgspec.Struct, frozen=True):
    """The result. Times are in seconds; `errors` counts all statuses except 200 and 201."""

    requests: int
    errors: int
    seconds: float
    rate: float
    p50: float
    p90: float
    p99: float
    p999: float
    worst: float


async def run(load: Load, token: str) -> Measured:
    """Generate the load, with a token if it is not empty, and measure after the warm-up."""
    latencies: list[float] = []
    errors = 0
    start = end = math.inf
    in_time = 0

    def on(outcome: Outcome) -> None:
        nonlocal errors, in_time
        if not outcome.status:
            raise SystemExit("a connection was lost")
        if outcome.due >= start:
            latencies.append(outcome.at - outcome.due)
            errors += outcome.status not in (200, 201)
            in_time += outcome.at <= end

    press = LoadGenerator(load, on, token or None)
    await press.connect()
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    began = time.perf_counter()
    start = began + load.warm_up_s
    end = start + load.seconds
    await press.run(began, load.warm_up_s + load.seconds)
    await press.close()
    # At a fixed rate, requests that were due and came late count, too.
    count = len(latencies) if load.rate else in_time
    ranked = sorted(latencies[:count])

    def rank(share: float) -> float:
        return ranked[min(int(len(ranked) * share), len(ranked) - 1)] if ranked else math.nan

    return Measured(
        *(count, errors, load.seconds, count / load.seconds),
        *(rank(0.5), rank(0.9), rank(0.99), rank(0.999), ranked[-1] if ranked else math.nan),
    )


def main() -> int:
    """Run the load that the first argument describes. The second one is a token or empty."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    measured = uvloop.run(run(load, sys.argv[2]))
    sys.stdout.buffer.write(msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
