"""Simulated worlds that make rare races frequent. No call of the store fails in them.

In other schedules a client would have to poll, or a primary be deposed, in the same milliseconds.
"""

import asyncio
from collections.abc import Mapping

from tests.faults.checker import Verdict
from tests.faults.simulation import Step, World

#: The steps of clients that wait, and of elections after which a deposed primary is searched.
CONVERSATIONS: Mapping[str, int] = {"conversation": 1}
ELECTIONS: Mapping[str, int] = {"post": 2, "read": 3, "failover": 1, "short term": 2}
#: The time within which a post is mostly accepted, in seconds.
_POSTED_AFTER_S = 0.05


class FaultlessWorld(World):
    """No call of the store fails."""

    async def run(self) -> Verdict:
        self._schedule = self._schedule._replace(fault_rate=0.0)
        self.database.fault_rate = 0.0
        return await super().run()


class ElectionWorld(FaultlessWorld):
    """A primary is deposed, misses a post, and is elected again while clients read."""

    async def _do(self, step: Step) -> None:
        if step.what != "short term":
            await super()._do(step)
            return
        began, database = self.loop.time(), self.database
        deposed = database.primary
        database.fail_over()
        self.clients.start("post", self.nodes[step.node], step.user, 2)
        await asyncio.sleep(_POSTED_AFTER_S)
        for node in self.nodes:
            self.clients.start("read", node, step.user, step.number)
        await asyncio.sleep(step.number / 20)
        database.fail_over(deposed)
        self._disturb(began, self.loop.time())
