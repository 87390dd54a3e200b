"""Attacks on a service that honest clients use. It must serve them and keep every guarantee.

Scenarios of `tests.faults.scenarios`. The testbed's clients are the honest traffic; the attacker is
a separate process, `tests.faults.attackers`. How much the attack may slow down honest clients is a
goal, not a guarantee.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.faults.chaos_clients import Answer, Client, post_request, read_request
from tests.faults.testbed import Goal, Testbed
from tests.support.code_path import CODE_PATH

#: Seconds before the attack in which the honest clients' p50 is measured, for comparison.
_BEFORE_S = 1.5
#: The factor by which their p50 may grow.
_SLOWER = 2.0
#: The memory limit of a service process, in MiB.
_MEMORY_MIB = 300
#: MiB of free disk space when the attack begins; soon only the service's reserve is left.
_ROOM_MIB = 120


def attack(name: str, *, answers_all: bool = True) -> Callable[[Testbed, int], Awaitable[None]]:
    """Return an attack's scenario. With `answers_all`, every honest request must be answered."""

    async def act(testbed: Testbed, times: int) -> None:
        testbed.must_answer_all = answers_all
        await mount(testbed, name, times)
        await testbed.await_recovery(time.monotonic())

    act.__doc__ = f"Run the attack `{name}` for this many seconds."
    return act


async def mount(testbed: Testbed, name: str, seconds: float) -> dict[str, Any]:
    """Attack for this many seconds, with goals for the honest clients. Return the attacker's
    results.
    """
    await asyncio.sleep(_BEFORE_S)
    before = _p50(testbed.clients.answers)
    testbed.memory_mib = 0
    began = time.monotonic()
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.faults.attackers"),
        *(name, str(testbed.server.port), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": CODE_PATH},
    )
    try:
        async with asyncio.timeout(seconds + 60):
            out, _ = await attacker.communicate()
    finally:
        if attacker.returncode is None:
            attacker.kill()
    during = [answer for answer in testbed.clients.answers if answer.began >= began]
    said: dict[str, Any] = json.loads(out)
    testbed.require(said["sent"] > 0, f"the attack {name} sends something")
    testbed.require(bool(_served(during)), "honest clients are served")
    if _served(during):
        slower = _p50(during) / before
        testbed.goals.append(
            Goal("honest p50 during the attack, relative to before", slower, _SLOWER, "times")
        )
    testbed.goals.append(Goal("memory of a process", testbed.memory_mib, _MEMORY_MIB, "MiB"))
    return said


async def origins(testbed: Testbed, times: int) -> None:
    """Post and read from pages of other sites for this many seconds. The service must refuse it
    all.
    """
    testbed.must_answer_all = True
    client = Client(testbed.address)
    posted = await client.ask(post_request("guarded", "mine", 3600))
    assert posted is not None
    assert posted.status == 201
    said = await mount(testbed, "origins", times)
    others = {status: often for status, often in said["answers"].items() if status != "403"}
    testbed.require(
        not others, f"pages of other sites are refused; the other statuses were {others}"
    )
    read = await client.ask(read_request("guarded"))
    assert read is not None
    texts = [message["text"] for message in json.loads(read.body)]
    testbed.require(
        texts == ["mine"], f"pages of other sites consume and post nothing; the inbox has {texts}"
    )
    client.close()


async def disk(testbed: Testbed, times: int) -> None:
    """Fill the disk with posts for this many seconds. All of them can be read while it is full."""
    filler = testbed.data_dir.parent / "filler"
    with filler.open("wb") as file:
        while testbed.free_mib() > _ROOM_MIB:
            file.write(bytes(1 << 20))
            file.flush()
    said = await mount(testbed, "disk", times)
    testbed.require("507" in said["answers"], f"the disk fills up: {said['answers']}")
    client = Client(testbed.address)
    read = await client.ask(read_request("hoard"))
    while read is not None and read.body != b"[]":
        testbed.require(read.status == 200, "reads work on a full disk")
        read = await client.ask(read_request("hoard"))
    client.close()
    filler.unlink()
    await testbed.await_recovery(time.monotonic())


def _served(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.outcome == "ok"]


def _p50(answers: list[Answer]) -> float:
    return statistics.median(answer.ended - answer.began for answer in _served(answers))
