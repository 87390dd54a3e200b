"""The engine on a virtual clock: pools, shards and a store that errs, deterministic from a seed.

    python -m tests.faults.simulation [--schedules N] [--seed SEED] [--jobs N]

Runs the real pool, queues, shards, breaker and releases. Only the loop's clock and the store are
made: the store keeps the contract of `workers.store.base` and does everything that it allows. It
errs before it has applied a command, after, or in the middle; it hangs; a command given up comes
into force later; a failover rolls back what no majority has confirmed. Nodes are killed, their
clocks are off, clients leave. What the clients saw is judged by `tests.faults.checker`.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog
from prometheus_client import CollectorRegistry

from tests.faults.checker import Verdict, check
from tests.faults.history import Got, History, Outcome, Posted
from workers.clock import DatabaseClock
from workers.commands import Claim, Message, Post, Slice
from workers.errors import NotExecuted, OutcomeUnknown, ServiceError, StoreUnavailable
from workers.ids import IdSource
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits
from workers.store.base import Claimed, Found

T = TypeVar("T", str, int, Slice)

USERS = ("ann", "bob", "cy")
DEADLINE_S = 1.0
#: Clocks of nodes are off by at most this; what is late by less is not held against anybody.
SKEW_S = 0.05
#: Lives of messages in a schedule, in seconds: gone within it, at its end, or after it.
LIFETIMES_S = (1, 3, 600)
_EPOCH_S = 1_800_000_000.0
_HEAL_S = 3 * DEADLINE_S
_KILLED = "killed"


class Step(NamedTuple):
    """Something that happens `after_s` the step before: to a user, or to a node."""

    after_s: float
    what: str
    user: str
    node: int
    number: int


class Schedule(NamedTuple):
    """All that is random in a run: the steps, how often a call fails, and the faults' seed."""

    steps: tuple[Step, ...]
    fault_rate: float
    seed: int


#: How often each kind of step occurs.
_KINDS = {
    "post": 40,
    "read": 25,
    "read few": 6,
    "leave": 8,
    "count": 3,
    "kill": 2,
    "failover": 3,
    "away": 3,
    "skew": 2,
}


