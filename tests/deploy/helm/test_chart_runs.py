"""The service as the chart configures it, and the chart's own test against it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.deploy.helm.manifests import Manifests, rendered, variant
from tests.deploy.helm.rendering import RELEASE, VARIANTS
from tests.support.code_path import CODE_PATH
from tests.support.server import Server
from tests.support.waiting import eventually

_TOKEN, _SENDERS_TOKEN = "cht_" + "a" * 43, "cht_" + "b" * 43
_ACCESS = f"""
[[token]]
name = "helm-test"
sha256 = "{sha256(_TOKEN.encode()).hexdigest()}"
send = ["helm-test-*"]
read = ["helm-test-*"]
ops = true

[[token]]
name = "sender"
sha256 = "{sha256(_SENDERS_TOKEN.encode()).hexdigest()}"
send = ["helm-test-*"]
"""


def files_of(manifests: Manifests, container: dict[str, object], volumes: object) -> set[str]:
    """Return the paths of all files that are mounted from Secrets."""
    found = set()
    assert isinstance(volumes, list)
    named = {each["name"]: each for each in volumes}
    mounts = container.get("volumeMounts", [])
    assert isinstance(mounts, list)
    for mount in mounts:
        volume = named[mount["name"]]
        sources = volume.get("projected", {}).get("sources", [volume])
        for source in sources:
            for item in source.get("secret", {}).get("items", ()):
                found.add(f"{mount['mountPath']}/{item['path']}")
    return found


@pytest.mark.parametrize("name", [*VARIANTS, "own certificate"])
def test_every_file_that_a_setting_names_is_mounted(name: str) -> None:
    if name == "own certificate":
        made = rendered("--set tls.secretName=chat-tls", "operator.yaml", "ingress.yaml")
    else:
        made = variant(name)
    test = made.named("Pod", f"{RELEASE}-test")["spec"]
    pods = [(made.pod, made.environ)]
    pods.append((test, {each["name"]: each["value"] for each in test["containers"][0]["env"]}))
    for pod, environ in pods:
        container = pod["containers"][0]
        named = {value for value in environ.values() if value.startswith("/run/")}
        assert named <= files_of(made, container, pod.get("volumes") or [])
        for mount in container.get("volumeMounts", ()):
            assert mount["mountPath"] == "/tmp" or mount["readOnly"]


def free_port() -> str:
    """Return a port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def made() -> Manifests:
    """The manifests for access control, metrics and an ingress."""
    return variant("ingress")


@pytest.fixture
def pod(made: Manifests, mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Server]:
    """The service with the environment of a pod. Only ports, addresses and files are others."""
    (tmp_path / "mongo-uri").write_text(mongo_uri, encoding="utf-8")
    (tmp_path / "access.toml").write_text(_ACCESS, encoding="utf-8")
    (tmp_path / "log-username-key").write_text("key", encoding="utf-8")
    environ = {
        name: value.replace("/run/chat/", f"{tmp_path}/") for name, value in made.environ.items()
    }
    environ |= {"CHAT_HOST": "127.0.0.1", "CHAT_OPS_HOST": "127.0.0.1"}
    environ |= {"CHAT_OPS_PORT": free_port(), "CHAT_DRAIN_DELAY_S": "1"}
    environ["CHAT_MONGO_DATABASE"] = database
    with Server(tmp_path, port=0, **environ) as running:
        yield running


async def ask(pod: Server, port: str, path: str, **headers: str) -> HTTPResponse:
    """Ask one of the two ports, by its name in the manifests."""
    number = {"http": str(pod.port), "ops": pod.environ["CHAT_OPS_PORT"]}[port]
    url = f"http://127.0.0.1:{number}{path}"
    return await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)


async def test_the_probes_and_prometheus_get_their_answers(pod: Server, made: Manifests) -> None:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = made.container[name]["httpGet"]
        assert (await ask(pod, probe["port"], probe["path"])).code == 200
    endpoint = made.named("ServiceMonitor")["spec"]["endpoints"][0]
    assert (await ask(pod, endpoint["port"], endpoint["path"])).code == 401
    bearer = {"Authorization": f"Bearer {_TOKEN}"}
    answer = await ask(pod, endpoint["port"], endpoint["path"], **bearer)
    assert b"chat_http_requests_total" in answer.body
    assert (await ask(pod, "http", endpoint["path"], Host="chat.example.org", **bearer)).code == 404
    assert "is ignored" not in pod.errors()


async def test_a_pod_that_ends_is_not_ready_and_still_answers(pod: Server, made: Manifests) -> None:
    probe = made.container["readinessProbe"]["httpGet"]
    pod.signal(signal.SIGTERM)

    async def has_noticed() -> bool:
        return (await ask(pod, probe["port"], probe["path"])).code == 503

    await eventually(has_noticed)
    headers = {"Host": "chat.example.org", "Authorization": f"Bearer {_TOKEN}"}
    assert (await ask(pod, "http", "/chat/helm-test-1", **headers)).code == 200
    assert (await ask(pod, "ops", "/livez")).code == 200
    assert pod.wait() == 0


def own_test(
    made: Manifests, pod: Server, folder: Path, token: str = _TOKEN
) -> subprocess.CompletedProcess[str]:
    """Run the command of the chart's test pod against the service."""
    container = made.named("Pod", f"{RELEASE}-test")["spec"]["containers"][0]
    environ = {each["name"]: each["value"] for each in container["env"]}
    # The name of the Service, as the service knows it, at the address of the process.
    assert urlsplit(environ["CHAT_URL"]).hostname in pod.environ["CHAT_ALLOWED_HOSTS"]
    environ["CHAT_URL"] = pod.base
    (folder / "token").write_text(f"{token}\n", encoding="ascii")
    (folder / "token").chmod(0o600)
    environ["CHAT_TOKEN_FILE"] = environ["CHAT_TOKEN_FILE"].replace("/run/chat", str(folder))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        container["command"],
        env={"PATH": path, "PYTHONPATH": CODE_PATH, **environ},
        cwd="/",
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture
def made_for_address(made: Manifests, monkeypatch: pytest.MonkeyPatch) -> Manifests:
    """The same, for a service that may also be asked by the address of this machine."""
    data = made.named("ConfigMap")["data"]
    monkeypatch.setitem(data, "CHAT_ALLOWED_HOSTS", f"{data['CHAT_ALLOWED_HOSTS']},127.0.0.1")
    return made


def test_the_charts_test_posts_and_reads(
    made_for_address: Manifests, pod: Server, tmp_path: Path
) -> None:
    # Twice, because a message that is left over must not confuse it.
    for _ in range(2):
        done = own_test(made_for_address, pod, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "posted and read" in done.stdout


def test_the_charts_test_fails_if_it_cannot_read(
    made_for_address: Manifests, pod: Server, tmp_path: Path
) -> None:
    done = own_test(made_for_address, pod, tmp_path, _SENDERS_TOKEN)
    assert done.returncode != 0
    assert "posted and read" not in done.stdout
