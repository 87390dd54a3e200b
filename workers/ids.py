"""Message ids: 32 hex digits that sort by time and cannot be guessed.

48 bits of milliseconds, 16 of a sequence within the millisecond, 64 random: ids of one process
strictly increase, also when the clock steps back, and two processes never make the same one.
"""

import os
from collections.abc import Callable

#: Digits of an id that are its time.
TIME_DIGITS = 12
_SEQUENCE_MAX = 0xFFFF
#: Random bytes that are fetched at once: a system call for each id was 4% of the service's time.
_RANDOM_BYTES = 8 * 256


class IdSource:
    """Makes the ids of one process. Not for use by several threads."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._random = ""
        self._random_used = 0
        self._last_ms = 0
        self._sequence = 0

    def next(self, now_ms: int) -> str:
        """An id that is greater than all before it; `now_ms` is the time it was made."""
        if now_ms > self._last_ms:
            self._last_ms, self._sequence = now_ms, 0
        elif self._sequence < _SEQUENCE_MAX:
            self._sequence += 1
        else:
            self._last_ms, self._sequence = self._last_ms + 1, 0
        if self._random_used == len(self._random):
            self._random, self._random_used = self._random_bytes(_RANDOM_BYTES).hex(), 0
        start, self._random_used = self._random_used, self._random_used + 16
        return f"{self._last_ms:012x}{self._sequence:04x}{self._random[start : self._random_used]}"


def last_id_of(now_ms: int) -> str:
    """An id that no message made up to and including `now_ms` exceeds."""
    return f"{now_ms:012x}" + "f" * 20
