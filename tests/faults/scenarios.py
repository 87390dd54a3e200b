"""Every fault that the service is put through: what is broken, how often, and what must hold.

Run by `tests.faults.chaos` in full and by `tests.faults.test_scenarios` in short. A scenario's
function gets a `Site` under load, breaks something so many times, and puts it up again.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import floods
from tests.faults.site import Database, Site

#: Goals for the first success after a break, in seconds.
PROCESS_S, EMBEDDED_S, PRIMARY_S = 1.5, 8.0, 12.0
_DISK_MIB = 512


@dataclass(frozen=True)
class Scenario:
    """One fault, `times` times in a full run and `short` times in a short one."""

    name: str
    title: str
    act: Callable[[Site, int], Awaitable[None]]
    times: int
    short: int
    database: Database = "embedded"
    processes: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    #: What each server is started by; one server for each.
    wrappers: tuple[tuple[str, ...], ...] = ((),)
    clients: int = 32
    pause_s: float = 0.01
    lifetimes_s: tuple[int, ...] = (3600,)
    #: Seconds: the goal for the first success, how late a message may be, the longest request.
    first_s: float | None = None
    late_s: float = 0.1
    longest_s: float = 8.0
    #: Seconds in which what an unknown read took is unread again, the database being back by then.
    release_s: float = 8.0
    #: Whether it needs a small disk of its own.
    needs_disk: bool = False


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
        await floods.until_refused(site)
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


def wrong_clock(seconds: float, every_s: float = 0.0) -> tuple[str, ...]:
    """Words that start a server whose wall clock is wrong; with `every_s` it is set right and wrong
    again every so many seconds.
    """
    is_wrong = f"time.monotonic() // {every_s} % 2" if every_s else "1"
    return (
        *(sys.executable, "-P", "-c"),
        "import runpy, sys, time\n"
        f"right = time.time\ntime.time = lambda: right() + {seconds} * ({is_wrong})\n"
        # What follows is the command: python -P -m chat_service ...
        "del sys.argv[1:5]\n"
        "runpy.run_module('chat_service', run_name='__main__', alter_sys=True)",
    )


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


SCENARIOS = (
    Scenario("soak", "nothing is broken", nothing, 600, 3),
    Scenario("process", "SIGKILL of one process of two", one_process, 60, 2, first_s=PROCESS_S),
    Scenario("processes", "SIGKILL of both processes", all_processes, 40, 2, first_s=PROCESS_S),
    Scenario(
        *("server", "SIGKILL of the server, started again", whole_server, 60, 2),
        database="external",
        processes=1,
        first_s=PROCESS_S,
    ),
    Scenario(
        *("server-mongod", "SIGKILL of the server and its mongod", server_and_mongod, 60, 1),
        first_s=EMBEDDED_S,
    ),
    Scenario(
        "mongod",
        "SIGKILL of its own mongod",
        embedded_mongod,
        140,
        2,
        first_s=EMBEDDED_S,
        release_s=16,
    ),
    Scenario("rolling", "SIGHUP: rolling restart", rolling, 20, 2),
    Scenario("terminate", "SIGTERM under load, started again", terminate, 20, 1),
    Scenario(
        *("stopped-process", "SIGSTOP of one process for 3 s", stopped_process, 10, 1),
        # Whose connections are all to the stopped one gives up on its own, in 12 s.
        longest_s=13,
        first_s=PROCESS_S,
    ),
    Scenario(
        "stopped-mongod", "SIGSTOP of the mongod for 6 s", stopped_mongod, 10, 1, release_s=16
    ),
    Scenario(
        *("primary", "SIGKILL of the primary of three", primary_killed, 50, 1),
        database="replicas",
        release_s=30,
        first_s=PRIMARY_S,
    ),
    Scenario(
        *("step-down", "the primary of three steps down", primary_steps_down, 20, 1),
        database="replicas",
        release_s=30,
        first_s=PRIMARY_S,
    ),
    Scenario(
        # No goal: after the election, MongoDB's other secondary still waits for the stopped one
        # to send it what happened, and no majority has anything until it gives up.
        *("stopped-primary", "SIGSTOP of the primary of three", primary_stopped, 3, 1),
        database="replicas",
        release_s=30,
    ),
    Scenario(
        *("no-majority", "SIGSTOP of both secondaries for 6 s", no_majority, 10, 1),
        database="replicas",
        release_s=30,
        first_s=PRIMARY_S,
    ),
    Scenario(
        *("lossy-wire", "replies lost, cut, truncated", lossy_wire, 90, 4),
        database="proxied",
    ),
    Scenario(
        *("slow-wire", "every reply 0 to 200 ms late", slow_wire, 60, 3),
        database="proxied",
    ),
    Scenario("full-disk", "the disk fills up", full_disk, 5, 1, needs_disk=True, release_s=40),
    Scenario(
        *("clocks", "clocks 2 s fast and an hour slow", nothing, 60, 6),
        database="external",
        processes=1,
        wrappers=(wrong_clock(2), wrong_clock(-3600), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario(
        *("clock-steps", "clocks that step by a minute and back", nothing, 60, 3),
        database="external",
        processes=1,
        wrappers=(wrong_clock(60, 1.5), wrong_clock(-60, 2.0), ()),
        lifetimes_s=(1, 2, 5),
    ),
    Scenario("expiry", "lifetimes of 1 to 5 s", nothing, 60, 5, lifetimes_s=(1, 2, 5)),
    Scenario(
        *("descriptors", "twice as many connections as descriptors", floods.descriptors, 5, 1),
        processes=1,
        wrappers=(("prlimit", "--nofile=256"),),
    ),
    Scenario("slow-senders", "2,000 connections, a byte a second", floods.slow_senders, 20, 3),
    Scenario("slow-readers", "readers that take nothing", floods.slow_readers, 20, 3),
    Scenario("disconnects", "clients that leave at any point", floods.disconnects, 60, 3),
    Scenario(
        *("overload", "three times what it can carry", floods.overload, 30, 4),
        database="proxied",
        processes=1,
        settings={"batch_max": "8", "queue_max": "40"},
        clients=4,
    ),
)
