"""Waiting for something to become true, without a test that sleeps for a fixed time."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Ask again and again until `check` says so; TimeoutError where it never does."""
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.01)
