"""One result for everyone who asks at about the same time.

For answers that are dear to make and the same for all: the text of `/metrics`, the check of the
database behind `/readyz`. However often they are asked for, they are made once in a while. Made by
`chat_service.service`.
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
