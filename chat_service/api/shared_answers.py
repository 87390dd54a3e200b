"""Keeps dear answers cheap, however many clients ask for them and however often.

What is the same for all, such as the text of `/metrics`, is made once in a while (`Shared`), and
clients that ask for a long answer again and again are slowed down (`Pace`). Made by
`chat_service.service` and by the handlers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Makes a result when it is asked for, and keeps it for `keep_s` seconds."""

    def __init__(self, make: Callable[[], Awaitable[T]], keep_s: float) -> None:
        """`keep_s` counts from when `make` is called: no result is older than that and its making.

        What `make` raises is kept, too.
        """
        self._make = make
        self._keep_s = keep_s
        self._kept_until = 0.0
        self._making: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the result that is being made or kept, or make one.

        An asker that is cancelled leaves the result to the others.
        """
        now = asyncio.get_running_loop().time()
        making = self._making
        if making is None or (making.done() and now >= self._kept_until):
            self._kept_until = now + self._keep_s
            making = self._making = asyncio.create_task(self._run())
        return await asyncio.shield(making)

    async def close(self) -> None:
        """End what is being made. Its askers are cancelled."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.wait((self._making,))

    async def _run(self) -> T:
        return await self._make()


class Pace:
    """Lets so many requests through at once in each span of time; each of the others waits for one.

    Clients that ask again as soon as they are answered then leave the processor to others, and one
    that asks now and then does not notice.
    """

    def __init__(self, at_once: int, span_s: float) -> None:
        self._at_once = at_once
        self._span_s = span_s
        self._left = 0
        self._until = 0.0

    async def turn(self) -> None:
        """Return when the request may be answered."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._until, self._left = now + self._span_s, self._at_once
        if self._left:
            self._left -= 1
        else:
            # From its own arrival on: those that wait go on one after the other.
            await asyncio.sleep(self._span_s)
