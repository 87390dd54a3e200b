"""Traces and metrics over OTLP, as a collector receives them; they never disturb the service."""

import asyncio
import sys
import threading
from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tornado.ioloop import IOLoop

from chat_service.otlp.tracing import RequestTracer
from chat_service.service import TelemetryUnusable
from tests.conftest import Connect, StartService
from tests.support.collector import Collector, attributes
from tests.support.waiting import PATIENCE, eventually
from workers.commands import Count
from workers.errors import StoreUnavailable
from workers.work_item import WorkItem

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
METRICS_OFTEN = "OTEL_METRIC_EXPORT_INTERVAL"


@pytest.fixture
def collector(io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """A collector. Services that start afterwards send their telemetry to it."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    return collector


async def test_a_request_is_traced_through_queue_batch_and_database(
    start_service: StartService, connect: Connect, collector: Collector
) -> None:
    async with collector:
        service = await start_service(telemetry="otlp")
        chat = connect(service)
        body = b'{"text": "a secret", "username": "bobs-own-inbox"}'
        await chat.request("POST", "/chat", body, Traceparent=TRACEPARENT, X_Request_ID="first")
        assert await chat.texts("bobs-own-inbox") == ["a secret"]
        await service.stop()

        (post,) = collector.named("POST /chat")
        assert (post.trace_id.hex(), post.parent_span_id.hex()) == (TRACE, PARENT)
        said = attributes(post.attributes)
        assert said["http.response.status_code"] == 201
        assert said["chat.request.id"] == "first"
        (queue,) = [span for span in collector.named("queue") if span.trace_id == post.trace_id]
        (batch,) = [span for span in collector.named("batch") if span.trace_id == post.trace_id]
        (insert,) = collector.named("insert")
        assert queue.parent_span_id == batch.parent_span_id == post.span_id
        assert insert.parent_span_id == batch.span_id
        assert [link.span_id for link in batch.links] == [post.span_id]
        assert [link.span_id for link in queue.links] == [batch.span_id]
        starts = [span.start_time_unix_nano for span in (queue, batch, insert)]
        assert starts == sorted(starts)
        assert queue.end_time_unix_nano == batch.start_time_unix_nano
        assert insert.end_time_unix_nano <= batch.end_time_unix_nano

        (read,) = collector.named("GET /chat/:username")
        assert read.trace_id != post.trace_id
        (claim,) = collector.named("claim")
        assert claim.trace_id == read.trace_id
        # Maintenance is not part of any request.
        assert not collector.named("clock")
        assert not collector.named("expire")
        everything = repr(collector.spans)
        assert "secret" not in everything
        assert "bobs-own-inbox" not in everything


async def test_a_batch_and_its_requests_link_to_each_other(
    start_service: StartService, connect: Connect, collector: Collector
) -> None:
    async with collector:
        service = await start_service(telemetry="otlp", shards=1)
        chat = connect(service)
        await asyncio.gather(*(chat.post(f"u{number}", "x") for number in range(30)))
        await service.stop()
        posts = {post.span_id for post in collector.named("POST /chat")}
        assert len(posts) == 30
        batches = {batch.span_id: batch for batch in collector.named("batch")}
        linked = [link.span_id for batch in batches.values() for link in batch.links]
        assert sorted(linked) == sorted(posts)
        queues = collector.named("queue")
        assert {queue.parent_span_id for queue in queues} == posts
        for queue in queues:
            (link,) = queue.links
            assert queue.parent_span_id in {each.span_id for each in batches[link.span_id].links}
        assert len(batches) < 30


async def test_requests_served_by_tornado_are_traced_too(
    start_service: StartService, connect: Connect, collector: Collector
) -> None:
    async with collector:
        service = await start_service(telemetry="otlp", slice_max=5)
        chat = connect(service)
        for number in range(12):
            body = b'{"text":"%d","username":"bob"}' % number
            await chat.request("POST", "/chat", body, Idempotency_Key=f"k{number}")
        # A read that begins on the fast path and is written in parts by Tornado is one span.
        assert len(await chat.texts("bob")) == 12
        await chat.request("POST", "/chat", b"{")
        await service.stop()
        posts = [attributes(post.attributes) for post in collector.named("POST /chat")]
        statuses = [post["http.response.status_code"] for post in posts]
        assert statuses == [201] * 12 + [400]
        (read,) = collector.named("GET /chat/:username")
        claims = collector.named("claim")
        assert len(claims) == 3
        assert {claim.trace_id for claim in claims} == {read.trace_id}


async def test_a_client_can_decline_the_sampling_of_its_request(
    start_service: StartService, connect: Connect, collector: Collector
) -> None:
    async with collector:
        service = await start_service(telemetry="otlp")
        chat = connect(service)
        unsampled = f"00-{TRACE}-{PARENT}-00"
        await chat.request("GET", "/chat/bob", Traceparent=unsampled)
        await chat.request("GET", "/chat/bob", Traceparent="junk")
        await service.stop()
        (read,) = collector.named("GET /chat/:username")
        assert not read.parent_span_id


async def test_the_collector_gets_the_same_counts_as_a_scrape(
    start_service: StartService,
    connect: Connect,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(METRICS_OFTEN, "100")
    async with collector:
        service = await start_service(telemetry="otlp")
        chat = connect(service)
        for _ in range(3):
            await chat.post("bob", "x")

        async def has_come() -> bool:
            if not collector.metrics:
                return False
            accepted = collector.metrics[-1]["chat_messages_accepted"].sum
            return [point.as_double for point in accepted.data_points] == [3.0]

        await eventually(has_come)
        seconds = collector.metrics[-1]["chat_store_operation_seconds"]
        (inserts,) = [
            point
            for point in seconds.histogram.data_points
            if attributes(point.attributes)["operation"] == "insert"
        ]
        scraped = (await chat.request("GET", "/metrics")).body.decode()
        for kind, value in ("count", float(inserts.count)), ("sum", inserts.sum):
            line = f'chat_store_operation_seconds_{kind}{{operation="insert"}} {value}'
            assert line in scraped.splitlines()
        assert sum(inserts.bucket_counts) == inserts.count
        assert len(inserts.bucket_counts) == len(inserts.explicit_bounds) + 1
        assert seconds.unit == "s"
        assert "chat_http_connections" in collector.metrics[-1]
        assert collector.resources[-1]["service.name"] == "chat-inbox"
        await service.stop()


async def test_delta_temporality_sends_each_count_once(
    start_service: StartService,
    connect: Connect,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(METRICS_OFTEN, "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    async with collector:
        service = await start_service(telemetry="otlp")
        chat = connect(service)
        posts = 5
        for _ in range(posts):
            await chat.post("bob", "x")
            sent = len(collector.metrics)
            await eventually(partial(_has_grown, collector, sent))
        await service.stop()
        told = [metrics["chat_messages_accepted"].sum for metrics in collector.metrics]
        assert {each.aggregation_temporality for each in told} == {1}
        assert sum(each.data_points[0].as_double for each in told) == posts
        assert len(told) > posts
        inserts = [
            point.count
            for metrics in collector.metrics
            for point in metrics["chat_store_operation_seconds"].histogram.data_points
            if attributes(point.attributes)["operation"] == "insert"
        ]
        assert sum(inserts) == posts


async def _has_grown(collector: Collector, sent: int) -> bool:
    return len(collector.metrics) > sent


async def test_an_absent_collector_delays_nothing(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    # In seconds: longer than a stop waits for it.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv(METRICS_OFTEN, "10")
    service = await start_service(telemetry="otlp")
    chat = connect(service)
    await chat.post("bob", "x")
    assert await chat.texts("bob") == ["x"]
    async with asyncio.timeout(10 * PATIENCE):
        await service.stop()
    # The thread still runs. Wait for it, because its errors would appear in the next test.
    for thread in threading.enumerate():
        if thread.name == "otlp":
            await asyncio.to_thread(thread.join)


async def test_telemetry_without_its_packages_tells_how_to_install(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("chat_service.otlp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TelemetryUnusable, match=r"install chat-inbox\[otel\]"):
        await start_service(telemetry="otlp")


async def test_an_invalid_interval_is_named(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(METRICS_OFTEN, "1m")
    with pytest.raises(TelemetryUnusable, match=f"{METRICS_OFTEN} must be a number"):
        await start_service(telemetry="otlp")


async def test_the_text_of_an_exception_is_in_no_span() -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    tracer = RequestTracer(provider.get_tracer("test"))
    span = tracer.begin("GET", "/chat/:username", "id", "")
    assert span is not None
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    item = WorkItem(Count("bob"), 0, 1, future, trace=span)
    with pytest.raises(StoreUnavailable), tracer.batch([item]), tracer.operation("find"):
        raise StoreUnavailable("not reached: bob") from ValueError("bob's text")
    tracer.end(span, 503)
    told = "".join(each.to_json() for each in exported.get_finished_spans())
    assert "bob" not in told
    (find,) = [each for each in exported.get_finished_spans() if each.name == "find"]
    assert find.attributes is not None
    assert find.attributes["error.type"] == "StoreUnavailable"
    assert not find.status.is_ok


#: New Relic's limits: docs.newrelic.com, "New Relic OTLP endpoint", as of August 2026. The largest
#: request in bytes, the longest name and value of an attribute in characters.
NEW_RELIC_PAYLOAD, NEW_RELIC_NAME, NEW_RELIC_VALUE = 10**6, 255, 4095


async def test_what_is_sent_keeps_new_relics_limits(
    start_service: StartService,
    connect: Connect,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    # Spans gather until the SDK sends as many as it does at once.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with collector:
        service = await start_service(telemetry="otlp")
        chat = connect(service)
        for burst in range(3):
            posts = (
                chat.request(
                    "POST",
                    "/chat",
                    b'{"text": "x", "username": "%d"}' % number,
                    X_Request_ID=f"{burst}-{number}-" + "r" * 5000,
                )
                for number in range(100)
            )
            await asyncio.gather(*posts)
        await service.stop()
        assert len(collector.spans) > 512
        assert collector.metrics
        assert max(len(each.body) for each in collector.requests) < NEW_RELIC_PAYLOAD
        points = [
            point
            for metrics in collector.metrics
            for metric in metrics.values()
            for kind in (metric.gauge, metric.sum, metric.histogram)
            for point in kind.data_points
        ]
        told = [attributes(each.attributes) for each in (*collector.spans, *points)]
        names, values = set[str](), set[str]()
        for each in (*told, *collector.resources):
            names |= each.keys()
            values |= {value for value in each.values() if isinstance(value, str)}
        assert max(map(len, names)) <= NEW_RELIC_NAME
        assert max(map(len, values)) <= NEW_RELIC_VALUE
