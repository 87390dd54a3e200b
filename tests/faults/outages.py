"""What may break of a service and its database: processes, primaries, wires, disks.

Scenarios of `tests.faults.scenarios`: each gets a `Site` under load, breaks something so many
times, and puts it up again.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults import overload_scenarios
from tests.faults.testbed import Site

_DISK_MIB = 512


async def nothing(site: Site, times: int) -> None:
    """Load alone, for so many seconds; everything is answered."""
    site.must_answer_all = True
    await asyncio.sleep(times)


async def one_process(site: Site, times: int) -> None:
    """SIGKILL one process of the server; its clients connect again, to the other."""
    for _ in range(times):
        await _all_serve(site)
        await site.healed(site.kill(site.rng.choice(site.server.members())))


async def all_processes(site: Site, times: int) -> None:
    """SIGKILL all processes of the server at once; its supervisor lives."""
    for _ in range(times):
        await _all_serve(site)
        await site.healed(site.kill(*site.server.members()))


async def whole_server(site: Site, times: int) -> None:
    """SIGKILL the server, and start it again; its database goes on."""
    for _ in range(times):
        await site.breathe()
        site.kill(site.server.process.pid, *site.server.members())
        await _start_again(site)


async def server_and_mongod(site: Site, times: int) -> None:
    """SIGKILL the server and its mongod, and start the server again."""
    for _ in range(times):
        await site.breathe()
        site.kill(site.server.process.pid, *site.server.members(), site.mongod())
        await _start_again(site)


async def embedded_mongod(site: Site, times: int) -> None:
    """SIGKILL the server's own mongod, which it starts again."""
    for _ in range(times):
        await site.breathe()
        await site.healed(site.kill(site.mongod()))


async def rolling(site: Site, times: int) -> None:
    """SIGHUP: the processes are replaced one by one, and no client notices."""
    site.must_answer_all = True
    for _ in range(times):
        await _all_serve(site)
        before = set(site.server.members())
        site.server.signal(signal.SIGHUP)
        await site.has_none_of(before)


async def terminate(site: Site, times: int) -> None:
    """SIGTERM under load, and start again: who was accepted gets a whole answer."""
    codes = 0
    for _ in range(times):
        await site.breathe()
        site.server.signal(signal.SIGTERM)
        codes += abs(await asyncio.to_thread(site.server.wait))
        await _start_again(site)
    cut = sum(answer.outcome == "cut" for answer in site.crowd.answers)
    site.require(codes == 0, "the server exits with 0")
    site.require(cut == 0, f"each request is answered; {cut} were not")


async def stopped_process(site: Site, times: int) -> None:
    """SIGSTOP one process for 3 s: the other takes all new connections."""
    for _ in range(times):
        await _all_serve(site)
        victim = site.rng.choice(site.server.members())
        os.kill(victim, signal.SIGSTOP)
        await site.healed(time.monotonic())
        await asyncio.sleep(3)
        os.kill(victim, signal.SIGCONT)


async def stopped_mongod(site: Site, times: int) -> None:
    """SIGSTOP the mongod for longer than any request lives: all are answered all the same."""
    for _ in range(times):
        await site.breathe()
        os.kill(site.mongod(), signal.SIGSTOP)
        await asyncio.sleep(6)
        os.kill(site.mongod(), signal.SIGCONT)
        await site.healed(time.monotonic())


async def primary_killed(site: Site, times: int) -> None:
    """SIGKILL the primary of three, and start it again once another serves."""
    await _without_primary(site, times, site.cluster.kill, site.cluster.start)


async def primary_stopped(site: Site, times: int) -> None:
    """SIGSTOP the primary until another is elected; it comes back and finds itself deposed."""
    await _without_primary(site, times, site.cluster.pause, site.cluster.go_on)


async def _without_primary(
    site: Site, times: int, take: Callable[[int], None], give_back: Callable[[int], None]
) -> None:
    for _ in range(times):
        port = await site.cluster.primary()
        await site.breathe()
        moment = time.monotonic()
        take(port)
        await site.healed(moment)
        give_back(port)
        await site.cluster.complete()


async def primary_steps_down(site: Site, times: int) -> None:
    """The primary steps down, as in maintenance."""
    for _ in range(times):
        await site.cluster.complete()
        await site.breathe(1, 2)
        await site.healed(await site.cluster.step_down())


async def no_majority(site: Site, times: int) -> None:
    """SIGSTOP both secondaries: nothing is acknowledged that a majority does not have."""
    accepted = 0
    for _ in range(times):
        secondaries = await site.cluster.secondaries()
        await site.breathe()
        for port in secondaries:
            site.cluster.pause(port)
        # What was under way at that moment may have its majority.
        await asyncio.sleep(1)
        began = time.monotonic()
        await asyncio.sleep(5)
        accepted += sum(
            answer.status == 201 and answer.began > began for answer in site.crowd.answers
        )
        for port in secondaries:
            site.cluster.go_on(port)
        await site.healed(time.monotonic())
    site.require(accepted == 0, f"nothing is accepted without a majority; {accepted} were")


async def lossy_wire(site: Site, times: int) -> None:
    """A wire that loses replies, cuts and truncates, for so many seconds."""
    site.proxy.lose_rate = {"insert": 0.02, "update": 0.02, "find": 0.01}
    site.proxy.cut_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    site.proxy.truncate_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    await asyncio.sleep(times)
    for rate in (site.proxy.lose_rate, site.proxy.cut_rate, site.proxy.truncate_rate):
        rate.clear()
    assert site.proxy.faults, "no fault came about"
    await site.healed(time.monotonic())


async def slow_wire(site: Site, times: int) -> None:
    """A wire of 100 ms there and back, plus or minus 100 ms, for so many seconds."""
    site.must_answer_all = True
    site.proxy.delay_s = 0.1
    await asyncio.sleep(times)
    site.proxy.delay_s = 0


async def full_disk(site: Site, times: int) -> None:
    """The disk of the mongod fills up until nothing more can be stored, and has room again."""
    filler = site.data_dir.parent / "filler"
    for _ in range(times):
        await site.breathe()
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        # What the mongod has set aside already is used up first.
        await overload_scenarios.until_refused(site)
        await asyncio.sleep(2)
        filler.unlink()
        await site.healed(time.monotonic())


async def _all_serve(site: Site) -> None:
    """Wait until all processes of the server have served for a while."""
    await site.complete()
    await site.breathe()


async def _start_again(site: Site) -> None:
    """Start the server again; what counts is the time from here to the first success."""
    await asyncio.to_thread(site.server.wait)
    moment = time.monotonic()
    await asyncio.to_thread(site.server.start)
    await site.healed(moment)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own in memory; only the superuser can have one."""
    folder.mkdir()
    options = f"size={_DISK_MIB}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
