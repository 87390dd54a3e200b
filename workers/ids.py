"""Message ids: 32 hex digits that sort by time, cannot be guessed, and name the inbox's route.

    time in ms   sequence   route    random
    12 digits    4 digits   4 digits 12 digits

The ids of one process strictly increase, even if the clock steps back, and no two processes create
the same id. The sequence counts within the millisecond, and its top bit is always set: that marks
an id with a route. Ids of versions without routes had 64 random bits instead, and the top bit only
after 32,768 ids in one millisecond, which no process reached.

The id of a scheduled message has the time at which it becomes readable. So the messages of an inbox
sort by that.
"""

import os
from collections.abc import Callable

#: The leading digits of an id that hold its time.
TIME_DIGITS = 12
_HAS_ROUTE = 0x8000
_SEQUENCE_MAX = 0x7FFF
#: Where the digits of the sequence and of the route begin, and where those of the route end.
_SEQUENCE_AT, _ROUTE_AT, _ROUTE_END, _DIGITS = 12, 16, 20, 32
_RANDOM_DIGITS = _DIGITS - _ROUTE_END
#: Random bytes fetched with one system call. A call for each id took 4% of the service's time.
_RANDOM_BYTES = _RANDOM_DIGITS // 2 * 256


class IdSource:
    """The source of a process's ids. Not safe for use by several threads."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._random = ""
        self._random_used = 0
        self._last_ms = 0
        self._sequence = 0
        # The latest due time of a scheduled message so far, and their own sequence.
        self._latest_due_ms = 0
        self._due_sequence = 0

    def next(self, now_ms: int, route: int) -> str:
        """Return an id greater than all earlier ones but those of scheduled messages.

        `now_ms` is the time of creation, `route` that of the message's inbox.
        """
        if now_ms > self._last_ms:
            self._last_ms, self._sequence = now_ms, 0
        elif self._sequence < _SEQUENCE_MAX:
            self._sequence += 1
        else:
            self._last_ms, self._sequence = self._last_ms + 1, 0
        if self._random_used == len(self._random):
            self._random, self._random_used = self._random_bytes(_RANDOM_BYTES).hex(), 0
        start, self._random_used = self._random_used, self._random_used + _RANDOM_DIGITS
        head = self._last_ms << 32 | (_HAS_ROUTE | self._sequence) << 16 | route
        return f"{head:020x}{self._random[start : self._random_used]}"

    def scheduled(self, due_ms: int, route: int) -> str:
        """Return an id for a message that becomes readable at `due_ms`.

        It is greater than those of earlier calls with no later time, as long as there are fewer
        than 16,384 calls in a millisecond. Ids of `next` do not depend on it.
        """
        self._due_sequence = (self._due_sequence + 1) & _SEQUENCE_MAX
        if due_ms > self._latest_due_ms:
            self._latest_due_ms = due_ms
            if self._due_sequence > _SEQUENCE_MAX // 2:
                # Begin again between two times, rather than among messages of the same time.
                self._due_sequence = 0
        head = due_ms << 32 | (_HAS_ROUTE | self._due_sequence) << 16 | route
        return f"{head:020x}{self._random_bytes(_RANDOM_DIGITS // 2).hex()}"


def route_in(message_id: str) -> int | None:
    """Return the route in an id, or None if it is an id without one, or no id at all."""
    if len(message_id) != _DIGITS or message_id[_SEQUENCE_AT] not in "89abcdef":
        return None
    try:
        return int(message_id[_ROUTE_AT:_ROUTE_END], 16)
    except ValueError:
        return None


def last_id_of(now_ms: int) -> str:
    """Return an id that is not exceeded by any message created up to and including `now_ms`."""
    return f"{now_ms:012x}" + "f" * 20