def schedule_of(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    kinds = rng.choices(list(_KINDS), list(_KINDS.values()), k=rng.randint(3, 40))
    steps = tuple(
        Step(
            rng.choice((0.0, 0.0, 0.001, 0.01, 0.1, 0.4)),
            kind,
            rng.choice(USERS),
            rng.randrange(2),
            rng.randint(0, 9),
        )
        for kind in kinds
    )
    return Schedule(steps, rng.choice((0.0, 0.1, 0.4)), seed)


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop without sockets, whose time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What the loop calls to wait."""
        assert timeout is not None, "everything waits for something that never comes"
        self._now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


@dataclass
class Stored:
    """A document."""

    post: Post
    unread: bool = True
    token: str = ""


@dataclass
class Database:
    """The replica set that all nodes share."""

    loop: VirtualLoop
    rng: random.Random
    fault_rate: float
    documents: dict[str, Stored] = field(default_factory=dict)
    away_until: float = 0.0
    term: int = 0
    #: How to take back what no majority has confirmed yet, oldest first.
    unconfirmed: list[Callable[[], None]] = field(default_factory=list)

    def now_ms(self) -> int:
        """Its own clock."""
        return int((_EPOCH_S + self.loop.time()) * 1000)

    def fail_over(self) -> None:
        """Another becomes primary, and has only what a majority has."""
        for undo in reversed(self.unconfirmed):
            undo()
        self.unconfirmed.clear()
        self.term += 1

    def insert(self, posts: Sequence[Post]) -> None:
        """Apply an insert; a document that is there stays as it is."""
        for post in posts:
            if post.id not in self.documents:
                self.documents[post.id] = Stored(post)
                self.unconfirmed.append(partial(self._forget, post.id))

    def _forget(self, message_id: str) -> None:
        del self.documents[message_id]

    def claim(self, claim: Claim, ids: Sequence[str]) -> None:
        """Apply an update that claims."""
        for each in ids:
            stored = self.documents.get(each)
            if stored is not None and self.is_claimable(stored, claim):
                self._change(stored, unread=False, token=claim.token)

    def is_claimable(self, stored: Stored, claim: Claim) -> bool:
        """The filter of that update."""
        return stored.unread and self.now_ms() < claim.until_ms

    def release(self, claim: Claim, ids: Sequence[str]) -> int:
        """Apply an update that gives back."""
        released = 0
        for each in ids:
            stored = self.documents.get(each)
            if stored is not None and stored.token == claim.token:
                self._change(stored, unread=True, token="")
                released += 1
        return released

    def _change(self, stored: Stored, unread: bool, token: str) -> None:
        before = (stored.unread, stored.token)
        stored.unread, stored.token = unread, token

        def undo() -> None:
            stored.unread, stored.token = before

        self.unconfirmed.append(undo)


class SimulatedStore:
    """A node's way to the database."""

    def __init__(self, database: Database, skew_s: Callable[[], float]) -> None:
        self._database = database
        self._rng = database.rng
        self._skew_s = skew_s

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        try:
            await self._write(lambda part: self._database.insert(part), posts)
        except ServiceError as error:
            return [error] * len(posts)
        return [None] * len(posts)

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        await self._reach()
        unread = self.unread(usernames, now_ms)
        messages: dict[str, list[Message]] = {}
        for post in unread[:limit]:
            messages.setdefault(post.username, []).append(Message(post.text, post.id))
        await self._return()
        if len(unread) < limit:
            return Found(messages, set(usernames))
        last = unread[limit - 1].username
        return Found(messages, {username for username in usernames if username < last})

    async def claim(self, claim: Claim) -> Claimed:
        """As the real store: sent again with the same token, while there is time."""
        tries = 0
        while True:
            tries += 1
            try:
                await self._write(lambda part: self._database.claim(claim, part), claim.ids)
            except StoreUnavailable:
                if tries == 1:
                    raise
                raise OutcomeUnknown("not confirmed") from None
            except OutcomeUnknown:
                if tries == 3 or self._rng.random() < 0.5:
                    raise
                continue
            owned = {
                each
                for each in claim.ids
                if (stored := self._database.documents.get(each)) and stored.token == claim.token
            }
            return Claimed(owned, is_final=tries == 1)

    async def release(self, claim: Claim, ids: Sequence[str]) -> int:
        counts: list[int] = []
        await self._write(lambda part: counts.append(self._database.release(claim, part)), ids)
        return sum(counts)

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Counter[str]:
        await self._reach()
        return Counter(post.username for post in self.unread(usernames, now_ms))

    async def expire(self, now_ms: int) -> int:
        return 0

    async def measure_clock(self) -> None:
        pass

    async def ping(self) -> None:
        await self._reach()

    def unread(self, usernames: Sequence[str], now_ms: int) -> list[Post]:
        """What a search finds, in its order."""
        found = (
            stored.post
            for stored in self._database.documents.values()
            if stored.unread
            and stored.post.username in usernames
            and stored.post.expires_ms >= now_ms
        )
        return sorted(found, key=lambda post: (post.username, post.id))

    async def _reach(self) -> None:
        """The way there: takes time, and may fail while nothing is applied yet."""
        await asyncio.sleep(self._rng.choice((0.0005, 0.001, 0.003, 0.02)))
        database = self._database
        if database.loop.time() < database.away_until:
            await asyncio.sleep(self._rng.choice((0.01, 0.2)))
            raise StoreUnavailable("away")
        if self._rng.random() < database.fault_rate / 20:
            raise StoreUnavailable("not reached")

    async def _return(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0005, 0.001, 0.003)))

    async def _write(self, apply: Callable[[Sequence[Any]], None], items: Sequence[Any]) -> None:
        """A write, and the wait for its majority."""
        await self._reach()
        database, rng = self._database, self._rng
        fault = ""
        if rng.random() < database.fault_rate:
            fault = rng.choice(("before", "after", "part", "hang", "late"))
        if fault == "before":
            raise OutcomeUnknown("the connection broke")
        if fault == "late":
            # It lies in a buffer: given up here, and applied there some time after.
            database.loop.call_later(
                rng.choice((0.2, 1, 3)) * rng.uniform(0, 2 * DEADLINE_S), apply, items
            )
            await asyncio.sleep(rng.choice((0.01, 0.3)))
            raise OutcomeUnknown("no answer")
        apply(items[: rng.randint(0, len(items))] if fault == "part" else items)
        term = database.term
        confirmed = list(database.unconfirmed)
        if fault == "hang":
            await asyncio.sleep(rng.uniform(0, 2 * DEADLINE_S))
            raise OutcomeUnknown("no answer")
        await self._return()
        if database.term != term:
            raise OutcomeUnknown("another became primary")
        for undo in confirmed:
            # What stands before it in the log is confirmed with it.
            if undo in database.unconfirmed:
                database.unconfirmed.remove(undo)
        if fault:
            raise OutcomeUnknown("the answer was lost")
        await self._return()


