"""What the validators say of the chart and its manifests."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config.settings import PROJECT_ROOT
from tests.deploy.helm.manifests import variant
from tests.deploy.helm.rendering import CHART, EXAMPLES, VARIANTS
from tests.deploy.helm.tools import helm, install

#: The oldest version that the chart accepts, and the newest that the validator knows.
_VERSIONS = ("1.30", kubernetes_validate.latest_version())
_COMMUNITY = EXAMPLES / "mongodb-community.yaml"


def is_custom(thing: dict[str, Any]) -> bool:
    """Return whether an object is of a kind that Kubernetes itself does not have."""
    return "." in thing["apiVersion"].partition("/")[0].removesuffix(".k8s.io") or thing[
        "apiVersion"
    ].startswith("gateway.")


@cache
def operators_objects() -> list[dict[str, Any]]:
    """Return the objects of the example for MongoDB's operator."""
    return list(yaml.safe_load_all(_COMMUNITY.read_text(encoding="utf-8")))


def problems_of(objects: list[dict[str, Any]]) -> list[str]:
    """Return what the makers' types and schemas say of custom resources."""
    done = subprocess.run(
        ["node", "strict.js"],
        cwd=install(),
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_helm_lint_finds_nothing(name: str) -> None:
    values = [f"--values={EXAMPLES / file}" for file in VARIANTS[name]]
    done = helm("lint", "--strict", "--quiet", str(CHART), *values)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_kubernetes_accepts_every_object(name: str, version: str) -> None:
    for each in variant(name).objects:
        if not is_custom(each):
            kubernetes_validate.validate(each, version, strict=True)


def test_the_operators_objects_are_valid() -> None:
    for each in operators_objects():
        if not is_custom(each):
            kubernetes_validate.validate(each, _VERSIONS[-1], strict=True)


def test_custom_resources_are_as_their_makers_want() -> None:
    objects = [each for name in VARIANTS for each in variant(name).objects if is_custom(each)]
    assert {"ServiceMonitor", "PrometheusRule", "HTTPRoute"} == {each["kind"] for each in objects}
    ours = [each for each in operators_objects() if each["kind"] in ("Issuer", "Certificate")]
    assert len(ours) == 4
    assert problems_of(objects + ours) == []


def test_a_typo_in_a_custom_resource_is_found() -> None:
    monitor = variant("ingress").named("ServiceMonitor")
    endpoint = monitor["spec"]["endpoints"][0]
    wrong = [
        monitor | {"spec": monitor["spec"] | {"endpoints": [endpoint | change]}}
        for change in ({"intervall": "1s"}, {"interval": "soon"})
    ]
    found = "\n".join(problems_of(wrong))
    assert '"intervall"' in found
    assert "endpoints/0/interval must match pattern" in found


def test_kubectl_reads_the_manifests_as_we_do(tmp_path: Path) -> None:
    # kubectl's parser, and not Python's, decides what a value such as 0440 or `off` means.
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": ["all.yaml"]}), encoding="utf-8"
    )
    (tmp_path / "all.yaml").write_text(
        yaml.safe_dump_all(variant("everything").objects), encoding="utf-8"
    )
    done = subprocess.run(
        [install() / "bin/kubectl", "kustomize", str(tmp_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    again = [each for each in yaml.safe_load_all(done.stdout) if each]

    def in_order(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert in_order(again) == in_order(variant("everything").objects)


def test_files_of_the_chart_are_copies() -> None:
    sources = {
        "alerts.yml": "deploy/prometheus/alerts.yml",
        "chat-inbox.json": "deploy/grafana/chat-inbox.json",
        "otel/collector.yaml": "deploy/otel/collector.yaml",
        "otel/newrelic.yaml": "deploy/otel/newrelic.yaml",
    }
    files = CHART / "files"
    assert {str(each.relative_to(files)) for each in files.rglob("*.*")} == set(sources)
    for copy, source in sources.items():
        assert (files / copy).read_bytes() == (PROJECT_ROOT / source).read_bytes(), (
            f"run: cp {source} deploy/helm/chat-inbox/files/{copy}"
        )
