"""Converts the metrics of `/metrics` to OpenTelemetry's format, and sends them periodically.

prometheus_client holds the only copy of the metrics, so dashboards, scrapes and collectors agree.
Each process sends its own metrics, identified by `service.instance.id`.
"""

import asyncio
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import sub
from typing import TypeAlias

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from chat_service.otlp.daemon_thread import on_daemon_thread

log = structlog.get_logger(__name__)

_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_PREFERENCE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_SCOPE = InstrumentationScope("chat_service")

#: A series: its metric's name and its labels.
_Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class MetricsExport:
    """Sends the metrics of one registry.

    Call `collect` on the event loop. `send` may be called on any thread.
    """

    def __init__(self, registry: CollectorRegistry, resource: Resource) -> None:
        self._registry = registry
        self._resource = resource
        self._every_s = _interval_s()
        self._exporter = OTLPMetricExporter()
        self._one_at_a_time = threading.Lock()
        self._is_delta = os.environ.get(_PREFERENCE, "").lower() == "delta"
        self._began_ns = self._collected_ns = time.time_ns()
        # The values sent last, used with delta temporality.
        self._sent: dict[_Series, Sequence[float]] = {}

    async def run(self) -> None:
        """Send metrics periodically until cancelled. Data that the collector refuses is lost."""
        while True:
            await asyncio.sleep(self._every_s)
            data = self.collect()
            await on_daemon_thread(partial(self.send, data))

    def collect(self) -> MetricsData:
        """Return all metrics as of now."""
        now_ns = time.time_ns()
        since_ns = self._collected_ns if self._is_delta else self._began_ns
        metrics = [
            self._metric(family, since_ns, now_ns)
            for family in self._registry.collect()
            if family.type in ("counter", "gauge", "histogram")
        ]
        self._collected_ns = now_ns
        scope = ScopeMetrics(_SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def send(self, data: MetricsData) -> None:
        """Send the data, blocking. If that fails, the exporter logs the cause."""
        with self._one_at_a_time:
            result = self._exporter.export(data)
        if result is not MetricExportResult.SUCCESS:
            log.warning("metrics not sent to the collector")

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown(timeout_millis=0)

    def _metric(self, family: Family, since_ns: int, now_ns: int) -> Metric:
        temporality = (
            AggregationTemporality.DELTA if self._is_delta else AggregationTemporality.CUMULATIVE
        )
        data: Gauge | Sum | Histogram
        if family.type == "gauge":
            data = Gauge(
                [
                    NumberDataPoint(sample.labels, now_ns, now_ns, sample.value)
                    for sample in family.samples
                    # Unknown values are omitted.
                    if not math.isnan(sample.value)
                ]
            )
        elif family.type == "counter":
            data = Sum(
                [
                    NumberDataPoint(
                        sample.labels, since_ns, now_ns, self._values_to_send(sample)[0]
                    )
                    for sample in family.samples
                ],
                temporality,
                is_monotonic=True,
            )
        else:
            data = Histogram(
                [
                    self._histogram(samples, since_ns, now_ns)
                    for samples in _by_series(family.samples)
                ],
                temporality,
            )
        return Metric(family.name, family.documentation, _unit(family.name), data)

    def _histogram(
        self, samples: Sequence[Sample], since_ns: int, now_ns: int
    ) -> HistogramDataPoint:
        """Convert one series: its cumulative buckets in order, its count and its sum."""
        *buckets, count, total = samples
        cumulative = [bucket.value for bucket in buckets]
        in_bucket = map(sub, cumulative, [0.0, *cumulative])
        *counts, summed = self._values_to_send(count, *in_bucket, total.value)
        bounds = [float(bucket.labels["le"]) for bucket in buckets[:-1]]
        return HistogramDataPoint(
            count.labels,
            since_ns,
            now_ns,
            int(sum(counts)),
            summed,
            [int(each) for each in counts],
            bounds,
            # Minimum and maximum are unknown, and optional in the protocol.
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )

    def _values_to_send(self, sample: Sample, *values: float) -> Sequence[float]:
        """Return a series' values or, with delta temporality, their growth since the last call."""
        values = values or (sample.value,)
        if not self._is_delta:
            return values
        series = (sample.name, tuple(sorted(sample.labels.items())))
        sent = self._sent.get(series, (0.0,) * len(values))
        self._sent[series] = values
        return [value - before for value, before in zip(values, sent, strict=True)]


def _interval_s() -> float:
    """Return the export interval in seconds. Raise ValueError if the variable is invalid."""
    given = os.environ.get(_INTERVAL) or "60000"
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        raise ValueError(f"{_INTERVAL} must be a number of milliseconds, not {given!r}")
    return int(given) / 1000


def _by_series(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield a histogram's samples, grouped by combination of labels."""
    series: list[Sample] = []
    for sample in samples:
        series.append(sample)
        if sample.name.endswith("_sum"):
            yield series
            series = []


def _unit(name: str) -> str:
    if name.endswith("_seconds"):
        return "s"
    return "By" if name.endswith("_bytes") else "1"
