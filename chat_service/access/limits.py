"""How much of the service one client may use: requests, bytes, connections and waits.

A client is known by the keys of `chat_service.access.clients`. Rates hold for all processes of a
node, other limits for each process.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from chat_service.access.buckets import Buckets, Rate, Refusal
from chat_service.access.clients import TrustedProxies, key_of_address
from chat_service.api.problems import Effect, Problem, rate_limited, too_many_waits
from workers.errors import Overloaded

#: What a request costs, in requests: a message, a count of messages, and a login that failed.
MESSAGE_COST, COUNT_COST, FAILED_LOGIN_COST = 1, 5, 20
#: How many whole bursts a client may owe for requests that free work. Not without bound: each costs
#: the database as much as others, and whether it finds a lease is only known then.
OVERDRAFT = 1.0


class ClientRates(NamedTuple):
    """The rates of each client: requests, and bytes of request bodies."""

    requests: Rate
    size: Rate


class RateLimiter:
    """Refuses the requests of clients that exceed their rates."""

    def __init__(
        self, rates: ClientRates, buckets: Buckets, on_limited: Callable[[str, str], None]
    ) -> None:
        """`on_limited` is called for each refused request, with its client and what it exceeds."""
        self._buckets = buckets
        self._on_limited = on_limited
        policies = []
        for name, rate, unit in (
            ("requests", rates.requests, ""),
            ("bytes", rates.size, ';qu="content-bytes"'),
        ):
            if rate.per_s:
                window_s = ceil(rate.burst / rate.per_s)
                policies.append(f'"{name}";q={int(rate.burst)}{unit};w={window_s}')
        self._policy = ", ".join(policies)

    @property
    def forgotten(self) -> int:
        """The number of clients that lost a bucket that was not full."""
        return self._buckets.forgotten

    def admit(
        self, client: str, cost: float, size: int, effect: Effect, frees_work: bool = False
    ) -> None:
        """Charge a request with a body of `size` bytes. Raises a 429 problem if it is too much.

        A request that `frees_work` may go on after others were refused: until the client owes a
        whole burst.
        """
        refusal = self._buckets.take(client, cost, size, OVERDRAFT if frees_work else 0.0)
        if refusal is not None:
            raise self._problem(client, refusal, effect)

    def admit_body(self, client: str, size: int, effect: Effect) -> None:
        """Charge a body of `size` bytes, whose request is charged for what is in it.

        Raises a 429 problem if the client cannot pay for anything, or if that is too much.
        """
        refusal = self._buckets.check(client) or self._buckets.take(client, 0, size)
        if refusal is not None:
            raise self._problem(client, refusal, effect)

    def admit_failed_login(self, address: str, effect: Effect) -> None:
        """Charge an address for a token that was refused.

        Raises a 429 problem, and charges nothing, if it has not paid for an earlier one.
        """
        client = key_of_address(address)
        refusal = self._buckets.take(client, 0)
        if refusal is not None:
            raise self._problem(client, refusal, effect)
        self._buckets.charge(client, FAILED_LOGIN_COST)

    def _problem(self, client: str, refusal: Refusal, effect: Effect) -> Problem:
        name = "bytes" if refusal.is_bytes else "requests"
        self._on_limited(client, name)
        wait_s = ceil(refusal.wait_s)
        # draft-ietf-httpapi-ratelimit-headers-11
        headers = {
            "RateLimit-Policy": self._policy,
            "RateLimit": f'"{name}";r={refusal.left};t={wait_s}',
        }
        return rate_limited(wait_s, headers, effect)


class ClientCounts:
    """Counts what each client has open, such as connections."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        #: What all clients have open.
        self.total = 0

    def of(self, client: str) -> int:
        """Return what a client has open."""
        return self._open.get(client, 0)

    def add(self, client: str) -> None:
        """Count one more of a client."""
        self.total += 1
        self._open[client] = self._open.get(client, 0) + 1

    def remove(self, client: str) -> None:
        """Count one less of a client that `add` has counted."""
        self.total -= 1
        count = self._open[client] - 1
        if count:
            self._open[client] = count
        else:
            del self._open[client]


class Waits:
    """The long polls and streams that are open in a process.

    They are limited for each client, and together: each keeps a connection, and others need some.
    """

    def __init__(self, each_max: int, all_max: int, on_limited: Callable[[str, str], None]) -> None:
        """An `each_max` of 0 is no limit. `on_limited` is that of `RateLimiter`."""
        self._each_max = each_max
        self._all_max = all_max
        self._on_limited = on_limited
        self._counts = ClientCounts()

    def enter(self, client: str, effect: Effect) -> None:
        """Count one more. Raises a 429 problem, or `Overloaded`, if that is too many."""
        if self._each_max and self._counts.of(client) >= self._each_max:
            self._on_limited(client, "waits")
            raise too_many_waits(effect)
        if self._counts.total >= self._all_max:
            raise Overloaded("too many connections wait for messages")
        self._counts.add(client)

    def leave(self, client: str) -> None:
        """Count one less that `enter` has counted."""
        self._counts.remove(client)


class ClientPolicy(NamedTuple):
    """How clients are told apart, and how they are limited.

    `proxies` is None if no proxy is trusted, and `limiter` if no rate is set.
    """

    proxies: TrustedProxies | None
    limiter: RateLimiter | None
    waits: Waits
