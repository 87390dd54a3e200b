"""Repeats long polls to wait for longer than the service lets one request wait.

Used by `chat_service.client.chat`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from chat_service.client.http import Answer, pause_s

T = TypeVar("T")

#: The wait of one request, in seconds: less than the service's default maximum.
_WAIT_S = 20.0
_APPLIED = re.compile(r"wait=([0-9.]+)")


class Polled(NamedTuple, Generic[T]):
    """The result of one long poll.

    `is_found` tells whether it is what the caller waits for. `granted_s` is how long the service
    was willing to wait.
    """

    result: T
    is_found: bool
    granted_s: float


def granted(answer: Answer, wait_s: float) -> float:
    """Return how long the service was willing to wait, in seconds.

    The service states it if it is less than the request asked for.
    """
    applied = _APPLIED.search(answer.headers.get("Preference-Applied", ""))
    return wait_s if applied is None else min(float(applied[1]), wait_s)


async def poll_until(timeout_s: float, poll: Callable[[float], Awaitable[Polled[T]]]) -> T:
    """Call `poll` with a wait in seconds until it finds something or `timeout_s` has passed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    early = 0
    while True:
        began = loop.time()
        polled = await poll(min(max(deadline - began, 0.0), _WAIT_S))
        now = loop.time()
        if polled.is_found or now >= deadline:
            return polled.result
        # A service that is stopping, or does not allow waiting, returns early; do not spin then.
        is_early = now - began < polled.granted_s / 2 or not polled.granted_s
        early = early + 1 if is_early else 0
        if early:
            await asyncio.sleep(min(pause_s(early), deadline - now))
