"""Estimates which part of all writes to the database this process does, without asking for it.

`workers.batch_pacing` uses it: a process that is nearly alone on its database need not spare it.

Each reply of a replica set has the time of its last write: a second, and the ordinal of the write
in that second. So the highest ordinal of a second is the number of writes of all nodes. Only
updates count as this process's own. How many ordinals an insert of many messages takes depends on
MongoDB's version, but each updated message takes one in all versions. So a process that is alone,
and whose messages are each claimed once, has a share of about a half.
"""

#: The weight of the seconds before the last one.
_WEIGHT = 0.5


class WriteShare:
    """The updates of this process as a share of all writes to the database."""

    def __init__(self) -> None:
        self._second = self._ordinal = self._updates = 0
        # Averages over the seconds before.
        self._all = self._own = 0.0
        self._is_known = False

    def observe(self, second: int, ordinal: int, updates: int) -> None:
        """Note that this process updated so many messages, and the time of the last write of all:
        its second and its ordinal.
        """
        if second > self._second:
            self._all = self._all * _WEIGHT + self._ordinal
            self._own = self._own * _WEIGHT + self._updates
            self._second, self._ordinal, self._updates = second, 0, 0
        if second == self._second and ordinal > self._ordinal:
            self._ordinal = ordinal
        self._updates += updates
        self._is_known = True

    def take(self) -> float:
        """Return the share in the last seconds, at most 1; 0 if there was no update since the last
        call, or if it is unknown.
        """
        is_known, self._is_known = self._is_known and self._all > 0, False
        return min(self._own / self._all, 1.0) if is_known else 0.0
