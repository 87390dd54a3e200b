"""An attack beside honest clients: they are answered, and nothing is promised in vain.

Scenarios of `tests.faults.scenarios`. The crowd of the site is the honest traffic; the attacker is
a process of its own, `tests.faults.attackers`. How much slower the honest ones are is a goal.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from config.settings import PROJECT_ROOT
from tests.faults.chaos_clients import Answer, Client, post_request, read_request
from tests.faults.testbed import Goal, Testbed

#: What the honest ones' p50 is compared over before the attack, in seconds.
_BEFORE_S = 1.5
#: How much slower they may be: times.
_SLOWER = 2.0
#: MiB that a process of the service may have.
_MEMORY_MIB = 300
#: MiB of the disk that an attacker finds: soon no more than the service keeps free.
_ROOM_MIB = 120


def attack(name: str, *, answers_all: bool = True) -> Callable[[Testbed, int], Awaitable[None]]:
    """The scenario of one attack, for so many seconds. `answers_all` of the honest requests."""

    async def act(testbed: Testbed, times: int) -> None:
        testbed.must_answer_all = answers_all
        await mount(testbed, name, times)
        await testbed.await_recovery(time.monotonic())

    act.__doc__ = f"The attack `{name}`, for so many seconds."
    return act


async def mount(testbed: Testbed, name: str, seconds: float) -> dict[str, Any]:
    """Attack for so many seconds, with goals for the honest clients; what the attacker says."""
    await asyncio.sleep(_BEFORE_S)
    before = _p50(testbed.clients.answers)
    testbed.memory_mib = 0
    began = time.monotonic()
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.faults.attackers"),
        *(name, str(testbed.port()), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
    )
    try:
        async with asyncio.timeout(seconds + 60):
            out, _ = await attacker.communicate()
    finally:
        if attacker.returncode is None:
            attacker.kill()
    during = [answer for answer in testbed.clients.answers if answer.began >= began]
    said: dict[str, Any] = json.loads(out)
    testbed.require(said["sent"] > 0, f"the attack {name} came about")
    testbed.require(bool(_served(during)), "honest clients are served")
    if _served(during):
        slower = _p50(during) / before
        testbed.goals.append(Goal("p50 beside it, to that before", slower, _SLOWER, "times"))
    testbed.goals.append(Goal("memory of a process", testbed.memory_mib, _MEMORY_MIB, "MiB"))
    return said


async def origins(testbed: Testbed, times: int) -> None:
    """Pages of other sites post and read, for so many seconds: nothing of it is carried out."""
    testbed.must_answer_all = True
    client = Client(testbed.port)
    posted = await client.ask(post_request("guarded", "mine", 3600))
    assert posted is not None
    assert posted.status == 201
    said = await mount(testbed, "origins", times)
    others = {status: often for status, often in said["answers"].items() if status != "403"}
    testbed.require(not others, f"other sites' pages are refused; they were answered {others}")
    read = await client.ask(read_request("guarded"))
    assert read is not None
    texts = [message["text"] for message in json.loads(read.body)]
    testbed.require(texts == ["mine"], f"they consume and post nothing; there is {texts}")
    client.close()


async def disk(testbed: Testbed, times: int) -> None:
    """Posts that fill the disk, for so many seconds: all of them can be read while it is full."""
    filler = testbed.data_dir.parent / "filler"
    with filler.open("wb") as file:
        while testbed.free_mib() > _ROOM_MIB:
            file.write(bytes(1 << 20))
            file.flush()
    said = await mount(testbed, "disk", times)
    testbed.require("507" in said["answers"], f"the disk fills up: {said['answers']}")
    client = Client(testbed.port)
    read = await client.ask(read_request("hoard"))
    while read is not None and read.body != b"[]":
        testbed.require(read.status == 200, "a full disk is read")
        read = await client.ask(read_request("hoard"))
    client.close()
    filler.unlink()
    await testbed.await_recovery(time.monotonic())


def _served(answers: list[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.outcome == "ok"]


def _p50(answers: list[Answer]) -> float:
    return statistics.median(answer.ended - answer.began for answer in _served(answers))
