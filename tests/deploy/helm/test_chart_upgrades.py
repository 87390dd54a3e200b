"""What an upgrade sends to a cluster in which the chart is installed already."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tests.deploy.helm.manifests import variant
from tests.deploy.helm.rendering import CHART, NAMESPACE, RELEASE
from tests.deploy.helm.tools import helm


def _answers() -> dict[str, dict[str, Any]]:
    """Return what an API server says, by path: its kinds, and one Deployment with seven pods."""
    kinds: dict[str, set[str]] = {}
    for each in variant("atlas").objects:
        kinds.setdefault(each["apiVersion"], set()).add(each["kind"])
    groups: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": "35", "gitVersion": "v1.35.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": groups},
    }
    for version, its_kinds in kinds.items():
        group, _, number = version.rpartition("/")
        if group:
            here = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [here], "preferredVersion": here})
        resources = [
            {
                "name": f"{kind.lower().removesuffix('y')}{'ies' if kind.endswith('y') else 's'}",
                "namespaced": True,
                "kind": kind,
                "verbs": ["get"],
            }
            for kind in its_kinds
        ]
        found[f"/{'apis' if group else 'api'}/{version}"] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": resources,
        }
    found[f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": RELEASE,
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {
                "meta.helm.sh/release-name": RELEASE,
                "meta.helm.sh/release-namespace": NAMESPACE,
            },
        },
        "spec": {"replicas": 7},
    }
    return found


class _ApiServer(BaseHTTPRequestHandler):
    """Answers with JSON."""

    answers: ClassVar[dict[str, dict[str, Any]]] = {}

    def do_GET(self) -> None:
        answer = self.answers.get(self.path.partition("?")[0])
        missing = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or missing).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The file that leads to an API server which knows the installed Deployment."""
    _ApiServer.answers = _answers()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = tmp_path / "kubeconfig"
    here = {"server": f"http://127.0.0.1:{server.server_port}"}
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": here}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": ""}}],
                "current-context": "test",
            }
        ),
        encoding="utf-8",
    )
    yield str(file)
    server.shutdown()
    server.server_close()


def test_turning_autoscaling_on_keeps_the_pods(cluster: str) -> None:
    values = f"--values={CHART / 'examples/atlas.yaml'}"
    command = ("template", RELEASE, str(CHART), f"--namespace={NAMESPACE}", values)
    done = helm(*command, "--dry-run=server", "--disable-openapi-validation", kubernetes=cluster)
    assert done.returncode == 0, done.stderr
    (made,) = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment"]
    assert made["spec"]["replicas"] == 7
