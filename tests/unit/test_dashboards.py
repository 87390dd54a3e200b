"""The Grafana dashboard, the alert rules and their documentation use existing metrics."""

import re
from itertools import combinations

import pytest
from prometheus_client import CollectorRegistry

from chat_service.handlers.pages import WEB
from chat_service.metrics.conditions import THRESHOLDS
from chat_service.metrics.http import HttpMetrics, TlsMetrics
from config.settings import PROJECT_ROOT
from tests.support.dashboard import PROMETHEUS, alerts, dashboard, expressions
from tests.support.runbook import ENTRIES
from workers.metrics import WorkerMetrics

#: Labels that Prometheus adds to each series.
_ADDED = {"job", "instance"}
#: The supervisor writes this metric after a process has died, so it is in no registry.
_OF_SUPERVISOR = {"chat_process_restarts_total": set[str]()}

CODE = PROJECT_ROOT / "chat_service"
#: Words in the runbook that look like metrics.
_NOT_METRICS = ("chat_runbook", "chat_service")

_METRIC = re.compile(r"\b(chat_[a-z_]+)(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\bby \(([^)]*)\)")


def known() -> dict[str, set[str]]:
    """Return the labels of each series of the service, by name."""
    registry = CollectorRegistry()
    found = dict(_OF_SUPERVISOR)
    for holder in (WorkerMetrics(registry), HttpMetrics(registry), TlsMetrics(registry)):
        for metric in vars(holder).values():
            for described in getattr(metric, "describe", list)():
                labels = set(metric._labelnames)
                found |= {
                    "counter": {f"{described.name}_total": labels},
                    "gauge": {described.name: labels},
                    "histogram": {
                        f"{described.name}_bucket": labels | {"le"},
                        f"{described.name}_sum": labels,
                        f"{described.name}_count": labels,
                    },
                }[described.type]
    return found | {"chat_build_info": {"version"}}


KNOWN = known()
RULES = [(name, re.split(r"\n *(?:for|labels): ", text)[0]) for name, text in alerts().items()]


@pytest.mark.parametrize(("title", "expression"), [*expressions(), *RULES])
def test_queries_use_existing_metrics_and_labels(title: str, expression: str) -> None:
    found = _METRIC.findall(expression)
    assert found or "up{" in expression or "process_" in expression, "the query has no metric"
    labels = set(_ADDED)
    for metric, selector in found:
        assert metric in KNOWN, f"{title}: there is no {metric}"
        labels |= KNOWN[metric]
        for label in re.findall(r"(\w+)(?:=|!)", re.sub(r'"[^"]*"', "", selector)):
            assert label in KNOWN[metric] | _ADDED, f"{title}: {metric} has no label {label}"
    for grouping in _GROUPING.findall(expression):
        for label in grouping.split(", "):
            assert label in labels, f"{title}: no metric of the query has a label {label}"


def test_all_metrics_are_on_the_dashboard() -> None:
    shown = {metric for _, text in expressions() for metric, _ in _METRIC.findall(text)}
    missing = {
        name
        for name in KNOWN
        if name not in shown and f"{name.rpartition('_')[0]}_bucket" not in shown
    }
    assert not missing


def test_each_alert_leads_to_its_entry_of_the_runbook() -> None:
    page = (WEB / "runbook.html").read_text(encoding="utf-8")
    for name, text in alerts().items():
        assert text.count("summary: ") == 1, name
        (anchor,) = re.findall(r"runbook_url: '\{\{ [^}]+ \}\}#([a-z0-9-]+)'", text)
        assert f"**{name}**" in ENTRIES[anchor], f"{name} leads to {anchor}"
        assert f'id="{anchor}"' in page


def test_the_runbook_names_existing_metrics_and_commands() -> None:
    for anchor, text in ENTRIES.items():
        for metric, _ in _METRIC.findall(re.sub(r"_(?:bucket|sum|count)\b", "", text)):
            is_known = metric in KNOWN or f"{metric}_bucket" in KNOWN
            assert is_known or metric in _NOT_METRICS, f"{anchor} names {metric}"


def test_the_doctor_and_the_conditions_lead_to_entries() -> None:
    sources = ("cli/doctor/runbook.py", "cli/commands/serve.py", "metrics/conditions.py")
    named = {
        word
        for source in sources
        for word in re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)+)"', (CODE / source).read_text("utf-8"))
    }
    # The names of conditions and reasons that differ from their entries.
    own = {
        "access-broken",
        "event-loop-lags",
        "requests-queue",
        "worker-restarts",
        "mongod-restarts",
    }
    own |= {"storage-full", "inbox-full"}
    assert named - own <= set(ENTRIES)


def test_the_served_runbook_has_every_entry() -> None:
    page = (WEB / "runbook.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="([^"]+)"', page) == list(ENTRIES)
    (table,) = re.findall(r'<nav id="symptoms".*?</nav>', page, re.DOTALL)
    assert re.findall(r'<td><a href="#([^"]+)"', table) == list(ENTRIES)


def test_no_link_of_the_served_runbook_leads_nowhere() -> None:
    page = (WEB / "runbook.html").read_text(encoding="utf-8")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    # An entry names no document: what it refers to is on the page.
    entries = page.partition("<h2>What the entries refer to</h2>")[0]
    assert not re.findall(r"\(docs/[^)]*\)", entries)


def test_the_served_runbook_shows_each_section_once() -> None:
    page = (WEB / "runbook.html").read_text(encoding="utf-8")
    headings = re.findall(r"<(h[234])[^>]*>(.*?)</\1>", page)
    assert len(headings) == len({text for _, text in headings})


def test_each_alert_is_tested() -> None:
    tests = (PROMETHEUS / "alerts.test.yml").read_text(encoding="utf-8")
    for name in alerts():
        assert f"name: {name} fires\n" in tests
        assert f"name: {name} is silent\n" in tests


def test_the_operations_page_lists_exactly_the_metrics() -> None:
    page = (PROJECT_ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    told = {metric for metric, _ in _METRIC.findall(table)} - {*_NOT_METRICS}
    written = {
        name.removesuffix("_bucket") for name in KNOWN if not re.search("_(sum|count)$", name)
    }
    assert told == written


def test_panels_are_complete_and_do_not_overlap() -> None:
    document = dashboard()
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in document["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["description"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            for target in panel["targets"]:
                assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {
                    "__rate_interval"
                }
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_state_and_errors_come_before_latency() -> None:
    panels = dashboard()["panels"]
    order = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in panels]
    assert order == sorted(order)
    titles = [panel["title"] for panel in panels]
    assert titles[:4] == ["At a glance", "Database unavailable", "Server errors", "p99"]
    assert titles.index("Refused by reason") < titles.index("Latency")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Server errors", "failed"),
        ("p99", "latency"),
        ("Latency", "latency"),
        ("Queue wait", "queue_time"),
        ("Event loop lag", "loop_lag"),
        ("Pending", "pending"),
    ],
)
def test_panels_show_the_thresholds_of_the_state(title: str, name: str) -> None:
    threshold = THRESHOLDS[name]
    panels = [panel for panel in dashboard()["panels"] if panel["title"] == title]
    shown = [
        (panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"], panel["description"])
        for panel in panels
        if panel["fieldConfig"]["defaults"].get("thresholds")
    ]
    assert shown
    for value, description in shown:
        assert value == threshold.value
        assert f"docs/operations.md#{threshold.runbook}." in description
