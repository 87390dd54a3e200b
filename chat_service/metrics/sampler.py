"""Chooses the metrics for the dashboard at `/ops`, and reads them cheaply.

The library's `collect` makes objects for every series, which is too slow for the loop. Here each
metric's children are found once, and only their numbers are read. Made by `chat_service.service`,
read by `chat_service.metrics.history`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from prometheus_client import Counter, Gauge, Histogram

from chat_service.api.request_options import WAIT_SUFFIX
from chat_service.api.routing import STREAM_PATH, audience_of
from chat_service.metrics.http import HttpMetrics
from workers.metrics import LEASE_ENDS, WorkerMetrics

Labels: TypeAlias = tuple[str, ...]
Form: TypeAlias = Literal["value", "total", "buckets"]
#: How values of processes are combined: counters and sums are added up, of others the highest or
#: the newest one counts.
Kind: TypeAlias = Literal["counter", "sum", "highest", "newest"]

_REFUSALS = ("overloaded", "draining", "unavailable", "expired", "storage-full", "inbox-full")
#: The database operations that every message needs, and others that clients ask for.
_HOT_OPERATIONS = ("insert", "find", "claim")
_OPERATIONS = ("lease", "lease end", "release", "revoke", "count")


class SeriesGroup:
    """Some children of one metric, which the dashboard shows as one sum.

    `label` distinguishes its series from others of the metric, and `belongs` selects the children
    by their labels. From a histogram, the form `total` reads the sum and the count, and `buckets`
    reads the buckets, too.
    """

    def __init__(
        self,
        metric: Counter | Gauge | Histogram,
        form: Form = "value",
        label: str = "",
        belongs: Callable[[Labels], bool] = lambda labels: True,
    ) -> None:
        self._metric: Any = metric
        self._form = form
        self._label = label
        self._belongs = belongs
        self._children: list[Any] = []
        self._known = -1

    def names(self) -> list[str]:
        """Return the names of its series, as in `/metrics`."""
        described = self._metric.describe()[0]
        name, label = described.name, self._label
        if self._form == "value":
            return [_series(name + "_total" * (described.type == "counter"), label)]
        names = [_series(f"{name}_sum", label), _series(f"{name}_count", label)]
        if self._form == "buckets":
            bounds = self._metric._upper_bounds[:-1]
            names += [_series(f"{name}_bucket", label, f'le="{bound}"') for bound in bounds]
        return names

    @property
    def kind(self) -> Kind:
        """How the values of processes are combined."""
        if self._metric.describe()[0].type != "gauge":
            return "counter"
        modes: dict[str, Kind] = {"livesum": "sum", "livemax": "highest"}
        return modes.get(self._metric._multiprocess_mode, "newest")

    def values(self) -> list[float]:
        """Return the current values of its series, of this process only."""
        children = self._found()
        if self._form == "value":
            return [sum([child._value.get() for child in children])]
        total, below = 0.0, [0.0] * len(self._metric._upper_bounds)
        for child in children:
            total += child._sum.get()
            count = 0.0
            for position, bucket in enumerate(child._buckets):
                count += bucket.get()
                below[position] += count
        return [total, below[-1], *(below[:-1] if self._form == "buckets" else ())]

    def _found(self) -> list[Any]:
        """Return the children. They are searched again only if the metric has new ones."""
        if not self._metric._labelnames:
            return [self._metric]
        children = self._metric._metrics
        if len(children) != self._known:
            self._known = len(children)
            self._children = [child for key, child in children.items() if self._belongs(key)]
        return self._children


def series_groups_of(http: HttpMetrics, workers: WorkerMetrics, shards: int) -> list[SeriesGroup]:
    """Return what the dashboard shows of a process with this number of shards."""
    return [
        *_requests(http),
        *map(SeriesGroup, workers.lifecycle.values()),
        SeriesGroup(workers.pending),
        SeriesGroup(workers.leader),
        SeriesGroup(workers.leased),
        *(_labelled(workers.lease_ends, end) for end in LEASE_ENDS),
        SeriesGroup(workers.undelivered),
        *(_labelled(workers.refused, reason) for reason in _REFUSALS),
        SeriesGroup(workers.unknown),
        *(_labelled(workers.queued, str(number)) for number in range(shards)),
        SeriesGroup(workers.queue_wait, "buckets"),
        SeriesGroup(workers.batch_requests, "buckets"),
        SeriesGroup(workers.batch_posts, "total"),
        SeriesGroup(workers.batch_reads, "total"),
        *(_labelled(workers.store_seconds, name, "buckets") for name in _HOT_OPERATIONS),
        *(_labelled(workers.store_seconds, name, "total") for name in _OPERATIONS),
        SeriesGroup(workers.store_seconds, "total", 'operation="other"', _is_other_operation),
        SeriesGroup(workers.database_away),
        SeriesGroup(workers.restarts),
        SeriesGroup(workers.mongod_restarts),
        SeriesGroup(workers.waiters),
        SeriesGroup(http.connections),
        SeriesGroup(http.open),
        SeriesGroup(http.loop_lag),
        SeriesGroup(http.limited),
        SeriesGroup(http.access_file_broken),
        SeriesGroup(http.jwt_keys_broken),
        SeriesGroup(workers.indexes_missing),
        SeriesGroup(workers.storage_full),
        SeriesGroup(workers.storage_free),
        SeriesGroup(workers.storage_used),
        SeriesGroup(workers.clock_offset),
    ]


def _requests(http: HttpMetrics) -> Iterator[SeriesGroup]:
    """Return the requests of clients. Those of operators include the dashboard's own."""
    for label, codes in (("ok", "123"), ("4xx", "4"), ("499", ""), ("5xx", "5")):

        def belongs(labels: Labels, codes: str = codes) -> bool:
            _, route, code = labels
            fits = code[0] in codes if code != "499" else not codes
            return fits and _is_clients(route)

        yield SeriesGroup(http.requests, "value", f'code="{label}"', belongs)
    # The duration of a long poll or a stream says nothing about the service.
    yield SeriesGroup(
        http.seconds,
        "buckets",
        belongs=lambda labels: (
            _is_clients(labels[0]) and not labels[0].endswith((WAIT_SUFFIX, STREAM_PATH))
        ),
    )


def _is_clients(route: str) -> bool:
    return route == "none" or audience_of(route) == "clients"


def _is_other_operation(labels: Labels) -> bool:
    return labels[0] not in (*_HOT_OPERATIONS, *_OPERATIONS)


def _labelled(metric: Counter | Gauge | Histogram, value: str, form: Form = "value") -> SeriesGroup:
    """Return the child with this value of the metric's only label."""
    (name,) = metric._labelnames
    return SeriesGroup(metric, form, f'{name}="{value}"', lambda labels: labels == (value,))


def _series(name: str, *labels: str) -> str:
    said = ",".join(label for label in labels if label)
    return f"{name}{{{said}}}" if said else name