_metrics = WorkerMetrics(CollectorRegistry())


class Node:
    """One process of the service."""

    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self.number = number
        self.skew_s = 0.0
        self.requests: set[asyncio.Future[Any]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        world = self._world
        store = world.make_store(world.database, lambda: self.skew_s)
        clock = DatabaseClock(wall=lambda: _EPOCH_S + world.loop.time() + self.skew_s)
        limits = PoolLimits(
            2, QueueLimits(50, 10_000, 20), ShardLimits(6, 1000, 4, DEADLINE_S), DEADLINE_S
        )
        before = asyncio.all_tasks()
        self.pool = world.make_pool(store, clock, limits, _metrics)
        # Ids are part of the schedule, too.
        self.pool._ids = IdSource(world.rng.randbytes)
        await self.pool.start()
        self._tasks = [task for task in asyncio.all_tasks() if task not in before]

    async def kill(self) -> None:
        """End it as SIGKILL does: nobody gets an answer, and nothing is put in order."""
        requests, self.requests = self.requests, set()
        for request in requests:
            request.cancel(_KILLED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.start()

    async def stop(self) -> None:
        await self.pool.stop()


class World:
    """One run of a schedule. `make_store` and `make_pool` are there for seeded bugs."""

    make_store: Callable[[Database, Callable[[], float]], SimulatedStore] = SimulatedStore
    make_pool: Callable[..., WorkerPool] = WorkerPool
    make_database: Callable[..., Database] = Database

    def __init__(self, loop: VirtualLoop, schedule: Schedule) -> None:
        self.loop = loop
        self._schedule = schedule
        self.rng = random.Random(schedule.seed)
        self.database = self.make_database(loop, self.rng, schedule.fault_rate)
        self.nodes = [Node(self, number) for number in range(2)]
        self.history = History([], [], [])
        self._clients: set[asyncio.Task[None]] = set()
        self._texts = 0
        # A sender is one client that waits for each answer: one at a time for each user.
        self._senders: set[str] = set()

    async def run(self) -> Verdict:
        """Carry out every step, heal what is broken, read what is left, and judge."""
        for node in self.nodes:
            await node.start()
        for step in self._schedule.steps:
            await asyncio.sleep(step.after_s)
            await self._do(step)
        await asyncio.sleep(3 * DEADLINE_S)
        # Who still waits now waits for ever, and the checker says so.
        for endless in self._clients:
            endless.cancel()
        await asyncio.gather(*self._clients)
        self.database.fault_rate = self.database.away_until = 0.0
        await asyncio.sleep(_HEAL_S)
        for user in USERS:
            await self._drain(user)
        for node in self.nodes:
            await node.stop()
        return check(
            self.history,
            late_s=2 * SKEW_S + 0.1,
            longest_s=DEADLINE_S + 0.2,
            release_s=4 * DEADLINE_S,
        )

    async def _do(self, step: Step) -> None:
        node = self.nodes[step.node]
        if step.what == "kill":
            self.history.kills.append(self.loop.time())
            await node.kill()
        elif step.what == "failover":
            self.database.fail_over()
        elif step.what == "away":
            self.database.away_until = self.loop.time() + step.number / 5
        elif step.what == "skew":
            node.skew_s = (step.number - 4.5) / 4.5 * SKEW_S
        elif step.what == "post":
            self._start(self._post(node, step.user, LIFETIMES_S[step.number % 3], step.number))
        else:
            limit = 1 + step.number % 3 if step.what == "read few" else None
            leaves_after_s = step.number / 300 if step.what == "leave" else None
            self._start(self._read(node, step.user, limit, leaves_after_s))
        if step.what == "count":
            self._start(self._count(node, step.user))

    def _start(self, client: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(client)
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _post(self, node: Node, user: str, lifetime_s: int, number: int) -> None:
        self._texts += 1
        text = f"t{self._texts}"
        began = self.loop.time()
        # Through one node with one clock: nothing orders the clocks of two.
        sender = f"{user}-{number % 2}-{node.number}-{node.skew_s}"
        if sender in self._senders:
            sender = text
        self._senders.add(sender)

        def ask() -> "asyncio.Future[str]":
            return node.pool.post(user, text, len(text), lifetime_s)

        outcome, message_id = await _asked(node, ask)
        self._senders.discard(sender)
        self.history.posts.append(
            Posted(
                sender, user, text, lifetime_s, began, self.loop.time(), outcome, message_id or ""
            )
        )

    async def _read(
        self, node: Node, user: str, limit: int | None, leaves_after_s: float | None = None
    ) -> None:
        began = self.loop.time()

        def ask() -> "asyncio.Future[Slice]":
            return self.read(node, user, limit, leaves_after_s)

        outcome, answer = await _asked(node, ask)
        messages = tuple((each.id, each.text) for each in answer.messages) if answer else ()
        is_all = limit is None and answer is not None and not answer.more
        self.history.reads.append(Got(user, began, self.loop.time(), outcome, messages, is_all))

    def read(
        self, node: Node, user: str, limit: int | None, leaves_after_s: float | None
    ) -> "asyncio.Future[Slice]":
        """One read, whose client may leave before it is answered."""
        request = node.pool.read(user, limit)
        if leaves_after_s is not None:
            self.loop.call_later(leaves_after_s, request.cancel)
        return request

    async def _count(self, node: Node, user: str) -> None:
        await _asked(node, lambda: node.pool.count(user))

    async def _drain(self, user: str) -> None:
        while True:
            reads = len(self.history.reads)
            await self._read(self.nodes[0], user, None)
            last = self.history.reads[reads]
            if last.outcome == "ok" and last.is_all and not last.messages:
                return
            assert last.outcome == "ok", last


async def _asked(node: Node, ask: Callable[[], "asyncio.Future[T]"]) -> tuple[Outcome, T | None]:
    """What a client sees of one request."""
    try:
        request = ask()
    except NotExecuted:
        return "refused", None
    node.requests.add(request)
    try:
        return "ok", await request
    except NotExecuted:
        return "refused", None
    except OutcomeUnknown:
        return "unknown", None
    except asyncio.CancelledError as error:
        # A client that left: the engine gives back what it had for it.
        return ("cut" if error.args == (_KILLED,) else "unknown"), None
    finally:
        node.requests.discard(request)


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
    """Run the schedules of many seeds: what became of all messages, and the seeds that failed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    total: Counter[str] = Counter()
    failed = []
    for seed in seeds:
        verdict = run(schedule_of(seed))
        total += verdict.counts
        if verdict.violations:
            failed.append((seed, verdict))
    return total, failed


def main() -> int:
    """Run many schedules in several processes; prints the totals and every seed that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first; the others follow it")
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
