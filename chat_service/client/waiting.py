"""Waiting for longer than the service lets a request wait: asked again and again, without haste.

Used by `chat_service.client.chat`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from chat_service.client.http import Answer, pause_s

T = TypeVar("T")

#: One request waits so long, in seconds: less than the service allows, unless its operator has
#: changed that.
_WAIT_S = 20.0
_APPLIED = re.compile(r"wait=([0-9.]+)")


class Asked(NamedTuple, Generic[T]):
    """One answer: whether it is what was waited for, and how long the service would have waited."""

    result: T
    is_found: bool
    granted_s: float


def granted(answer: Answer, wait_s: float) -> float:
    """How long the service was willing to wait: it says where that is less than was asked."""
    applied = _APPLIED.search(answer.headers.get("Preference-Applied", ""))
    return wait_s if applied is None else min(float(applied[1]), wait_s)


async def until(timeout_s: float, ask: Callable[[float], Awaitable[Asked[T]]]) -> T:
    """Ask, with how long to wait for an answer, until it is found or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    early = 0
    while True:
        began = loop.time()
        asked = await ask(min(max(deadline - began, 0.0), _WAIT_S))
        now = loop.time()
        if asked.is_found or now >= deadline:
            return asked.result
        # A service that stops, or that lets nobody wait, has nothing to say at once.
        is_early = now - began < asked.granted_s / 2 or not asked.granted_s
        early = early + 1 if is_early else 0
        if early:
            await asyncio.sleep(min(pause_s(early), deadline - now))
