"""What may break of a service and its database: processes, primaries, wires, disks.

Scenarios of `tests.faults.scenarios`: each gets a `Testbed` under load, breaks something so many
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
from tests.faults.testbed import Testbed

_DISK_MIB = 512


async def nothing(testbed: Testbed, times: int) -> None:
    """Load alone, for so many seconds; everything is answered."""
    testbed.must_answer_all = True
    await asyncio.sleep(times)


async def one_process(testbed: Testbed, times: int) -> None:
    """SIGKILL one process of the server; its clients connect again, to the other."""
    for _ in range(times):
        await _all_serve(testbed)
        await testbed.await_recovery(testbed.kill(testbed.rng.choice(testbed.server.members())))


async def all_processes(testbed: Testbed, times: int) -> None:
    """SIGKILL all processes of the server at once; its supervisor lives."""
    for _ in range(times):
        await _all_serve(testbed)
        await testbed.await_recovery(testbed.kill(*testbed.server.members()))


async def whole_server(testbed: Testbed, times: int) -> None:
    """SIGKILL the server, and start it again; its database goes on."""
    for _ in range(times):
        await testbed.run_load()
        testbed.kill(testbed.server.process.pid, *testbed.server.members())
        await _start_again(testbed)


async def server_and_mongod(testbed: Testbed, times: int) -> None:
    """SIGKILL the server and its mongod, and start the server again."""
    for _ in range(times):
        await testbed.run_load()
        testbed.kill(testbed.server.process.pid, *testbed.server.members(), testbed.mongod())
        await _start_again(testbed)


async def embedded_mongod(testbed: Testbed, times: int) -> None:
    """SIGKILL the server's own mongod, which it starts again."""
    for _ in range(times):
        await testbed.run_load()
        await testbed.await_recovery(testbed.kill(testbed.mongod()))


async def rolling(testbed: Testbed, times: int) -> None:
    """SIGHUP: the processes are replaced one by one, and no client notices."""
    testbed.must_answer_all = True
    for _ in range(times):
        await _all_serve(testbed)
        before = set(testbed.server.members())
        testbed.server.signal(signal.SIGHUP)
        await testbed.await_replaced(before)


async def terminate(testbed: Testbed, times: int) -> None:
    """SIGTERM under load, and start again: who was accepted gets a whole answer."""
    codes = 0
    for _ in range(times):
        await testbed.run_load()
        testbed.server.signal(signal.SIGTERM)
        codes += abs(await asyncio.to_thread(testbed.server.wait))
        await _start_again(testbed)
    cut = sum(answer.outcome == "cut" for answer in testbed.clients.answers)
    testbed.require(codes == 0, "the server exits with 0")
    testbed.require(cut == 0, f"each request is answered; {cut} were not")


async def stopped_process(testbed: Testbed, times: int) -> None:
    """SIGSTOP one process for 3 s: the other takes all new connections."""
    for _ in range(times):
        await _all_serve(testbed)
        victim = testbed.rng.choice(testbed.server.members())
        os.kill(victim, signal.SIGSTOP)
        await testbed.await_recovery(time.monotonic())
        await asyncio.sleep(3)
        os.kill(victim, signal.SIGCONT)


async def stopped_mongod(testbed: Testbed, times: int) -> None:
    """SIGSTOP the mongod for longer than any request lives: all are answered all the same."""
    for _ in range(times):
        await testbed.run_load()
        os.kill(testbed.mongod(), signal.SIGSTOP)
        await asyncio.sleep(6)
        os.kill(testbed.mongod(), signal.SIGCONT)
        await testbed.await_recovery(time.monotonic())


async def primary_killed(testbed: Testbed, times: int) -> None:
    """SIGKILL the primary of three, and start it again once another serves."""
    await _without_primary(testbed, times, testbed.cluster.kill, testbed.cluster.start)


async def primary_stopped(testbed: Testbed, times: int) -> None:
    """SIGSTOP the primary until another is elected; it comes back and finds itself deposed."""
    await _without_primary(testbed, times, testbed.cluster.pause, testbed.cluster.resume)


async def _without_primary(
    testbed: Testbed, times: int, take: Callable[[int], None], give_back: Callable[[int], None]
) -> None:
    for _ in range(times):
        port = await testbed.cluster.primary()
        await testbed.run_load()
        moment = time.monotonic()
        take(port)
        await testbed.await_recovery(moment)
        give_back(port)
        await testbed.cluster.complete()


async def primary_steps_down(testbed: Testbed, times: int) -> None:
    """The primary steps down, as in maintenance."""
    for _ in range(times):
        await testbed.cluster.complete()
        await testbed.run_load(1, 2)
        await testbed.await_recovery(await testbed.cluster.step_down())


async def no_majority(testbed: Testbed, times: int) -> None:
    """SIGSTOP both secondaries: nothing is acknowledged that a majority does not have."""
    accepted = 0
    for _ in range(times):
        secondaries = await testbed.cluster.secondaries()
        await testbed.run_load()
        for port in secondaries:
            testbed.cluster.pause(port)
        # What was under way at that moment may have its majority.
        await asyncio.sleep(1)
        began = time.monotonic()
        await asyncio.sleep(5)
        accepted += sum(
            answer.status == 201 and answer.began > began for answer in testbed.clients.answers
        )
        for port in secondaries:
            testbed.cluster.resume(port)
        await testbed.await_recovery(time.monotonic())
    testbed.require(accepted == 0, f"nothing is accepted without a majority; {accepted} were")


async def lossy_wire(testbed: Testbed, times: int) -> None:
    """A wire that loses replies, cuts and truncates, for so many seconds."""
    testbed.proxy.lose_rate = {"insert": 0.02, "update": 0.02, "find": 0.01}
    testbed.proxy.cut_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    testbed.proxy.truncate_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    await asyncio.sleep(times)
    for rate in (testbed.proxy.lose_rate, testbed.proxy.cut_rate, testbed.proxy.truncate_rate):
        rate.clear()
    assert testbed.proxy.faults, "no fault came about"
    await testbed.await_recovery(time.monotonic())


async def slow_wire(testbed: Testbed, times: int) -> None:
    """A wire of 100 ms there and back, plus or minus 100 ms, for so many seconds."""
    testbed.must_answer_all = True
    testbed.proxy.delay_s = 0.1
    await asyncio.sleep(times)
    testbed.proxy.delay_s = 0


async def full_disk(testbed: Testbed, times: int) -> None:
    """The disk of the mongod fills up until nothing more can be stored, and has room again."""
    filler = testbed.data_dir.parent / "filler"
    for _ in range(times):
        await testbed.run_load()
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        # What the mongod has set aside already is used up first.
        await overload_scenarios.until_refused(testbed)
        await asyncio.sleep(2)
        filler.unlink()
        await testbed.await_recovery(time.monotonic())


async def _all_serve(testbed: Testbed) -> None:
    """Wait until all processes of the server have served for a while."""
    await testbed.await_processes()
    await testbed.run_load()


async def _start_again(testbed: Testbed) -> None:
    """Start the server again; what counts is the time from here to the first success."""
    await asyncio.to_thread(testbed.server.wait)
    moment = time.monotonic()
    await asyncio.to_thread(testbed.server.start)
    await testbed.await_recovery(moment)


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
