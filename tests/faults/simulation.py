"""The engine on a virtual clock, over a store that fails. A seed determines every run.

    python -m tests.faults.simulation [--schedules N] [--seed SEED] [--jobs N]

Runs the real pool, queues, shards, circuit breaker, waiters and claim rollback. Only the loop's
clock and the database are simulated, by `tests.faults.simulated_replica_set`, and the store, by
`tests.faults.faulty_store`. Nodes are killed, and their clocks differ. The clients are those of
`tests.faults.simulated_clients`; `tests.faults.checker` judges what they saw.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog
from prometheus_client import CollectorRegistry

from tests.faults.checker import Verdict, check
from tests.faults.faulty_calls import HANG_MAX_S, LATE_MAX_S
from tests.faults.faulty_store import SimulatedStore
from tests.faults.history import History
from tests.faults.simulated_clients import KILLED, SimulatedClients
from tests.faults.simulated_replica_set import EPOCH_S, Database, VirtualLoop
from workers.clock import DatabaseClock
from workers.dead_letters import DeadLetters
from workers.ids import IdSource
from workers.inbox_quotas import QuotaLimits
from workers.maintenance import EXPIRE_EVERY_S, LEASES_EVERY_S
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits
from workers.store.base import LEADER_LEASE_S

USERS = ("ann", "bob", "cy")
DEADLINE_S = 1.0
#: The longest interval between two batches of a lane, in seconds.
INTERVAL_S = 0.02
#: The most that a node's clock is wrong, in seconds. The checker tolerates lateness below that.
SKEW_S = 0.05
#: The longest time from a message's due time until it can be read, and until a node leads after a
#: fault, in seconds.
DUE_S = LEASES_EVERY_S[1] + 0.2
_LEAD_S = LEADER_LEASE_S + 2.0
#: Seconds after a failover or a kill in which requests may take longer.
_RECOVERY_S = 2.0
#: The longest time that any client takes, in seconds.
_LONGEST_S = 60.0
#: Seconds without faults at the end, until every outcome is known: late commands have arrived, a
#: node leads, and maintenance has run.
_HEAL_S = HANG_MAX_S + LATE_MAX_S + LEADER_LEASE_S + 2 * EXPIRE_EVERY_S


class Step(NamedTuple):
    """One event, `after_s` after the previous one: a request for a user, or a fault of a node."""

    after_s: float
    what: str
    user: str
    node: int
    number: int


class Schedule(NamedTuple):
    """Everything that is random in a run: the steps, the share of failing calls, and the seed of
    the faults.
    """

    steps: tuple[Step, ...]
    fault_rate: float
    seed: int
    #: How often a message is delivered before it becomes a dead letter; 0 for no limit.
    max_deliveries: int = 0


#: Relative frequency of each kind of step.
KINDS = {
    "post": 40,
    "keyed post": 8,
    "scheduled post": 10,
    "scheduled keyed post": 3,
    "read": 14,
    "limited read": 4,
    "abandoned read": 5,
    "long poll": 10,
    "limited long poll": 3,
    "abandoned long poll": 3,
    "keyed read": 8,
    "lease": 12,
    "abandoned lease": 3,
    "dead letter lease": 4,
    "dead letter read": 3,
    "stream": 5,
    "track": 5,
    "revoke": 5,
    "count": 2,
    "kill": 1,
    "failover": 3,
    "outage": 3,
    "clock skew": 2,
}


#: Pauses between steps in seconds: nearly none, longer ones, or both.
_PAUSES_S = (
    (0.0, 0.001, 0.01, 0.01, 0.1),
    (0.0, 0.01, 0.4, 0.8),
    (0.0, 0.0, 0.001, 0.01, 0.1, 0.4),
)


def schedule_of(seed: int, kinds: Mapping[str, int] = KINDS) -> Schedule:
    """Return the schedule of a seed, with steps of these kinds."""
    rng = random.Random(seed)
    # Most schedules omit many kinds of steps, so that the others meet each other more often.
    share = rng.choice((0.15, 0.5))
    if kinds is KINDS:
        kinds = {
            kind: often for kind, often in KINDS.items() if kind == "post" or rng.random() < share
        }
    drawn = rng.choices(list(kinds), list(kinds.values()), k=rng.randint(3, 60))
    # Requests for one inbox meet each other; those for several inboxes meet in a batch.
    users = rng.choice((USERS, USERS[:1]))
    pauses_s = rng.choice(_PAUSES_S)
    steps = tuple(
        Step(
            rng.choice(pauses_s),
            kind,
            rng.choice(users),
            rng.randrange(2),
            rng.randint(0, 9),
        )
        for kind in drawn
    )
    return Schedule(steps, rng.choice((0.0, 0.1, 0.4)), seed, rng.choice((0, 1, 2, 3)))


class Node:
    """One process of the service."""

    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self.number = number
        self.skew_s = 0.0
        self.requests: dict[asyncio.Future[Any], None] = {}
        self.metrics = WorkerMetrics(CollectorRegistry())
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        world = self._world

        def read_clock() -> float:
            return EPOCH_S + world.loop.time() + self.skew_s

        clock = DatabaseClock(wall=read_clock, steady=read_clock)
        batch = ShardLimits(6, 1000, 4, DEADLINE_S)
        limits = PoolLimits(
            2,
            world.queue,
            batch,
            DEADLINE_S,
            20,
            quotas=world.quotas,
            batch_interval_s=INTERVAL_S,
        )
        before = asyncio.all_tasks()
        store = world.make_store(world.database)
        self.pool = world.make_pool(store, clock, limits, self.metrics)
        # Ids follow from the seed, too.
        self.pool._ids = IdSource(world.rng.randbytes)
        self.pool._maintenance.leadership._random = world.rng.random
        await self.pool.start()
        started = [task for task in asyncio.all_tasks() if task not in before]
        # Sorted, so that a seed gives the same order again.
        self._tasks = sorted(started, key=lambda task: task.get_name())

    async def kill(self) -> None:
        """Kill the node like SIGKILL: no request is answered, and nothing is cleaned up."""
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Requests that arrived meanwhile get no answer either.
        self._cut()
        await self.start()

    def _cut(self) -> None:
        requests, self.requests = self.requests, {}
        for request in requests:
            request.cancel(KILLED)

    async def stop(self) -> None:
        await self.pool.stop()


class World:
    """One run of a schedule. Seeded bugs replace the `make_` attributes."""

    make_store: Callable[[Database], SimulatedStore] = SimulatedStore
    make_pool: Callable[..., WorkerPool] = WorkerPool
    make_database: Callable[..., Database] = Database
    make_clients: Callable[..., SimulatedClients] = SimulatedClients
    queue = QueueLimits(50, 10_000, 20)
    quotas = QuotaLimits()

    def __init__(self, loop: VirtualLoop, schedule: Schedule) -> None:
        self.loop = loop
        self._schedule = schedule
        self.rng = random.Random(schedule.seed)
        self.database = self.make_database(loop, self.rng, schedule.fault_rate)
        self.nodes = [Node(self, number) for number in range(2)]
        dead_letters = DeadLetters(schedule.max_deliveries)
        self.history = History([], [], [], dead_letters=dead_letters)
        self.database.dead_letters = dead_letters
        self.clients = self.make_clients(loop, self.rng, self.nodes, self.history)

    async def run(self) -> Verdict:
        """Carry out every step, end all faults, read the remaining messages, and judge."""
        for node in self.nodes:
            await node.start()
        for step in self._schedule.steps:
            await asyncio.sleep(step.after_s)
            await self._do(step)
        await self.clients.end(_LONGEST_S)
        if self._schedule.fault_rate:
            self._disturb(0.0, self.loop.time())
        self.database.fault_rate = self.database.unavailable_until = 0.0
        await asyncio.sleep(_HEAL_S)
        for user in USERS:
            await self._drain(user)
            await self._drain(self.history.dead_letters.inbox_of(user))
        if not self.history.kills:
            self.history.sums = self._sums()
        for node in self.nodes:
            await node.stop()
        return check(
            self.history,
            late_s=2 * SKEW_S + 0.1,
            longest_s=DEADLINE_S + 0.2,
            release_s=4 * DEADLINE_S,
            due_s=DUE_S,
            lead_s=_LEAD_S,
        )

    async def _do(self, step: Step) -> None:
        node, now = self.nodes[step.node], self.loop.time()
        match step.what:
            case "kill":
                self.history.kills.append(now)
                self._disturb(now, now)
                await node.kill()
            case "failover":
                self._disturb(now, now)
                self.database.fail_over()
            case "outage":
                self.database.unavailable_until = now + step.number / 5
                self.database.is_cut_off = step.number % 2 == 0
                self._disturb(now, self.database.unavailable_until)
            case "clock skew":
                node.skew_s = (step.number - 4.5) / 4.5 * SKEW_S
            case _:
                self.clients.start(step.what, node, step.user, step.number)

    def _disturb(self, began: float, ended: float) -> None:
        self.history.faults.append((began, ended + _RECOVERY_S))

    def _sums(self) -> Counter[str]:
        """Return the fates that all nodes counted, and the number of pending messages."""
        sums: Counter[str] = Counter(pending=self.database.pending())
        for node in self.nodes:
            for fate, counter in node.metrics.lifecycle.items():
                sums[fate] += int(counter._value.get())
        return sums

    async def _drain(self, user: str) -> None:
        while True:
            last = await self.clients.read(self.nodes[0], user)
            assert last.outcome == "ok", last
            if last.is_all and not last.messages:
                return


def run(schedule: Schedule, world: type[World] = World) -> Verdict:
    """Run one schedule and judge it."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(world(loop, schedule).run())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def run_seeds(seeds: range) -> tuple[Counter[str], list[tuple[int, Verdict]]]:
    """Run the schedules of many seeds. Return the total counts, and the seeds that failed."""
    total: Counter[str] = Counter()
    failed = []
    with _silence():
        for seed in seeds:
            verdict = run(schedule_of(seed))
            total += verdict.counts
            if verdict.violations:
                failed.append((seed, verdict))
    return total, failed


@contextmanager
def _silence() -> Iterator[None]:
    """Log nothing below the level `critical`. Other tests of this process log again afterwards."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)


def main() -> int:
    """Run many schedules in several processes. Print the totals and every seed that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; the others follow it")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    began = time.monotonic()
    end = options.seed + options.schedules
    chunks = [range(at, min(at + 500, end)) for at in range(options.seed, end, 500)]
    total: Counter[str] = Counter()
    failures = 0
    with ProcessPoolExecutor(options.jobs) as executor:
        for counts, failed in executor.map(run_seeds, chunks):
            total += counts
            for seed, verdict in failed:
                failures += 1
                print(f"seed {seed}: {verdict.violations[0]}", flush=True)
    seconds = time.monotonic() - began
    print(f"{options.schedules} schedules in {seconds:.0f} s, {failures} failed")
    print(", ".join(f"{total[key]} {key}" for key in sorted(total)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
