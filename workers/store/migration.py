"""Changes the schema of a database while nodes use it: the steps of `chat migrate`.

Every step can be interrupted anywhere and run again. Progress is in the database (see
`workers.store.migration_record`), and what a step has done is not done twice.

To schema 2:

1. fill: each message gets its route. Old nodes may still store messages without one.
2. index: the new indexes are built, beside the old ones.
3. nodes: no node may run code that does not know schema 2.
4. guard: from here on, the database refuses messages without a route.
5. check: messages that were stored without one since step 1 get theirs. Now all have one.
6. switch: the version changes, and all nodes find it within seconds.
7. drop: the indexes that only schema 1 needs are dropped.

Back to schema 1: the old indexes are built, the version changes, the new indexes are dropped, and
at last the database accepts messages without a route again.

At every moment, each node finds each message: before step 6 by the old indexes, which have all
messages, and after step 5 also by the new ones. A node that does not see the new version for a
while names an index that no longer exists. The database refuses its statement, and it looks again.
On the way back, no message without a route can be stored while such a node may search by routes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from workers.store.backfill import fill_routes
from workers.store.driver import Client, Document
from workers.store.driver_errors import short_reason
from workers.store.guard import read_validator, set_validator
from workers.store.layout import LAYOUTS
from workers.store.migration_record import MigrationRecord, MigrationRefused
from workers.store.node_versions import find_nodes
from workers.store.schema import COLLECTION, VALIDATOR, IndexMismatch, ensure_indexes
from workers.store.schema_version import settle_layout

#: The steps to each version, in their order.
STEPS = {
    1: ("index", "switch", "drop", "unguard"),
    2: ("fill", "index", "nodes", "guard", "check", "switch", "drop"),
}
#: How long a step is repeated while the database does not answer, the pause before a repeat, and
#: how often progress is recorded and reported, in seconds.
PATIENCE_S, _REPEAT_AFTER_S, _REPORT_EVERY_S = 60.0, 1.0, 1.0
#: Longest time for a short command, in seconds.
_ANSWER_S = 30.0
#: Errors that a repeat can resolve: BackgroundOperationInProgressForNamespace,
#: ConflictingOperationInProgress, IndexBuildAborted.
_TEMPORARY = frozenset({12586, 117, 276})
_INDEX_NOT_FOUND = 27


class Reporter(Protocol):
    """Shows a migration to its user. Must not block."""

    def progress(self, step: str, done: float, total: float) -> None:
        """Show how far a step is. Called at its start, about each second, and at its end."""

    def note(self, text: str) -> None:
        """Show a remark."""


class Migration:
    """One migration of a database. `run` may be cancelled at any time, and called again."""

    def __init__(
        self,
        client: Client,
        database: str,
        to: int,
        node: str,
        report: Reporter,
        *,
        are_nodes_new: bool = False,
        notice_s: float,
    ) -> None:
        """`node` names this process. With `are_nodes_new`, the operator has made sure that no node
        runs old code. `notice_s` is the longest time in which a node notices a new version, in
        seconds.
        """
        self._client = client
        self._database: AsyncDatabase[Document] = client[database]
        self._to, self._from = LAYOUTS[to], LAYOUTS[3 - to]
        self._record = MigrationRecord(self._database, to, node)
        self._report = report
        self._are_nodes_new = are_nodes_new
        self._notice_s = notice_s
        self._has_switched = False
        self._filled = 0
        self._worked_at = 0.0

    async def run(self) -> None:
        """Carry out all steps that are left.

        Raises `MigrationRefused` or `IndexMismatch`, which say what to do, and
        `pymongo.errors.PyMongoError` if the database does not answer for a while. After each of
        these, and after a cancellation, the service works as before, and `run` goes on later.
        """
        layout = await settle_layout(self._database)
        await self._record.take(layout.version)
        self._has_switched = layout is self._to
        keeping = asyncio.create_task(self._record.keep(), name="migration lease")
        working = asyncio.create_task(self._work(), name="migration")
        try:
            await asyncio.wait((keeping, working), return_when=asyncio.FIRST_COMPLETED)
            await _end(keeping)
            if working.done() and not working.cancelled() and working.exception() is None:
                # Not before the renewals have ended: without its record, one would fail.
                await self._repeat(self._record.finish)
        finally:
            await _end(keeping)
            await _end(working)
            await self._let_go()
        (keeping if working.cancelled() else working).result()

    async def _let_go(self) -> None:
        try:
            with pymongo.timeout(2):
                await self._record.let_go()
        except PyMongoError:
            self._report.note("the lease of this migration ends by itself within 10 s")

    async def _work(self) -> None:
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "fill": self._fill,
            "index": self._index,
            "nodes": self._nodes,
            "guard": self._guard,
            "check": self._check,
            "switch": self._switch,
            "drop": self._drop,
            "unguard": self._unguard,
        }
        for step in self._left():
            self._filled = 0
            if step != self._record.step:
                await self._repeat(partial(self._record.save, step))
            await self._repeat(steps[step])

    def _left(self) -> Sequence[str]:
        """Return the steps that are left."""
        steps, step = STEPS[self._to.version], self._record.step
        if step not in steps:
            return steps
        if not self._has_switched and "nodes" in steps[: steps.index(step)]:
            # Since it was interrupted, an old node may have been started.
            step = "nodes"
        return steps[steps.index(step) :]

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        """Carry out a step, and again if the database does not answer for a while."""
        failed_at: float | None = None
        while True:
            try:
                await step()
                return
            except PyMongoError as error:
                if not _is_temporary(error):
                    raise
                now = time.monotonic()
                # The time is counted anew if there was progress since the first failure.
                failed_at = now if failed_at is None else max(failed_at, self._worked_at)
                if now - failed_at > PATIENCE_S:
                    raise
                self._report.note(f"{short_reason(error)}; trying again")
                await asyncio.sleep(_REPEAT_AFTER_S)

    async def _fill(self) -> None:
        await self._look_at_all("fill")

    async def _check(self) -> None:
        while True:
            await self._look_at_all("check")
            if not self._filled:
                return
            # Without the guard, old nodes may have stored more meanwhile.
            self._filled = 0
            await self._record.save("check")

    async def _look_at_all(self, step: str) -> None:
        """Fill the routes of all messages. Goes on where it failed. `_filled` counts them."""
        done = self._record.done
        saved_at = time.monotonic()
        with pymongo.timeout(_ANSWER_S):
            total = max(await self._database[COLLECTION].estimated_document_count(), 1)
        self._report.progress(step, min(done, total), total)
        async for part in fill_routes(self._database, self._record.after):
            self._worked_at = time.monotonic()
            done += part.seen
            self._filled += part.filled
            self._record.after, self._record.done = part.after, done
            if time.monotonic() >= saved_at + _REPORT_EVERY_S:
                saved_at = time.monotonic()
                self._report.progress(step, min(done, total), total)
                await self._record.save(step, part.after, done)
        self._report.progress(step, total, total)

    async def _index(self) -> None:
        building = asyncio.create_task(ensure_indexes(self._database, self._to))
        try:
            self._report.progress("index", 0, 1)
            while not (await asyncio.wait((building,), timeout=_REPORT_EVERY_S))[0]:
                done, total = await self._built()
                self._report.progress("index", done, total)
            building.result()
        except IndexMismatch as mismatch:
            raise MigrationRefused(str(mismatch)) from mismatch
        finally:
            await _end(building)
        self._report.progress("index", 1, 1)

    async def _built(self) -> tuple[int, int]:
        """Return how much of an index build is done, and of how much; (0, 1) if that is unknown."""
        command = {
            "aggregate": 1,
            "pipeline": [
                {"$currentOp": {"allUsers": True}},
                {"$match": {"progress.total": {"$gt": 0}, "msg": {"$regex": "^Index Build"}}},
                {"$limit": 1},
            ],
            "cursor": {},
        }
        try:
            with pymongo.timeout(_ANSWER_S):
                found = (await self._client.admin.command(command))["cursor"]["firstBatch"]
        except PyMongoError:
            # Only for show: the build itself says what is wrong.
            return 0, 1
        return (found[0]["progress"]["done"], found[0]["progress"]["total"]) if found else (0, 1)

    async def _nodes(self) -> None:
        began = time.monotonic()
        while True:
            self._report.progress("nodes", 0, 1)
            with pymongo.timeout(_ANSWER_S):
                nodes = await find_nodes(self._client, self._to.version)
            # The database may notice the end of a node seconds later.
            if not nodes.old or time.monotonic() - began > self._notice_s:
                break
            await asyncio.sleep(_REPORT_EVERY_S)
        if nodes.old:
            raise MigrationRefused(
                f"these nodes run a version that does not know schema {self._to.version}: "
                f"{', '.join(nodes.old)}; replace or stop them, and run this again"
            )
        if nodes.old is None and not self._are_nodes_new:
            raise MigrationRefused(
                "this user may not see which nodes are connected (the action inprog); make sure "
                "that none runs an older version, and add --no-old-nodes"
            )
        self._report.progress("nodes", 1, 1)

    async def _guard(self) -> None:
        self._report.progress("guard", 0, 1)
        if not await self._validate(VALIDATOR):
            self._report.note(
                "this user may not set a validator (the action collMod): if an older version of "
                "the service is started, no new node finds the messages that it stores"
            )
        self._report.progress("guard", 1, 1)

    async def _unguard(self) -> None:
        self._report.progress("unguard", 0, 1)
        if not await self._validate({}):
            raise MigrationRefused(
                "this user may not remove the validator (the action collMod), and the database "
                "refuses messages of older versions while it exists; run this again as a user with "
                "the role dbAdmin"
            )
        self._report.progress("unguard", 1, 1)

    async def _validate(self, validator: Document) -> bool:
        """Set the validator of the messages. Return whether it is set, or was before."""
        with pymongo.timeout(_ANSWER_S):
            if await read_validator(self._database) == validator:
                return True
            return await set_validator(self._database, validator)

    async def _switch(self) -> None:
        self._report.progress("switch", 0, self._notice_s)
        await self._record.switch()
        began = time.monotonic()
        while (waited := time.monotonic() - began) < self._notice_s:
            await asyncio.sleep(min(_REPORT_EVERY_S, self._notice_s - waited))
            self._report.progress("switch", min(waited, self._notice_s), self._notice_s)
        self._report.progress("switch", self._notice_s, self._notice_s)

    async def _drop(self) -> None:
        names = self._from.indexes.keys()
        for number, name in enumerate(names):
            self._report.progress("drop", number, len(names))
            try:
                with pymongo.timeout(_ANSWER_S):
                    await self._database[COLLECTION].drop_index(name)
            except OperationFailure as error:
                if error.code != _INDEX_NOT_FOUND:
                    raise
        self._report.progress("drop", len(names), len(names))


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait until it has ended. Does not raise its exception.

    Once is not enough: Python 3.11's `wait_for`, which the driver uses, may drop a cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_REPEAT_AFTER_S)


def _is_temporary(error: PyMongoError) -> bool:
    is_lost = isinstance(error, ConnectionFailure) or error.timeout
    return is_lost or (isinstance(error, OperationFailure) and error.code in _TEMPORARY)
