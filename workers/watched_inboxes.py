"""Which inboxes the change stream reports, and when another stream is opened for other inboxes.

A client that polls again for the same inbox must not cause another opening, so an inbox is reported
for a while after its last waiter.
"""

from collections.abc import Collection

from workers.waiters import Waiters

#: The shortest time between two openings, in seconds.
REOPEN_EVERY_S = 0.2
#: An inbox is reported for this long after somebody waited for it, in seconds.
KEEP_S = 10.0
#: A stream for more inboxes than this reports all.
INBOXES_MAX = 1000


class WatchedInboxes:
    """The inboxes of one change stream after the other. All times are those of the event loop."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        # When somebody was last seen waiting for each reported inbox.
        self._seen: dict[str, float] = {}
        self._is_all = False
        self._opened = 0.0

    def choose(self, now: float) -> Collection[str] | None:
        """Return the inboxes for a stream that is opened now: None stands for all."""
        self._opened = now
        waiting = self._waiters.usernames()
        kept = {name: at for name, at in self._seen.items() if now - at <= KEEP_S}
        self._seen = kept | dict.fromkeys(waiting, now)
        self._is_all = len(self._seen) > INBOXES_MAX
        if self._is_all:
            self._seen = {}
            return None
        return list(self._seen)

    def may_open(self, now: float) -> float:
        """Return the seconds until another stream may be opened."""
        return max(0.0, self._opened + REOPEN_EVERY_S - now)

    def is_due(self, now: float) -> bool:
        """Return whether another stream has to be opened. Called at least every few seconds, since
        it also notes who is waiting.
        """
        if self.may_open(now):
            return False
        if self._is_all:
            is_needed = len(self._waiters.usernames()) > INBOXES_MAX // 2
            return not is_needed and now - self._opened > KEEP_S
        self._seen |= dict.fromkeys(self._waiters.take_reported(), now)
        if self._waiters.unreported():
            return True
        # Nothing is lost if an inbox is reported for nothing, so this takes its time.
        has_old = any(now - at > KEEP_S for at in self._seen.values())
        return has_old and now - self._opened > KEEP_S
