"""Bugs that are seeded into copies of the engine. The checker must find each one to be trusted.

Each is a `World` whose store, database, shard or client is wrong in one way, with the kinds of
violation that reveal it. The modules `tests.faults.*_bugs` have them, by guarantee; the
`tests.faults.test_seeded_*` files use them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tests.faults.checker import Verdict
from tests.faults.faulty_store import SimulatedStore
from tests.faults.simulated_clients import SimulatedClients
from tests.faults.simulated_replica_set import Database
from tests.faults.simulation import KINDS, World, run, schedule_of

#: The most schedules in which a bug must show.
SCHEDULES = 1000


class Bug(NamedTuple):
    """A seeded bug, and the kinds of violation of which one must show.

    `steps` are the kinds of steps that it takes to trigger the bug.
    """

    name: str
    world: type[World]
    kinds: frozenset[str]
    steps: Mapping[str, int] = KINDS


def detect(bug: Bug, schedules: int = SCHEDULES) -> int | None:
    """Return the seed of the first schedule in which the checker finds the bug, or None."""
    for seed in range(schedules):
        if run(schedule_of(seed, bug.steps), bug.world).kinds & bug.kinds:
            return seed
    return None


def with_store(store: type[SimulatedStore], world: type[World] = World) -> type[World]:
    """Return a world with another store."""
    return type("BuggyWorld", (world,), {"make_store": store})


def with_database(database: type[Database]) -> type[World]:
    """Return a world with another database."""
    return type("BuggyWorld", (World,), {"make_database": database})


class PatchedWorld(World):
    """A world with patched shards or queues."""

    async def run(self) -> Verdict:
        with self.patches():
            return await super().run()

    @contextmanager
    def patches(self) -> Iterator[None]:
        """Replace parts of the engine while the block runs."""
        yield


def bug(what: type, *kinds: str) -> Bug:
    """Return the bug that a class of the simulation has, and the kinds that reveal it."""
    world = what
    if issubclass(what, SimulatedStore):
        world = with_store(what)
    elif issubclass(what, Database):
        world = with_database(what)
    elif issubclass(what, SimulatedClients):
        world = type("BuggyWorld", (World,), {"make_clients": what})
    return Bug(what.__name__, world, frozenset(kinds))
