"""The Prometheus metrics of the HTTP front end and of TLS. Made once by `chat_service.service`."""

import math
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from chat_service import __version__
from chat_service.api.types import AnsweredRequest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class HttpMetrics:
    """Requests by route, and the state of the process. Clients cannot choose label values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "chat_http_requests_total",
            "Requests answered.",
            ["method", "route", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "chat_http_request_duration_seconds",
            "Time from the arrival of a request's head to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge(
            "chat_http_requests_open",
            "Requests in progress.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.connections = Gauge(
            "chat_http_connections",
            "Open connections.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.handoffs = Counter(
            "chat_http_handovers_total",
            "Connections that left the fast path for Tornado, with their first ineligible request.",
            registry=registry,
        )
        self.loop_lag = Gauge(
            "chat_event_loop_lag_seconds",
            "How late the event loop was in its last measurement.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.log_dropped = Counter(
            "chat_log_lines_dropped_total",
            "Log lines dropped because stderr was not read in time.",
            registry=registry,
        )
        self.access_file_broken = Gauge(
            "chat_access_file_broken",
            "1 while the access file cannot be used and earlier rules stay in effect.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.limited = Counter(
            "chat_http_requests_limited_total",
            "Requests and connections refused because their client exceeded a limit.",
            ["limit"],
            registry=registry,
        )
        for limit in ("requests", "bytes", "connections", "waits"):
            self.limited.labels(limit)
        self.forgotten = Gauge(
            "chat_http_clients_forgotten",
            "Clients whose rate began again because there were too many others.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.jwt_keys_broken = Gauge(
            "chat_jwt_keys_broken",
            "1 while the keys of JSON Web Tokens cannot be fetched and earlier keys stay in use.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        info = Gauge(
            "chat_build_info",
            "The running version.",
            ["version"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        info.labels(__version__).set(1)
        # `labels()` takes a lock and builds a key, so it is called once for each combination.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, answered: Iterable[AnsweredRequest]) -> None:
        """Count some requests. Many at once cost little more than one."""
        groups: dict[tuple[str, str, int], list[float]] = {}
        for each in answered:
            groups.setdefault((each.method, each.route, each.status), []).append(each.seconds)
        for key, seconds in groups.items():
            children = self._children.get(key)
            if children is None:
                method, route, status = key
                requests = self.requests.labels(method, route, str(status))
                children = self._children[key] = (requests, self.seconds.labels(route))
            children[0].inc(len(seconds))
            _observe_all(children[1], seconds)


def _observe_all(histogram: Histogram, amounts: Sequence[float]) -> None:
    """Do what `observe` does for each of these amounts, in one step for each bucket."""
    if len(amounts) == 1:
        histogram.observe(amounts[0])
        return
    histogram._sum.inc(sum(amounts))
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    for bucket, count in Tally(bisect_left(bounds, each) for each in amounts).items():
        buckets[bucket].inc(count)


class TlsMetrics:
    """The state of the certificate. A service without TLS has none of these."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Gauge(
            "chat_tls_certificate_refused",
            "1 if the certificate's files have changed and cannot be used: the old one stays.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._end = Gauge(
            "chat_tls_certificate_expires_seconds",
            "When the certificate in use expires, in seconds since 1970. 0: clients refuse it.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        #: The same for the dashboard: whether the files cannot be used, and when the certificate in
        #: use expires.
        self.is_refused, self.ends = False, math.inf

    def loaded(self, is_current: bool, expires_at: float | None) -> None:
        """Record whether the files are in use, and when the certificate in use expires."""
        self._refused.set(not is_current)
        self._end.set(expires_at or 0)
        self.is_refused, self.ends = not is_current, expires_at or 0.0
