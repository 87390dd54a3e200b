"""A clock that steps under the service: that of its database, by which all messages are judged.

A scenario of `tests.faults.scenarios`. Servers whose own clocks step are started by
`tests.faults.stepping`.
"""

import asyncio
import time

from tests.faults.testbed import Testbed

#: How far it steps, and how long it stays so, in seconds.
_STEP_S, _STAYS_S = 60, 3


async def database_steps(testbed: Testbed, times: int) -> None:
    """The mongod's clock steps by a minute, forth and back, then back and forth."""
    for _ in range(times):
        for seconds in (_STEP_S, 0, -_STEP_S, 0):
            await testbed.run_load()
            testbed.step_clock(seconds)
            await asyncio.sleep(_STAYS_S)
            await testbed.await_recovery(time.monotonic())
