"""Bounds the cost of expensive answers, however many clients ask for them.

`Shared` caches an answer that is the same for all clients, such as the text of `/metrics`. `Pace`
slows down clients that request a long answer again and again. Used by `chat_service.service` and
by the handlers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """A result that is computed on demand and cached for `keep_s` seconds."""

    def __init__(self, make: Callable[[], Awaitable[T]], keep_s: float) -> None:
        """Cache the result of `make` for `keep_s` seconds from the moment `make` is called.

        An exception of `make` is cached as well.
        """
        self._make = make
        self._keep_s = keep_s
        self._kept_until = 0.0
        self._making: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the cached result, or compute one. Concurrent callers share one computation.

        Cancelling one caller does not cancel the computation.
        """
        now = asyncio.get_running_loop().time()
        making = self._making
        if making is None or (making.done() and now >= self._kept_until):
            self._kept_until = now + self._keep_s
            making = self._making = asyncio.create_task(self._run())
        return await asyncio.shield(making)

    async def close(self) -> None:
        """Cancel the computation in progress, and with it all of its callers."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait((self._making,))

    async def _run(self) -> T:
        return await self._make()


class Pace:
    """Lets `at_once` requests through in each span of time, and delays each of the others.

    Clients that repeat a request as soon as it is answered are slowed down. A client that asks
    occasionally does not notice.
    """

    def __init__(self, at_once: int, span_s: float) -> None:
        self._at_once = at_once
        self._span_s = span_s
        self._left = 0
        self._until = 0.0

    async def turn(self) -> None:
        """Wait until the request may be answered."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._until, self._left = now + self._span_s, self._at_once
        if self._left:
            self._left -= 1
        else:
            # Each request waits from its own arrival, so that waiting requests do not burst.
            await asyncio.sleep(self._span_s)
