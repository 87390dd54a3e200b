"""The Prometheus queries of the shipped dashboard and alert rules."""

import json
import re
from collections.abc import Iterator
from typing import Any

from config.settings import PROJECT_ROOT

DASHBOARD = PROJECT_ROOT / "deploy/grafana/chat-inbox.json"
PROMETHEUS = PROJECT_ROOT / "deploy/prometheus"


def dashboard() -> dict[str, Any]:
    """Return the dashboard's document."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return document


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each panel's title and query, as Grafana sends it for all instances."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for name, value in (("$__rate_interval", "30s"), ("$job", ".*"), ("$instance", ".*")):
                text = text.replace(name, value)
            yield panel["title"], text


def alerts() -> dict[str, str]:
    """Return the text of each alert rule by name."""
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    parts = re.split(r"^ *- alert: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
