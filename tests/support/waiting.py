"""Waits for a condition, so that tests need not sleep for a fixed time."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Poll until `check` returns True. Raises TimeoutError if it never does."""
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110 - the condition may be in another process
            await asyncio.sleep(0.01)
