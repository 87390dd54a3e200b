"""The configurations of the OpenTelemetry collector are whole, and keep New Relic's limits.

New Relic's limits: docs.newrelic.com, "New Relic OTLP endpoint", as of August 2026.
"""

import re
from copy import deepcopy
from itertools import chain
from typing import Any

import pytest
import yaml

from config.settings import PROJECT_ROOT

_FOLDER = PROJECT_ROOT / "deploy" / "otel"
#: The files of each use, in order.
_USES = (
    ("collector.yaml",),
    ("collector.yaml", "newrelic.yaml"),
    ("collector.yaml", "prometheus.yaml"),
    ("collector.yaml", "newrelic.yaml", "prometheus.yaml"),
)
_NEW_RELIC = _USES[1]
#: The largest request that New Relic accepts, in bytes.
_PAYLOAD_MAX = 10**6
_VARIABLE = re.compile(r"\$\{env:(\w+)(?::-([^}]*))?\}")


def text(name: str) -> str:
    """Return a file of the configuration."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def merged(*names: str) -> dict[str, Any]:
    """Merge files as the collector does: maps by key, everything else is replaced."""
    whole: dict[str, Any] = {}
    for name in names:
        _merge(whole, yaml.safe_load(text(name)))
    return whole


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = deepcopy(value)


@pytest.mark.parametrize("names", _USES, ids="+".join)
def test_pipelines_name_parts_that_exist(names: tuple[str, ...]) -> None:
    whole = merged(*names)
    pipelines = whole["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        used = set(chain.from_iterable(each[kind] for each in pipelines.values()))
        assert used == set(whole[kind])
    assert set(whole["service"]["extensions"]) == set(whole["extensions"])


@pytest.mark.parametrize("names", _USES, ids="+".join)
def test_memory_is_limited_before_anything_else(names: tuple[str, ...]) -> None:
    whole = merged(*names)
    for pipeline in whole["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
    limiter = whole["processors"]["memory_limiter"]
    assert 0 < limiter["spike_limit_percentage"] < limiter["limit_percentage"] <= 80


def test_a_batch_is_smaller_than_new_relic_accepts() -> None:
    exporter = merged(*_NEW_RELIC)["exporters"]["otlp_http"]
    queue = exporter["sending_queue"]
    batch = queue["batch"]
    assert queue["sizer"] == "bytes"
    assert batch["min_size"] <= batch["max_size"] < _PAYLOAD_MAX <= queue["queue_size"]
    assert exporter["compression"] in ("gzip", "zstd")


def test_new_relic_gets_differences_and_the_key() -> None:
    whole = merged(*_NEW_RELIC)
    # The last one, so that no other processor has to know which form metrics have.
    assert whole["service"]["pipelines"]["metrics"]["processors"][-1] == "cumulative_to_delta"
    exporter = whole["exporters"]["otlp_http"]
    assert exporter["headers"] == {"api-key": "${env:NEW_RELIC_LICENSE_KEY}"}
    assert exporter["endpoint"] == "${env:OTLP_ENDPOINT:-https://otlp.nr-data.net}"


@pytest.mark.parametrize("name", ["collector.yaml", "newrelic.yaml", "prometheus.yaml"])
def test_the_head_of_a_file_explains_its_variables(name: str) -> None:
    head, _, _ = text(name).partition("\n\n")
    for variable, default in _VARIABLE.findall(text(name)):
        assert f"\n#   {variable}  " in head
        # Secrets have no default.
        assert not default or "KEY" not in variable


def test_the_collector_is_where_the_service_looks_for_it() -> None:
    whole = merged("collector.yaml")
    endpoint = whole["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    # The exporter's default: http://localhost:4318
    assert endpoint == "${env:LISTEN_HOST:-127.0.0.1}:4318"


def test_a_scrape_has_the_name_that_alerts_select() -> None:
    (scrape,) = merged("prometheus.yaml")["receivers"]["prometheus"]["config"]["scrape_configs"]
    rules = (PROJECT_ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert f"job_name: {scrape['job_name']} " in rules
