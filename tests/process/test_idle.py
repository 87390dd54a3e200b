"""An idle service with its embedded mongod hardly wakes up: counted, not timed.

Each wake-up of an idle process costs more than what it then does, and each write keeps mongod awake
for a tenth of a second. The limits are twice what was measured. A busy machine only makes the
counts smaller.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pymongo import MongoClient

from tests.support.server import Server, mongods_on
from workers.mongod.embedded import uri_of

#: How long an idle service is observed, and how long it has to come to rest, in seconds.
_OBSERVED_S, _RESTS_AFTER_S = 5.0, 2.0
#: The highest counts per second. Rare jobs come together: five seconds have at most 15 commands.
_WAKE_UPS, _WAKE_UPS_OF_MONGOD, _COMMANDS = 11.0, 88.0, 4.0


class Activity(NamedTuple):
    """What happened per second: wake-ups of the service and of its mongod, and commands."""

    wake_ups: float
    wake_ups_of_mongod: float
    commands: float


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process went to sleep so far."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def commands(client: MongoClient[dict[str, Any]]) -> int:
    """Return how many commands the mongod has received so far."""
    counts = client.admin.command("serverStatus")["metrics"]["commands"]
    return sum(each["total"] for each in counts.values() if isinstance(each, dict))


@contextmanager
def idle_service(folder: Path, wrapper: tuple[str, ...] = ()) -> Iterator[tuple[Server, Path]]:
    """Run a service with a mongod of its own. Yield it and its data directory once it is idle."""
    data_dir = folder / "data"
    server = Server(folder, "--data-dir", str(data_dir))
    server.wrapper = wrapper
    with server:
        time.sleep(_RESTS_AFTER_S)
        yield server, data_dir


def activity(server: Server, data_dir: Path) -> Activity:
    """Count for some seconds what an idle service does."""
    (mongod,) = mongods_on(data_dir)
    with MongoClient[dict[str, Any]](uri_of(data_dir)) as client:
        asked = commands(client)
        began = time.monotonic()
        before = wake_ups(server.process.pid), wake_ups(mongod)
        time.sleep(_OBSERVED_S)
        after = wake_ups(server.process.pid), wake_ups(mongod)
        seconds = time.monotonic() - began
        asked = commands(client) - asked
    own, of_mongod = (b - a for a, b in zip(before, after, strict=True))
    return Activity(own / seconds, of_mongod / seconds, asked / seconds)


def test_an_idle_service_and_its_mongod_hardly_wake_up(tmp_path: Path) -> None:
    with idle_service(tmp_path) as (server, data_dir):
        seen = activity(server, data_dir)
    assert seen.wake_ups < _WAKE_UPS, seen
    assert seen.wake_ups_of_mongod < _WAKE_UPS_OF_MONGOD, seen
    assert seen.commands < _COMMANDS, seen


#: Starts the service with a job that runs a hundred times a second: `JOB` is what it awaits.
_WITH_A_BUSY_JOB = """
import asyncio, runpy, sys
from workers.maintenance import Maintenance
start = Maintenance.start
def start_more(self):
    start(self)
    async def job():
        while True:
            await JOB
            await asyncio.sleep(0.01)
    self.tasks.append(asyncio.create_task(job()))
Maintenance.start = start_more
del sys.argv[1:5]
runpy.run_module('chat_service', run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize("job", ["asyncio.sleep(0)", "self._store.count_pending()"])
def test_a_timer_that_ticks_often_exceeds_the_limits(tmp_path: Path, job: str) -> None:
    wrapper = (sys.executable, "-P", "-c", _WITH_A_BUSY_JOB.replace("JOB", job))
    with idle_service(tmp_path, wrapper) as (server, data_dir):
        seen = activity(server, data_dir)
    assert seen.wake_ups > _WAKE_UPS, seen
    assert "store" not in job or seen.commands > _COMMANDS, seen
