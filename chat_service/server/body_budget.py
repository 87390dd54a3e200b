"""Collects request bodies, and limits the memory of all bodies of a process.

`chat_service.server.exchange` and `chat_service.server.fast_connection` report the bytes that they
hold to the `BodyBudget`. When the budget is exceeded, it gives up bodies: first those of the client
that holds the most, and of these the ones that have held the most memory for the longest. So a
client that sends its body without pauses rarely loses one, and no client takes the memory of the
others.
"""

import asyncio
from collections import Counter
from typing import Protocol

#: The reason in the 503 response to a request whose body was given up.
OVER_BUDGET = "the bodies of all requests together take too much memory"
#: Pieces are collected in blocks of this size, in bytes. Many small objects would take more memory.
_BLOCK_BYTES = 64 << 10
#: When the budget is exceeded, bodies are given up until 1/16 of it is free.
_FREED = 16


class Body:
    """The part of a request's body that has arrived."""

    def __init__(self) -> None:
        self._blocks: list[bytes | bytearray] = []
        self._last = bytearray()

    def append(self, piece: bytes) -> None:
        """Add the next piece."""
        if len(self._last) + len(piece) <= _BLOCK_BYTES:
            self._last += piece
            return
        if self._last:
            self._blocks.append(self._last)
            self._last = bytearray()
        self._blocks.append(piece)

    def take(self) -> bytes:
        """Return the whole body, and forget it."""
        whole = b"".join((*self._blocks, self._last))
        self.clear()
        return whole

    def clear(self) -> None:
        """Forget the bytes that have arrived."""
        self._blocks.clear()
        self._last = bytearray()


class Holder(Protocol):
    """A request whose body is in memory."""

    #: When its body began to arrive, in seconds of the loop's time.
    body_began: float

    @property
    def body_client(self) -> str:
        """The key of the client that sends the body."""
        ...

    def give_up_body(self) -> None:
        """Forget the body at once, and answer 503 from the loop. It is unfinished."""


class BodyBudget:
    """Counts and limits the bytes of all bodies of a process."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._total = 0
        self._unfinished: dict[Holder, int] = {}
        self._served: dict[Holder, int] = {}

    @property
    def total(self) -> int:
        """The bytes of all bodies, including those that were decoded from them."""
        return self._total

    def grow(self, holder: Holder, size: int) -> None:
        """Count bytes of an unfinished body. It may be given up at once, like any other."""
        self._unfinished[holder] = self._unfinished.get(holder, 0) + size
        self._total += size
        if self._total > self._max:
            self._give_up()

    def serve(self, holder: Holder, size: int) -> bool:
        """Count a whole body and what is decoded from it. Return False if the budget is used up."""
        self.release(holder)
        self._total += size
        if self._total > self._max:
            self._give_up()
        if self._total > self._max:
            self._total -= size
            return False
        self._served[holder] = size
        return True

    def release(self, holder: Holder) -> None:
        """Forget a body that is no longer in memory. Harmless if there is none."""
        self._total -= self._unfinished.pop(holder, 0) + self._served.pop(holder, 0)

    def _give_up(self) -> None:
        for holder in self._longest_and_largest_first():
            if self._total <= self._max - self._max // _FREED:
                return
            self.release(holder)
            holder.give_up_body()

    def _longest_and_largest_first(self) -> list[Holder]:
        now = asyncio.get_running_loop().time()
        costs = []
        of_client: Counter[str] = Counter()
        for holder, size in self._unfinished.items():
            # Its memory, in byte-seconds.
            client, cost = holder.body_client, size * (now - holder.body_began)
            of_client[client] += size
            costs.append((client, cost, holder))
        costs.sort(key=lambda each: (of_client[each[0]], each[1]), reverse=True)
        return [holder for _, _, holder in costs]
