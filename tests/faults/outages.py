"""Outages of a service and its database: processes, primaries, connections, disks.

Scenarios of `tests.faults.scenarios`. Each gets a `Testbed` under load, injects its fault `times`
times, and restores everything.
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
    """Run the load alone for this many seconds. Every request must be answered."""
    testbed.must_answer_all = True
    await asyncio.sleep(times)


async def one_process(testbed: Testbed, times: int) -> None:
    """SIGKILL one process of the server. Its clients reconnect to the other one."""
    for _ in range(times):
        await _all_serve(testbed)
        await testbed.await_recovery(testbed.kill(testbed.rng.choice(testbed.server.members())))


async def all_processes(testbed: Testbed, times: int) -> None:
    """SIGKILL all processes of the server at once, but not its supervisor."""
    for _ in range(times):
        await _all_serve(testbed)
        await testbed.await_recovery(testbed.kill(*testbed.server.members()))


async def whole_server(testbed: Testbed, times: int) -> None:
    """SIGKILL the server and restart it. Its database keeps running."""
    for _ in range(times):
        await testbed.run_load()
        testbed.kill(testbed.server.process.pid, *testbed.server.members())
        await _restart(testbed)


async def server_and_mongod(testbed: Testbed, times: int) -> None:
    """SIGKILL the server and its mongod, and restart the server."""
    for _ in range(times):
        await testbed.run_load()
        testbed.kill(testbed.server.process.pid, *testbed.server.members(), testbed.mongod())
        await _restart(testbed)


async def embedded_mongod(testbed: Testbed, times: int) -> None:
    """SIGKILL the server's own mongod, which the server restarts."""
    for _ in range(times):
        await testbed.run_load()
        await testbed.await_recovery(testbed.kill(testbed.mongod()))


async def rolling(testbed: Testbed, times: int) -> None:
    """SIGHUP: replace the processes one by one, without an effect on clients."""
    testbed.must_answer_all = True
    for _ in range(times):
        await _all_serve(testbed)
        before = set(testbed.server.members())
        testbed.server.signal(signal.SIGHUP)
        await testbed.await_replaced(before)


async def terminate(testbed: Testbed, times: int) -> None:
    """SIGTERM under load, and restart. Every accepted request gets a complete answer."""
    codes = 0
    for _ in range(times):
        await testbed.run_load()
        testbed.server.signal(signal.SIGTERM)
        codes += abs(await asyncio.to_thread(testbed.server.wait))
        await _restart(testbed)
    cut = sum(answer.outcome == "cut" for answer in testbed.clients.answers)
    testbed.require(codes == 0, "the server exits with 0")
    testbed.require(cut == 0, f"every request is answered; {cut} were not")


async def stopped_process(testbed: Testbed, times: int) -> None:
    """SIGSTOP one process for 3 s. The other one takes all new connections."""
    for _ in range(times):
        await _all_serve(testbed)
        victim = testbed.rng.choice(testbed.server.members())
        os.kill(victim, signal.SIGSTOP)
        await testbed.await_recovery(time.monotonic())
        await asyncio.sleep(3)
        os.kill(victim, signal.SIGCONT)


async def stopped_mongod(testbed: Testbed, times: int) -> None:
    """SIGSTOP the mongod for longer than any deadline. Every request is answered all the same."""
    for _ in range(times):
        await testbed.run_load()
        os.kill(testbed.mongod(), signal.SIGSTOP)
        await asyncio.sleep(6)
        os.kill(testbed.mongod(), signal.SIGCONT)
        await testbed.await_recovery(time.monotonic())


async def primary_killed(testbed: Testbed, times: int) -> None:
    """SIGKILL the primary of three, and restart it once another one serves."""
    await _without_primary(testbed, times, testbed.cluster.kill, testbed.cluster.start)


async def primary_stopped(testbed: Testbed, times: int) -> None:
    """SIGSTOP the primary until another one is elected. It resumes and finds itself deposed."""
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
    """Make the primary step down, as for maintenance."""
    for _ in range(times):
        await testbed.cluster.complete()
        await testbed.run_load(1, 2)
        await testbed.await_recovery(await testbed.cluster.step_down())


async def no_majority(testbed: Testbed, times: int) -> None:
    """SIGSTOP both secondaries. Nothing may be accepted that a majority does not have."""
    accepted = 0
    for _ in range(times):
        secondaries = await testbed.cluster.secondaries()
        await testbed.run_load()
        for port in secondaries:
            testbed.cluster.pause(port)
        # Writes that were in flight at that moment may have their majority.
        await asyncio.sleep(1)
        began = time.monotonic()
        await asyncio.sleep(5)
        accepted += sum(
            answer.status == 201 and answer.began > began for answer in testbed.clients.answers
        )
        for port in secondaries:
            testbed.cluster.resume(port)
        await testbed.await_recovery(time.monotonic())
    testbed.require(accepted == 0, f"without a majority, no post is accepted; {accepted} were")


async def lossy_wire(testbed: Testbed, times: int) -> None:
    """Lose, cut and truncate replies for this many seconds."""
    testbed.proxy.lose_rate = {"insert": 0.02, "update": 0.02, "find": 0.01}
    testbed.proxy.cut_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    testbed.proxy.truncate_rate = {"insert": 0.01, "update": 0.01, "find": 0.01}
    await asyncio.sleep(times)
    for rate in (testbed.proxy.lose_rate, testbed.proxy.cut_rate, testbed.proxy.truncate_rate):
        rate.clear()
    assert testbed.proxy.faults, "the proxy injected no fault"
    await testbed.await_recovery(time.monotonic())


async def slow_wire(testbed: Testbed, times: int) -> None:
    """Delay every reply by 0 to 200 ms for this many seconds."""
    testbed.must_answer_all = True
    testbed.proxy.delay_s = 0.1
    await asyncio.sleep(times)
    testbed.proxy.delay_s = 0


async def full_disk(testbed: Testbed, times: int) -> None:
    """Fill the mongod's disk until nothing can be stored, and free it again."""
    filler = testbed.data_dir.parent / "filler"
    for _ in range(times):
        await testbed.run_load()
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        # The mongod first uses up the space that it has preallocated.
        await overload_scenarios.until_refused(testbed)
        await asyncio.sleep(2)
        filler.unlink()
        await testbed.await_recovery(time.monotonic())


async def _all_serve(testbed: Testbed) -> None:
    """Wait until all processes of the server have served for a while."""
    await testbed.await_processes()
    await testbed.run_load()


async def _restart(testbed: Testbed) -> None:
    """Restart the server. The time to the first success counts from here."""
    await asyncio.to_thread(testbed.server.wait)
    moment = time.monotonic()
    await asyncio.to_thread(testbed.server.start)
    await testbed.await_recovery(moment)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a separate file system in memory, which needs root."""
    folder.mkdir()
    options = f"size={_DISK_MIB}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
