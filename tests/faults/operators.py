"""What people do to a service and its database while both run, by mistake or on purpose.

Scenarios of `tests.faults.scenarios`.
"""

import asyncio
import time

from tests.faults.history import Dropped
from tests.faults.overload_scenarios import until_refused
from tests.faults.testbed import Site
from workers.store.schema import COLLECTION

#: MiB that the filled disk has left: less than what the service keeps free for its reads.
_LEFT_MIB = 24


async def drop_indexes(site: Site, times: int) -> None:
    """Drop all indexes of the messages: nothing is lost, no key stores two."""
    for _ in range(times):
        await site.breathe()
        async with site.mongo() as client:
            await client["chat"][COLLECTION].drop_indexes()
        await site.healed(time.monotonic())


async def drop_messages(site: Site, times: int) -> None:
    """Drop the collection of the messages: what is posted from then on is kept as ever."""
    for _ in range(times):
        await site.breathe()
        async with site.mongo() as client:
            began = time.monotonic()
            await client["chat"][COLLECTION].drop()
            site.crowd.history.drops.append(Dropped(began, time.monotonic()))
        await site.healed(time.monotonic())


async def remove_socket(site: Site, times: int) -> None:
    """Remove the file of the socket that the mongod listens on; it is started again."""
    for _ in range(times):
        await site.breathe()
        before = site.mongod()
        site.socket.unlink()
        # Those that are connected go on until it is started again.
        await site.has_another_mongod(before)
        await site.healed(time.monotonic())


async def fill_disk(site: Site, times: int) -> None:
    """Have something else fill the disk up to the reserve: posts are refused, reads go on."""
    filler = site.data_dir.parent / "filler"
    mongod, members = site.mongod(), site.server.members()
    for _ in range(times):
        await site.breathe()
        with filler.open("wb") as file:
            while site.free_mib() > _LEFT_MIB:
                file.write(bytes(1 << 20))
                file.flush()
        await until_refused(site)
        began = time.monotonic()
        await asyncio.sleep(2)
        full = [answer for answer in site.crowd.answers if answer.began > began]
        statuses = {answer.status for answer in full}
        site.require(507 in statuses, f"posts are refused with 507; there were {statuses}")
        site.require(200 in statuses, f"reads are served; there were {statuses}")
        site.require(503 not in statuses, "nothing is unavailable while the disk is full")
        filler.unlink()
        await site.healed(time.monotonic())
    is_same = (site.mongod(), site.server.members()) == (mongod, members)
    site.require(is_same, "nothing was started again")
