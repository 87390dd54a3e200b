"""A user's project: what it may write with full types, on any supported Python.

usage: python worker.py URL
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime

from chat_inbox import (
    ChatClient,
    ChatError,
    Delivered,
    Draft,
    Lease,
    LeaseOver,
    Message,
    OutcomeUnknown,
    Posted,
    ProblemError,
    RateLimited,
    SyncChatClient,
)


def sequentially(url: str) -> list[str]:
    """Use the client for threads."""
    taken: list[str] = []
    with SyncChatClient(url, token=lambda: "a-token", timeout_s=20) as chat:
        posted: Posted = chat.post("bob", "one", 60, receipt=True)
        receipt: str | None = posted.receipt
        if receipt is not None:
            at: datetime | None = chat.status(posted.id, receipt).at
            assert at is None
        results: list[Posted | ChatError] = chat.post_batch(
            [("bob", "two"), Draft("bob", "three", delay_s=0), ("bob", "four", 60)]
        )
        assert all(isinstance(each, Posted) for each in results), results
        assert chat.count("bob") == 4
        messages: list[Message] = chat.read("bob", 1)
        taken += [message.text for message in messages]
        with chat.lease("bob", ttl_s=0.3, limit=1) as lease:
            for delivered in lease:
                deliveries: int = delivered.deliveries
                taken.append(f"{delivered.text} {deliveries}")
        with chat.stream("bob") as stream:
            for message in stream:
                taken.append(message.text)
                if message.text == "four":
                    stream.acknowledge()
                    break
        assert chat.wait("bob", 0.01) == []
    return taken


async def concurrently(url: str) -> list[str]:
    """Use the client for asyncio."""
    taken: list[str] = []

    async def token() -> str:
        return "a-token"

    async with ChatClient(url, token=token) as chat:
        await asyncio.gather(*(chat.post("eve", text) for text in ("one", "two", "three")))
        async with chat.lease("eve", limit=1) as lease:
            work(lease.messages)
            taken += [message.id for message in lease]
        held: Lease = await chat.lease("eve", limit=1, wait_s=5)
        assert held.name is not None
        taken += [str(await held.acknowledge())]
        stream = chat.stream("eve")
        async for message in stream:
            taken.append(message.text)
            await stream.acknowledge()
            break
        await stream.close()
        try:
            await chat.extend("eve", held.name, 5)
        except LeaseOver as over:
            lost: tuple[str, ...] = over.lost
            assert lost == ()
        try:
            await chat.post("eve", "x", 0)
        except RateLimited as limited:
            raise AssertionError(limited.retry_after_s) from None
        except ProblemError as problem:
            taken.append(problem.errors[0].field)
        except OutcomeUnknown as unknown:
            key: str | None = unknown.key
            raise AssertionError(key) from None
    return taken


def work(messages: list[Delivered]) -> None:
    """Handle messages."""
    assert len(messages) == 1


if __name__ == "__main__":
    assert sequentially(sys.argv[1]) == ["one", "two 1", "three", "four"]
    assert len(asyncio.run(concurrently(sys.argv[1]))) == 4
