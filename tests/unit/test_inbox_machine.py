"""An inbox as a state machine: whatever is done in whatever order, the promises hold.

Hypothesis drives a pool over a store that loses replies, fails before and after it applied
something, and shares its messages with another node. A model says what must come back.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from tests.support.stores import MemoryStore
from workers.clock import DatabaseClock
from workers.commands import Post, Slice
from workers.errors import OutcomeUnknown, ServiceError, StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.pool import PoolLimits, WorkerPool
from workers.queue import QueueLimits
from workers.shard import ShardLimits

NAMES = st.sampled_from(["a", "b", "c"])


@dataclass
class FaultyStore(MemoryStore):
    """Goes wrong as `faults` says: the next call of a kind fails before, or after, it applied."""

    faults: list[tuple[str, str]] = field(default_factory=list)

    def _fault(self, kind: str) -> str:
        for position, (wanted, fault) in enumerate(self.faults):
            if wanted == kind:
                del self.faults[position]
                return fault
        return ""

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        fault = self._fault("insert")
        if fault == "before":
            return [StoreUnavailable("away")] * len(posts)
        outcomes = await super().insert(posts)
        return [OutcomeUnknown("lost")] * len(posts) if fault == "after" else outcomes

    async def claim(self, usernames: Sequence[str], ids: Sequence[str], now_ms: int) -> set[str]:
        fault = self._fault("claim")
        if fault == "before":
            raise StoreUnavailable("away")
        if fault == "rival":
            await super().claim(usernames, list(ids)[::2], now_ms)
        owned = await super().claim(usernames, ids, now_ms)
        if fault == "after":
            raise OutcomeUnknown("lost")
        return owned


class InboxMachine(RuleBasedStateMachine):
    """Posts, reads and gives up, in bursts; faults and time in between."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now_s = 1_000_000.0
        self.store = FaultyStore()
        self.acknowledged: dict[str, Post] = {}
        self.refused: set[str] = set()
        self.delivered: Counter[str] = Counter()
        self.number = 0
        self.pool = WorkerPool(
            self.store,
            DatabaseClock(wall=lambda: self.now_s),
            PoolLimits(2, QueueLimits(50, 10_000, 20), ShardLimits(6, 1000, 4), 60.0),
            WorkerMetrics(CollectorRegistry()),
        )
        self.runner.run(self.pool.start())

    @rule(
        burst=st.lists(
            st.tuples(
                st.sampled_from(["post", "post", "read", "read one", "give up"]),
                NAMES,
                st.integers(1, 30),
            ),
            min_size=1,
            max_size=12,
        )
    )
    def requests_at_once(self, burst: list[tuple[str, str, int]]) -> None:
        self.runner.run(self._burst(burst))

    @rule(
        kind=st.sampled_from(["insert", "claim"]),
        fault=st.sampled_from(["before", "after", "rival"]),
    )
    def something_will_go_wrong(self, kind: str, fault: str) -> None:
        self.store.faults.append((kind, fault))

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def nothing_is_delivered_twice(self) -> None:
        assert all(times == 1 for times in self.delivered.values())

    @invariant()
    def nothing_is_lost_that_was_accepted_and_nothing_kept_that_was_refused(self) -> None:
        assert self.acknowledged.keys() <= self.store.posts.keys()
        assert self.delivered.keys() <= self.store.posts.keys()

    def teardown(self) -> None:
        self.store.faults.clear()
        for name in ("a", "b", "c"):
            while self.runner.run(self._read(name, None)):
                pass
        now_ms = int(self.now_s * 1000)
        for message_id, post in self.acknowledged.items():
            is_gone = post.expires_ms < now_ms or message_id in self.store.claimed
            assert message_id in self.delivered or is_gone
        self.runner.run(self.pool.stop())
        self.runner.close()

    async def _burst(self, burst: list[tuple[str, str, int]]) -> None:
        tasks = []
        for what, name, lifetime_s in burst:
            if what == "post":
                tasks.append(asyncio.create_task(self._post(name, lifetime_s)))
            elif what == "give up":
                self.pool.post(name, "given up", 8, lifetime_s).cancel()
            else:
                limit = 1 if what == "read one" else None
                tasks.append(asyncio.create_task(self._read_quietly(name, limit)))
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)

    async def _post(self, name: str, lifetime_s: int) -> None:
        self.number += 1
        try:
            message_id = await self.pool.post(name, str(self.number), 1, lifetime_s)
        except ServiceError:
            return
        self.acknowledged[message_id] = self.store.posts[message_id]

    async def _read_quietly(self, name: str, limit: int | None) -> None:
        with contextlib.suppress(ServiceError):
            await self._read(name, limit)

    async def _read(self, name: str, limit: int | None) -> bool:
        """Read once, check what came, and say whether anything did or more may be there."""
        now_ms = int(self.now_s * 1000)
        asked_before = set(self.acknowledged)
        answer: Slice = await self.pool.read(name, limit)
        ids = [message.id for message in answer.messages]
        assert ids == sorted(ids), "in order"
        assert limit is None or len(ids) <= limit
        for message in answer.messages:
            post = self.store.posts[message.id]
            assert (post.username, post.text) == (name, message.text)
            assert post.expires_ms >= now_ms, "expired is gone"
        self.delivered.update(ids)
        if not answer.more:
            for message_id in asked_before:
                post = self.store.posts[message_id]
                if post.username == name and post.expires_ms >= now_ms:
                    assert message_id in self.store.claimed, "an answer that said it was all"
        return bool(ids) or answer.more


InboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_an_inbox_keeps_its_promises = InboxMachine.TestCase
