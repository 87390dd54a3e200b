"""Seeded bugs that let one client harm others."""

from unittest import mock

from tests.faults.checker import Verdict
from tests.faults.faulty_store import SimulatedStore
from tests.faults.seeded_bugs import Bug, bug
from tests.faults.sharing import CROWDED, FILLED, CrowdedWorld, FilledWorld
from workers.errors import Overloaded
from workers.fair_queue import FairQueue
from workers.queue import ShardQueue
from workers.store.base import (
    InboxSize,
)
from workers.work_item import WorkItem


class ServesInOrderOfArrival(CrowdedWorld):
    async def run(self) -> Verdict:
        def get_oldest(self: FairQueue) -> WorkItem:
            oldest = next(iter(self._arrivals))
            self.remove(oldest)
            return oldest

        with mock.patch.object(FairQueue, "_get_next", get_oldest):
            return await super().run()


class MakesNoRoom(CrowdedWorld):
    async def run(self) -> Verdict:
        with mock.patch.object(ShardQueue, "_make_room", side_effect=Overloaded("full")):
            return await super().run()


class ReadsOvertakePosts(CrowdedWorld):
    async def run(self) -> Verdict:
        with mock.patch.object(ShardQueue, "_is_behind", return_value=False):
            return await super().run()


class ForgetsPostsInFlight(CrowdedWorld):
    async def run(self) -> Verdict:
        def is_behind(self: ShardQueue, item: WorkItem) -> bool:
            return item.command.username in self.posts.per_inbox

        with mock.patch.object(ShardQueue, "_is_behind", is_behind):
            return await super().run()


class CountsNothing(SimulatedStore):
    async def measure_inbox(self, *_: object) -> InboxSize:
        await self._reach()
        return InboxSize(0, 0)


#: Bugs that let one client harm others.
CLIENT_BUGS = (
    bug(ServesInOrderOfArrival, "starved")._replace(steps=CROWDED),
    bug(MakesNoRoom, "starved")._replace(steps=CROWDED),
    bug(ReadsOvertakePosts, "ahead")._replace(steps=CROWDED),
    bug(ForgetsPostsInFlight, "ahead")._replace(steps=CROWDED),
    Bug(
        "CountsNothing",
        type("BuggyWorld", (FilledWorld,), {"make_store": CountsNothing}),
        frozenset({"overfull"}),
        FILLED,
    ),
)
