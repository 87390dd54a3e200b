"""The metrics of requests: many that are counted at once, and each that is counted alone."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from chat_service.api.types import AnsweredRequest
from chat_service.metrics.http import HttpMetrics

REQUESTS = st.builds(
    AnsweredRequest,
    id=st.just("id"),
    method=st.sampled_from(["GET", "POST", "BREW", "WHEN"]),
    route=st.sampled_from(["/chat", "/chat/:username", "none"]),
    inbox=st.just(""),
    client=st.just(""),
    status=st.sampled_from([200, 201, 404]),
    # Binary fractions, whose sums are exact in any order; some are bounds of buckets.
    seconds=st.sampled_from([0.0, 0.0078125, 0.5, 1.0, 5.0, 10.0, 64.0]),
)


@given(st.lists(REQUESTS, max_size=30))
def test_counting_together_is_counting_one_by_one(requests: list[AnsweredRequest]) -> None:
    texts = []
    for groups in ([requests], [[each] for each in requests]):
        registry = CollectorRegistry()
        metrics = HttpMetrics(registry)
        for group in groups:
            metrics.count(group)
        text = generate_latest(registry).decode()
        # The times at which a metric was made differ, and the order of first occurrences may.
        texts.append(sorted(line for line in text.splitlines() if "_created" not in line))
    assert texts[0] == texts[1]
    assert not requests or sum(
        float(line.split()[-1]) for line in texts[0] if "requests_total{" in line
    ) == len(requests)


def test_a_bucket_includes_its_bound() -> None:
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    metrics.count([AnsweredRequest("id", "GET", "/chat", "", "", 200, at) for at in (0.5, 0.51)])
    name = "chat_http_request_duration_seconds"
    for bound, count in (("0.2", 0.0), ("0.5", 1.0), ("1.0", 2.0), ("+Inf", 2.0)):
        labels = {"route": "/chat", "le": bound}
        assert registry.get_sample_value(f"{name}_bucket", labels) == count
    assert registry.get_sample_value(f"{name}_sum", {"route": "/chat"}) == 1.01
