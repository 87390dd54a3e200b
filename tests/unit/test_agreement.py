"""The conditions of the dashboard, the alerts and the runbook speak of the same things."""

import ast
import re
from collections.abc import Iterator

import pytest

from chat_service.metrics.conditions import (
    EXPIRED_MIN,
    PENDING_FACTOR,
    RAN_OUT_MIN,
    THRESHOLDS,
    Facts,
    thresholds_of,
)
from config.settings import PROJECT_ROOT
from tests.support.dashboard import alerts
from tests.unit.test_conditions import AVAILABLE, CASES, DISK


def calls() -> Iterator[list[str]]:
    """Yield the name, the severity and the runbook entry of each condition in the code."""
    path = PROJECT_ROOT / "chat_service/metrics/conditions.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Condition":
            words = [node.args[0], node.args[1], node.args[-1]]
            yield [str(word.value) for word in words if isinstance(word, ast.Constant)]


def entries() -> dict[str, str]:
    """Return the text of each entry of the runbook by its anchor."""
    page = (PROJECT_ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## Runbook\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (.+)\n", section, flags=re.MULTILINE)
    anchors = (re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in parts[1::2])
    return dict(zip(anchors, parts[2::2], strict=True))


CONDITIONS = {name: runbook for name, _, runbook in calls()}
ENTRIES = entries()

#: The condition that is about the same thing as an alert, and the numbers that both judge by. The
#: other alerts are about what a node cannot know about itself.
SAME: dict[str, tuple[str, set[float]]] = {
    "ChatInboxErrors": ("requests-fail", {THRESHOLDS["failed"].value}),
    "ChatInboxSlow": ("p99-is-up", {THRESHOLDS["latency"].value}),
    "ChatInboxExpiredUnread": (
        "messages-expire-unread",
        {THRESHOLDS["expired_unread"].value, EXPIRED_MIN},
    ),
    "ChatInboxLeasesRunOut": (
        "leases-run-out",
        {THRESHOLDS["leases_ran_out"].value, RAN_OUT_MIN, 0},
    ),
    "ChatInboxDeadLetters": ("dead-letters-grow", {THRESHOLDS["dead"].value}),
    "ChatInboxQueueWait": ("requests-queue", {THRESHOLDS["queue_time"].value}),
    "ChatInboxPendingGrows": ("pending-grows", {THRESHOLDS["pending"].value, PENDING_FACTOR}),
    "ChatInboxNoLeader": ("leader-missing", set()),
    "ChatInboxDatabaseAway": ("database-unavailable", set()),
    "ChatInboxIndexesMissing": ("indexes-missing", set()),
    "ChatInboxStorageFull": ("storage-full", set()),
    "ChatInboxOutcomesUnknown": ("outcomes-unknown", {0}),
    "ChatInboxWorkerRestarts": ("worker-restarts", {0}),
    "ChatInboxProcessRestarts": ("process-restarts", {0, 2}),
    "ChatInboxMongodRestarts": ("mongod-restarts", {0}),
    "ChatInboxLoopLag": ("event-loop-lags", {THRESHOLDS["loop_lag"].value}),
    "ChatInboxCertificate": ("certificate-expires", set()),
    "ChatInboxAccess": ("access-broken", set()),
    "ChatInboxClockOffset": ("clocks-differ", {THRESHOLDS["clock_offset"].value}),
}


def test_every_alert_has_its_condition_or_is_about_no_node() -> None:
    assert {*alerts()} - {*SAME} == {"ChatInboxDown", "ChatInboxUnwatched"}
    assert {*SAME} <= {*alerts()}


@pytest.mark.parametrize("alert", SAME)
def test_an_alert_and_its_condition_agree(alert: str) -> None:
    name, numbers = SAME[alert]
    expression = re.split(r"\n *(?:for|labels): ", alerts()[alert])[0]
    assert {float(number) for number in re.findall(r"(?:>|<=) ([\d.]+)", expression)} == numbers
    # Both lead to the entry that names the alert.
    assert re.findall(r"runbook_url: .*#([a-z0-9-]+)", alerts()[alert]) == [CONDITIONS[name]]
    assert f"**{alert}**" in ENTRIES[CONDITIONS[name]]


def test_the_alert_about_certificates_uses_the_threshold() -> None:
    assert THRESHOLDS["certificate"].value == 14 * 86_400
    assert "< time() + 14 * 86400" in alerts()["ChatInboxCertificate"]


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_leads_to_an_entry_of_the_runbook(name: str) -> None:
    assert CONDITIONS[name] in ENTRIES


def test_a_threshold_leads_to_an_entry_of_the_runbook() -> None:
    for name, threshold in thresholds_of(Facts(AVAILABLE, DISK, "")).items():
        assert threshold.runbook in ENTRIES, name


def test_the_operations_page_lists_exactly_the_conditions() -> None:
    page = (PROJECT_ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = page.partition("\n### What is wrong\n")[2].partition("\n### ")[0]
    told = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \|", table, flags=re.MULTILINE)
    assert sorted(told) == sorted((name, severity) for name, severity, _ in calls())


def test_every_condition_is_tested() -> None:
    by_themselves = {"pending-grows", "leases-run-out"}
    assert {case.name for case in CASES} | by_themselves == {*CONDITIONS}
