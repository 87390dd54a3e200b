"""Which times `Store.expire` still has to search for expired messages.

The leader searches each time once: messages expire in order, so it goes on from where it stopped.
There is one exception. A message may become unread after the leader has searched the time of its
expiry: its lease ended, its claim was rolled back, or its insert took long. So the node that does
this searches that time again, a little later.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

#: For how long the times of messages that became unread are searched, in seconds. The leader's
#: clock may be ahead of this node's by less than that.
AHEAD_S = 2.0


class Search(NamedTuple):
    """A search for messages that expired at `from_ms` or later. It began at `began_s`."""

    from_ms: int
    began_s: float
    leads: bool


class UnsearchedTimes:
    """The times that one node has to search. `steady` is a clock in seconds."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        # This node has searched all times before this one since it leads.
        self._upto_ms = 0
        # The first time of messages that became unread again, by the second on the clock until
        # which it is searched.
        self._returned: dict[int, int] = {}

    def add(self, from_ms: int, for_s: float = AHEAD_S) -> None:
        """Search again from a time on, since messages that expire then became unread.

        `for_s` is the number of seconds after which no more of them can become unread.
        """
        until_s = math.ceil(self._steady() + for_s)
        self._returned[until_s] = min(from_ms, self._returned.get(until_s, from_ms))

    def begin(self, *, leads: bool) -> Search | None:
        """Begin a search, or return None if there is nothing to search."""
        from_ms = min(self._returned.values(), default=None)
        if leads:
            from_ms = self._upto_ms if from_ms is None else min(from_ms, self._upto_ms)
        else:
            # Nobody has searched for what a node returned before it was killed. So each leader
            # begins with a search from the start.
            self._upto_ms = 0
        return None if from_ms is None else Search(from_ms, self._steady(), leads)

    def complete(self, search: Search, upto_ms: int) -> None:
        """Record that a search has found everything before `upto_ms`."""
        for until_s in [each for each in self._returned if each <= search.began_s]:
            del self._returned[until_s]
        if search.leads:
            self._upto_ms = upto_ms
