"""Waits for a condition, so that tests need not sleep for a fixed time."""

import asyncio
from collections.abc import Awaitable, Callable

#: A busy machine takes many times as long as an idle one. A wait ends once its condition holds,
#: so a long limit costs nothing.
PATIENCE = 6


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Poll until `check` returns True. Raises TimeoutError if it never does.

    `within_s` is the time that an idle machine may need, in seconds.
    """
    async with asyncio.timeout(within_s * PATIENCE):
        while not await check():  # noqa: ASYNC110 - the condition may be in another process
            await asyncio.sleep(0.01)
