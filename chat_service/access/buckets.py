"""Token buckets of many clients, in one table in memory that the processes of a node share.

A bucket is stored as the time at which it is full again. A client may act if that time is not too
far ahead, and acting moves it further ahead. So nothing has to refill the buckets.

There are no locks. A process that the machine stops in the middle of a charge undoes what others
charged the same client until it goes on. If two processes give one place in the table to two
clients, one of these begins with a full bucket. Both are rare in a service. Processes that did
nothing but charge one client on overloaded cores let it exceed its rate by a third.

A client is found by a keyed hash. The key is random, so clients cannot choose names that share a
place. If all places that a client may have are taken, the fullest of these buckets is forgotten.
"""

import os
import secrets
import time
from collections.abc import Callable
from hashlib import blake2b
from mmap import mmap
from typing import NamedTuple

#: The memory has words of 8 bytes: the key of the hash, and then sets. A set has a tag for each of
#: its places, and then as many times for each of their two buckets.
_KEY_BYTES, _WAYS = 32, 8
_FIRST_WORD, _SET_WORDS = _KEY_BYTES // 8, 3 * _WAYS
#: From the word of a client's tag to those of its two buckets.
_REQUESTS, _BYTES = _WAYS, 2 * _WAYS
#: A table for 65,536 clients takes 1.5 MiB.
_SETS = 8192
#: The most clients whose place a process remembers. To find a place takes five times as long as
#: everything else.
_REMEMBERED_MAX = 4096
#: Times that should be equal may differ by so much, in seconds, because they are sums.
_TOLERANCE_S = 1e-6


class Rate(NamedTuple):
    """What a bucket gets per second, and the most that it holds. A rate of 0 is no limit."""

    per_s: float
    burst: float


class Refusal(NamedTuple):
    """The refusal of a request: which rate it exceeds, and what is left in that bucket.

    In `wait_s` seconds, the same request is not refused if the client sends no other.
    """

    is_bytes: bool
    wait_s: float
    left: int


def share_memory() -> int:
    """Return the descriptor of memory for a table, which other processes can inherit."""
    descriptor = os.memfd_create("chat-clients")
    os.ftruncate(descriptor, _memory_bytes(_SETS))
    os.pwrite(descriptor, secrets.token_bytes(_KEY_BYTES), 0)
    return descriptor


def _memory_bytes(sets: int) -> int:
    return _KEY_BYTES + 8 * sets * _SET_WORDS


