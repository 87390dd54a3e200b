"""Simulated worlds in which clients compete: for a queue, and for an inbox with a quota.

Nothing else fails in them, so that the bounds can be exact.
"""

from collections import defaultdict
from collections.abc import Mapping

from tests.faults.checker import Verdict
from tests.faults.simulated_replica_set import Database
from tests.faults.simulation import World
from workers.commands import Post
from workers.inbox_quotas import SHARE, QuotaLimits
from workers.queue import QueueLimits
from workers.store.base import Insertion

#: The steps of a world with a crowded queue, and of one with a quota.
CROWDED: Mapping[str, int] = {"flood": 1, "light post": 2, "light read": 2}
FILLED: Mapping[str, int] = {"post": 20, "flood": 1, "keyed post": 3, "read": 2, "count": 1}
#: The most unread messages of an inbox.
QUOTA = 16


class CrowdedWorld(World):
    """A client floods queues that it shares with others."""

    queue = QueueLimits(50, 10_000, 50)

    async def run(self) -> Verdict:
        self._schedule = self._schedule._replace(fault_rate=0.0)
        self.database.fault_rate = 0.0
        # The batch in flight, and that of the request.
        self.history.overtaken_max = 12
        return await super().run()


class CountingDatabase(Database):
    """Counts the posts that are stored in a row while their inbox is full."""

    overruns: dict[str, int]
    worst: dict[str, int]

    def _insert(self, post: Post) -> Insertion:
        before = len(self.documents)
        unread = len(self.unread((post.username,), self.now_ms()))
        outcome = super()._insert(post)
        if len(self.documents) > before:
            row = self.overruns[post.username] + 1 if unread >= QUOTA else 0
            self.overruns[post.username] = row
            self.worst[post.username] = max(self.worst[post.username], row)
        return outcome


class FilledWorld(World):
    """Inboxes have a quota."""

    make_database = CountingDatabase
    quotas = QuotaLimits(QUOTA)

    async def run(self) -> Verdict:
        self._schedule = self._schedule._replace(fault_rate=0.0)
        database = self.database
        assert isinstance(database, CountingDatabase)
        database.fault_rate = 0.0
        database.overruns, database.worst = defaultdict(int), defaultdict(int)
        self.history.overruns = database.worst
        self.history.overrun_max = len(self.nodes) * (QUOTA // SHARE)
        return await super().run()
