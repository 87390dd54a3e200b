"""The database's clock steps while the service runs. All messages follow that clock.

A scenario of `tests.faults.scenarios`. `tests.faults.stepping` starts servers whose own clocks
step.
"""

import asyncio
import time

from tests.faults.testbed import Testbed

#: The size of a step, and how long the clock stays there, in seconds. A step is longer than the
#: limits that follow this clock, of claims and of the leader, but a step back may stop the mongod
#: for as long.
_STEP_S, _STAYS_S = 20, 3


async def database_steps(testbed: Testbed, times: int) -> None:
    """Step the mongod's clock by 20 s and back: first forward, the next time backward."""
    for number in range(times):
        for seconds in (-_STEP_S if number % 2 else _STEP_S, 0):
            await testbed.run_load()
            testbed.step_clock(seconds)
            await asyncio.sleep(_STAYS_S)
            await testbed.await_recovery(time.monotonic())
