"""What a lease knows, and its flows. Both clients use it.

A lease in a block is extended by a task or a thread that runs `HeldLease.keep`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from chat_inbox import calls
from chat_inbox.calls import EXTEND_AFTER, Action, Grant
from chat_inbox.errors import ChatError, ClientClosed, LeaseOver
from chat_inbox.messages import Delivered
from chat_inbox.sending import pause_s
from chat_inbox.steps import Flow, Pause


class HeldLease:
    """The messages of a lease that are still held, and the time at which the lease ends.

    Its methods may be called from several threads.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        #: The duration that the service granted last, in seconds.
        self.ttl_s = grant.ttl_s
        self._ends_at = grant.ends_at
        # Ids of messages that are neither acknowledged nor released, in order.
        self._held = dict.fromkeys(message.id for message in grant.messages)
        # Ids of messages that the caller has received, and the last one of a running iteration: the
        # caller is done with those before it, unless it acknowledges them one by one.
        self._handed: set[str] = set()
        self._in_hand: str | None = None
        self._settles_each = False
        self._over: LeaseOver | None = None
        self._failure = ""
        self._counting = threading.Lock()
        self._open_requests = 0
        self._ended_requests = 0

    @property
    def size(self) -> int:
        """Return how many messages were leased."""
        return len(self.grant.messages)

    def hand_out(self) -> Iterator[Delivered]:
        """Yield the messages, and `check` before each."""
        for message in self.grant.messages:
            self.check()
            self._handed.add(message.id)
            self._in_hand = message.id
            yield message
        self._in_hand = None

    def hand_out_all(self) -> list[Delivered]:
        """Return the messages. The caller may begin with any of them."""
        self._handed.update(message.id for message in self.grant.messages)
        self._settles_each = True
        return self.grant.messages

    def check(self) -> None:
        """Raise `LeaseOver` if the lease is known to have ended while messages were held."""
        if not self._held:
            return
        if self._over is None and time.monotonic() >= self._ends_at:
            reason = self._failure or "it was not extended"
            detail = f"its time is over: {reason}"
            over = LeaseOver(410, "urn:chat:problem:lease-over", "The lease has ended", detail)
            over.lost = tuple(self._held)
            raise over
        if self._over is not None:
            raise self._over

    def acknowledge(self, ids: str | Iterable[str] | None, tries: int) -> Flow[int]:
        """Acknowledge these messages, or all that are held, and return how many are."""
        self._settles_each = self._settles_each or ids is not None
        named = self._named(ids)
        try:
            return (yield from self._settle("ack", named, tries))
        except LeaseOver:
            # The error lists each message, and none of them is held any longer.
            self._forget(named)
            raise

    def end(self, tries: int) -> Flow[None]:
        """Acknowledge what the caller has received, and release the rest: a loop may have ended
        early.
        """
        rest = [each for each in self._held if each not in self._handed]
        # If this fails, they become unread when the lease ends.
        with suppress(ChatError):
            yield from self._release(rest, False, None, 1)
        yield from self.acknowledge([each for each in self._held if each in self._handed], tries)

    def release(
        self,
        ids: str | Iterable[str] | None,
        delivered: bool | None,
        delay_s: float | None,
        tries: int,
    ) -> Flow[int]:
        """Release these messages, or all that are held, and return how many are unread then.

        They are unread after `delay_s`, or at once. If `delivered` is None, those count that the
        caller has in hand, or has received and names.
        """
        named = self._named(ids)
        received = self._handed if ids is not None else self._received_last()
        was = {each: each in received if delivered is None else delivered for each in named}
        count = 0
        # Those that were not delivered first: if the process dies in between, they would count.
        for is_delivered in (False, True):
            some = [each for each in named if was[each] is is_delivered]
            count += yield from self._release(some, is_delivered, delay_s, tries)
        return count

    def _received_last(self) -> set[str]:
        """Return the messages that the caller has in hand."""
        if self._in_hand is None or self._settles_each:
            return self._handed
        return {self._in_hand}

    def _release(
        self, named: list[str], delivered: bool, delay_s: float | None, tries: int
    ) -> Flow[int]:
        settling = self._settle("release", named, tries, delivered=delivered, delay_s=delay_s)
        try:
            return (yield from settling)
        except LeaseOver:
            # The lease has ended, possibly by a try whose answer was lost.
            self._forget(named)
            return 0

    def extend(self, ttl_s: float, tries: int) -> Flow[float]:
        """Extend the lease to `ttl_s` from now, and return the duration that is granted."""
        if self.grant.name is not None:
            began = time.monotonic()
            granted = yield from calls.extend(self.grant.username, self.grant.name, ttl_s, tries)
            self.ttl_s = granted
            self._ends_at = max(self._ends_at, began + granted)
        return self.ttl_s

    def keep(self) -> Flow[None]:
        """Extend the lease again and again. Return when it is over.

        Each extension is tried once, then again after a pause, because the time of the lease
        passes meanwhile. An error does not end this, because the service may be there again before
        the lease ends; `check` reports it once the time is over.
        """
        failures = 0
        while True:
            yield Pause(pause_s(failures) if failures else self._rest_s())
            if not self._held:
                # It never holds messages again.
                return
            ended = self._ended_requests
            try:
                yield from self.extend(self.ttl_s, 1)
            except LeaseOver as over:
                if self._open_requests or self._ended_requests != ended:
                    # It may be over because its last messages were acknowledged meanwhile.
                    failures += 1
                    continue
                self._over = over
                over.lost = tuple(self._held)
                return
            except ClientClosed:
                return
            except ChatError as error:
                failures += 1
                self._failure = str(error)
            else:
                failures = 0
                self._failure = ""

    def _rest_s(self) -> float:
        """Return the time until the next extension, in seconds."""
        return max(self._ends_at - self.ttl_s * (1 - EXTEND_AFTER) - time.monotonic(), 0.0)

    def _named(self, ids: str | Iterable[str] | None) -> list[str]:
        return list(self._held) if ids is None else calls.list_of(ids)

    def _settle(
        self,
        action: Action,
        named: list[str],
        tries: int,
        *,
        delivered: bool = True,
        delay_s: float | None = None,
    ) -> Flow[int]:
        if self.grant.name is None or not named:
            return 0
        with self._counted():
            count = yield from calls.settle(
                *(self.grant.username, self.grant.name, action, named, tries),
                delivered=delivered,
                delay_s=delay_s,
            )
            self._forget(named)
        return count

    def _forget(self, ids: Iterable[str]) -> None:
        for each in ids:
            self._held.pop(each, None)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request that may take messages from the lease, for `keep`."""
        with self._counting:
            self._open_requests += 1
        try:
            yield
        finally:
            with self._counting:
                self._open_requests -= 1
                self._ended_requests += 1
