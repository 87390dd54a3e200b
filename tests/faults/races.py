"""Simulated worlds that make rare races frequent. No other call of the store fails in them.

In other schedules a client would have to poll, or a primary be deposed, in the same milliseconds.
"""

import asyncio
from collections.abc import Mapping

from tests.faults.checker import Verdict
from tests.faults.faulty_calls import LATE_MAX_S
from tests.faults.faulty_store import SimulatedStore
from tests.faults.simulation import Step, World
from workers.commands import Claim, KeyedClaim
from workers.errors import OutcomeUnknown
from workers.store.base import Claimed

#: The steps of clients that wait, and of elections after which a deposed primary is searched.
CONVERSATIONS: Mapping[str, int] = {"conversation": 1}
ELECTIONS: Mapping[str, int] = {"post": 2, "read": 3, "failover": 1, "short term": 2}
#: The steps of a keyed read whose messages others take before its claim arrives.
OVERTAKEN: Mapping[str, int] = {"overtaken keyed read": 1, "read": 1}
#: The steps of senders and readers beside a node whose clock is ahead.
AHEAD: Mapping[str, int] = {"scheduled post": 3, "read": 3, "long poll": 2, "clock step": 1}
#: How far ahead that clock is at most, in seconds.
_AHEAD_S = 4.0
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


class LateKeyedClaims(SimulatedStore):
    """Half of the claims for keys lie in a buffer, and arrive after they were abandoned."""

    async def claim(self, claim: Claim) -> Claimed:
        if not isinstance(claim, KeyedClaim) or self._rng.random() < 0.5:
            return await super().claim(claim)
        await self._reach()
        late_s = LATE_MAX_S * self._rng.random()
        self._database.loop.call_later(late_s, self._database.claim, claim, claim.ids)
        self.count_later(claim, claim.ids)
        raise OutcomeUnknown("no answer")


class OvertakenWorld(FaultlessWorld):
    """A consumer leases the messages that a keyed read has chosen but not claimed yet, and dies.

    Repeats of the read find nothing, so its batch is discarded. Then the lease ends, and the first
    claim arrives.
    """

    make_store = LateKeyedClaims

    async def _do(self, step: Step) -> None:
        if step.what != "overtaken keyed read":
            await super()._do(step)
            return
        node, other = self.nodes[step.node], self.nodes[1 - step.node]
        self.clients.start("post", node, step.user, step.number)
        await asyncio.sleep(_POSTED_AFTER_S)
        self.clients.start("keyed read", node, step.user, step.number)
        await asyncio.sleep(step.number / 100)
        self.clients.start("lease", other, step.user, 8)


class AheadWorld(FaultlessWorld):
    """A node whose clock is ahead, and steps, may lead. All requests go to the other node."""

    async def _do(self, step: Step) -> None:
        ahead, right = self.nodes
        if step.what == "clock step":
            ahead.skew_s = step.number / 9 * _AHEAD_S
        elif step.what == "scheduled post":
            # Messages that live long, because the leader ends the others too soon.
            self.clients.start(step.what, right, step.user, 2)
        else:
            self.clients.start(step.what, right, step.user, step.number)
