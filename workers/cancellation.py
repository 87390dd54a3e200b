"""Ends tasks that use the database. Used by `workers.pool` and `chat_service.metrics.recorder`."""

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.2


async def end_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks until all have ended. Their results and errors are dropped.

    Repeated, since a driver may turn a cancellation into an error of its own. A task that survives
    errors of the database takes it for one, and goes on.
    """
    left = {*tasks}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
