"""Waiting for something to become true, without a test that sleeps for a fixed time."""

import asyncio
from collections.abc import Awaitable, Callable

#: A busy machine takes many times as long as an idle one. Where a wait ends by itself once its
#: condition holds, patience costs nothing.
PATIENCE = 6


async def eventually(check: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Ask again and again until `check` says so; TimeoutError if it never does.

    `within_s` is what an idle machine may take, in seconds.
    """
    async with asyncio.timeout(within_s * PATIENCE):
        while not await check():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.01)
