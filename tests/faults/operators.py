"""Mistakes of operators: what people do to a running service and its database, by accident or not.

Scenarios of `tests.faults.scenarios`.
"""

import asyncio
import time

from tests.faults.history import CollectionDrop
from tests.faults.overload_scenarios import until_refused
from tests.faults.testbed import Testbed
from workers.store.schema import COLLECTION

#: MiB that remain free on the full disk: less than the service's reserve for reads.
_LEFT_MIB = 24


async def drop_indexes(testbed: Testbed, times: int) -> None:
    """Drop all indexes. Nothing is lost, and no key stores two messages."""
    for _ in range(times):
        await testbed.run_load()
        async with testbed.mongo() as client:
            await client["chat"][COLLECTION].drop_indexes()
        await testbed.await_recovery(time.monotonic())


async def drop_messages(testbed: Testbed, times: int) -> None:
    """Drop the collection. Messages that are posted afterwards are kept."""
    for _ in range(times):
        await testbed.run_load()
        async with testbed.mongo() as client:
            began = time.monotonic()
            await client["chat"][COLLECTION].drop()
            testbed.clients.history.drops.append(CollectionDrop(began, time.monotonic()))
        await testbed.await_recovery(time.monotonic())


async def remove_socket(testbed: Testbed, times: int) -> None:
    """Remove the file of the mongod's socket. The service restarts the mongod."""
    for _ in range(times):
        await testbed.run_load()
        before = testbed.mongod()
        testbed.socket.unlink()
        # Existing connections work until the restart.
        await testbed.await_new_mongod(before)
        await testbed.await_recovery(time.monotonic())


async def fill_disk(testbed: Testbed, times: int) -> None:
    """Fill the disk up to the reserve from outside. Posts are refused, and reads are served."""
    filler = testbed.data_dir.parent / "filler"
    mongod, members = testbed.mongod(), testbed.server.members()
    for _ in range(times):
        await testbed.run_load()
        with filler.open("wb") as file:
            while testbed.free_mib() > _LEFT_MIB:
                file.write(bytes(1 << 20))
                file.flush()
        await until_refused(testbed)
        began = time.monotonic()
        await asyncio.sleep(2)
        full = [answer for answer in testbed.clients.answers if answer.began > began]
        statuses = {answer.status for answer in full}
        testbed.require(507 in statuses, f"posts are refused with 507; there were {statuses}")
        testbed.require(200 in statuses, f"reads are served; there were {statuses}")
        testbed.require(503 not in statuses, "nothing is unavailable while the disk is full")
        filler.unlink()
        await testbed.await_recovery(time.monotonic())
    is_same = (testbed.mongod(), testbed.server.members()) == (mongod, members)
    testbed.require(is_same, "nothing was restarted")
