"""A stalled event loop is not mistaken for a database that does not answer."""

import asyncio
import time

from tests.conftest import StartService
from workers.circuit_breaker import FAILURES
from workers.commands import Key
from workers.errors import OutcomeUnknown
from workers.store.driver_errors import Unsent

#: How long each stall of the loop takes, and the time limit of an operation, in seconds.
STALL_S, TIMEOUT_S = 0.4, 1.0


async def test_a_stalled_loop_is_not_the_databases_fault(start_service: StartService) -> None:
    service = await start_service(mongo_timeout_s=TIMEOUT_S, deadline_s=60.0)
    pool = service._pool
    assert pool is not None
    key = Key("one", "body")
    await pool.post_keyed("bob", "hello", 5, 60, key)
    met: list[BaseException | None] = []
    for _ in range(FAILURES):
        # A repeat queries the database twice in one operation, which takes more than one iteration.
        repeat = pool.post_keyed("bob", "hello", 5, 60, key)
        while not repeat.done():
            time.sleep(STALL_S)  # noqa: ASYNC251 - the loop is really stalled
            await asyncio.sleep(0)
        met.append(repeat.exception())
        await asyncio.sleep(0)
    # They timed out because of the loop, or did not even get a connection in time.
    assert {type(each) for each in met} <= {OutcomeUnknown, Unsent}
    assert not pool._breaker.is_open
    assert await pool.database_answers()
    assert (await pool.post_keyed("bob", "hello", 5, 60, key)).is_repeated