class Buckets:
    """The buckets of all clients: one for requests and one for bytes."""

    def __init__(
        self,
        requests: Rate,
        size: Rate,
        shared: int = -1,
        clock: Callable[[], float] = time.monotonic,
        sets: int = _SETS,
    ) -> None:
        """`shared` is what `share_memory` returned, or -1 for memory of this process only.

        `clock` returns seconds, and is the same for all processes.
        """
        memory = mmap(shared, _memory_bytes(sets))
        if shared == -1:
            memory[:_KEY_BYTES] = secrets.token_bytes(_KEY_BYTES)
        self._key = bytes(memory[:_KEY_BYTES])
        self._sets = sets
        self._tags = memoryview(memory).cast("Q")
        #: When buckets are full again, in seconds of the clock.
        self._full_at = memoryview(memory).cast("d")
        # The word and the value of the tags of clients that came more than once.
        self._places: dict[str, tuple[int, int]] = {}
        self._clock = clock
        self._request_s, self._requests_s = _seconds(requests)
        self._byte_s, self._bytes_s = _seconds(size)
        #: How many clients lost a bucket that was not full.
        self.forgotten = 0

    def take(
        self, client: str, cost: float, size: int = 0, overdraft: float = 0.0
    ) -> Refusal | None:
        """Take what a request costs, and the bytes of its body. Nothing is taken if it is refused.

        A request that costs more than a bucket holds is let through by a full one, and the client
        waits longer before the next. So no request is impossible, and the rate holds all the same.
        `overdraft` is how many whole buckets the client may owe after the request.
        """
        now, full_at = self._clock(), self._full_at
        place = self._place_of(client, now)
        # The seconds until a bucket is full, and those that refill what is taken from it.
        empty_s, cost_s = full_at[place + _REQUESTS] - now, cost * self._request_s
        if empty_s > 0.0:
            least_s = min(cost_s - self._requests_s, 0.0) - overdraft * self._requests_s
            if (wait_s := empty_s + least_s) > _TOLERANCE_S:
                return self._refusal(wait_s, empty_s)
        if size and self._byte_s:
            unpaid_s, size_s = full_at[place + _BYTES] - now, size * self._byte_s
            if unpaid_s > 0.0:
                least_s = min(size_s - self._bytes_s, 0.0) - overdraft * self._bytes_s
                if (wait_s := unpaid_s + least_s) > _TOLERANCE_S:
                    left = int((self._bytes_s - unpaid_s) / self._byte_s + _TOLERANCE_S)
                    return Refusal(True, wait_s, max(left, 0))
            full_at[place + _BYTES] = max(full_at[place + _BYTES], now) + size_s
        # Read again, so that a process that was stopped in between undoes no charge of others.
        full_at[place + _REQUESTS] = max(full_at[place + _REQUESTS], now) + cost_s
        return None

    def check(self, client: str) -> Refusal | None:
        """Return the refusal of a request that costs 1, or None. Nothing is taken."""
        now = self._clock()
        empty_s = self._full_at[self._place_of(client, now) + _REQUESTS] - now
        wait_s = empty_s + self._request_s - self._requests_s
        return self._refusal(wait_s, empty_s) if wait_s > _TOLERANCE_S else None

    def charge(self, client: str, cost: float) -> None:
        """Take what a request costs beyond what was known before, even if the bucket is empty.

        However much is charged, the client waits at most until a whole bucket and this are paid.
        """
        now, full_at = self._clock(), self._full_at
        word = self._place_of(client, now) + _REQUESTS
        cost_s = cost * self._request_s
        begins_at = min(max(full_at[word], now), now + self._requests_s)
        full_at[word] = max(full_at[word], begins_at + cost_s)

    def _refusal(self, wait_s: float, empty_s: float) -> Refusal:
        left = int((self._requests_s - empty_s) / self._request_s + _TOLERANCE_S)
        return Refusal(False, wait_s, max(left, 0))

    def _place_of(self, client: str, now: float) -> int:
        """Return the word of a client's tag. A new client gets one, and full buckets."""
        place, tag = self._places.get(client, (0, 0))
        if tag and self._tags[place] == tag:
            return place
        digest = blake2b(client.encode(), digest_size=12, key=self._key).digest()
        # A tag of 0 marks a place that was never used.
        tag = int.from_bytes(digest[:8], "little") | 1
        first = _FIRST_WORD + int.from_bytes(digest[8:], "little") % self._sets * _SET_WORDS
        places = range(first, first + _WAYS)
        for place in places:
            if self._tags[place] == tag:
                # Only a place that is found is remembered: if two processes gave a new client a
                # place each, both of them find the same one from now on.
                if len(self._places) >= _REMEMBERED_MAX:
                    self._places.clear()
                self._places[client] = place, tag
                return place
        place = min(places, key=self._full_from)
        if self._tags[place] == tag:
            # Another process has just given it to the same client.
            return place
        self.forgotten += self._full_from(place) > now
        self._full_at[place + _REQUESTS] = self._full_at[place + _BYTES] = 0.0
        self._tags[place] = tag
        return place

    def _full_from(self, place: int) -> float:
        return max(self._full_at[place + _REQUESTS], self._full_at[place + _BYTES])


def _seconds(rate: Rate) -> tuple[float, float]:
    """Return the seconds that refill one token and a whole bucket; zeros without a limit."""
    second = 1 / rate.per_s if rate.per_s else 0.0
    return second, rate.burst * second
