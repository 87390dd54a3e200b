"""Requests to a pool, and what its answers hold, for tests of the engine."""

import asyncio
from typing import Any

from workers.commands import Slice
from workers.pool import WorkerPool


def post(pool: WorkerPool, username: str, text: str = "x") -> asyncio.Future[str]:
    """Post a message that lives for a minute."""
    return pool.post(username, text, len(text), 60)


def texts(read: Slice) -> list[str]:
    """Return the texts of the messages that a read returned."""
    return [message.text for message in read.messages]


async def gather_answers(*futures: asyncio.Future[Any]) -> list[object]:
    """Wait for the answers of all requests. An error is an answer, too."""
    async with asyncio.timeout(30):
        return list(await asyncio.gather(*futures, return_exceptions=True))
