"""The image and docker-compose.yml: what is pinned and forbidden, and times that must agree."""

import re
from typing import Any

import pytest
import yaml

from config import Settings
from config.settings import PROJECT_ROOT

_DIGEST = re.compile(r"^[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$")


def text(name: str) -> str:
    """Return a file of the project."""
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


def seconds(value: str) -> int:
    """Return a duration such as `35s` in seconds."""
    assert value.endswith("s")
    return int(value[:-1])


DOCKERFILE = text("Dockerfile")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(text("docker-compose.yml"))["services"]


def test_every_image_is_pinned_by_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]
    images = [base, *(each["image"] for each in SERVICES.values() if "build" not in each)]
    assert len(images) == 3
    assert [image for image in images if not _DIGEST.match(image)] == []


def test_the_guide_renews_every_image() -> None:
    guide = text("docs/containers.md")
    for image in (re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)[0], "mongo:8"):
        assert f"imagetools inspect {image.partition('@')[0]} " in guide
    assert f"imagetools inspect {SERVICES['balancer']['image'].partition('@')[0]} " in guide


def test_the_image_runs_without_root() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert "0" not in user
    # The last stage changes nothing as root, after which it could not be read-only.
    assert "\nRUN " not in DOCKERFILE.rpartition("\nFROM ")[2]


def test_the_image_says_what_it_is() -> None:
    project = text("pyproject.toml")
    for label in ("title", "description", "licenses"):
        (value,) = re.findall(rf'org\.opencontainers\.image\.{label}="([^"]+)"', DOCKERFILE)
        assert value in project or label == "description"


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_gain_or_write_anything(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "logging"} <= service.keys()
    # The service's user is in its image.
    assert "user" in service or name == "chat"


def test_a_container_has_time_to_drain() -> None:
    settings = Settings()
    delay_s = float(SERVICES["chat"]["environment"]["CHAT_DRAIN_DELAY_S"])
    assert seconds(SERVICES["chat"]["stop_grace_period"]) > delay_s + settings.drain_timeout_s + 5
    haproxy = text("deploy/haproxy.cfg")
    (soft_stop,) = re.findall(r"^ +hard-stop-after (\S+)$", haproxy, re.MULTILINE)
    assert seconds(SERVICES["balancer"]["stop_grace_period"]) > seconds(soft_stop)
    (waits,) = re.findall(r"^ +timeout server (\S+)$", haproxy, re.MULTILINE)
    assert seconds(waits) > settings.max_wait_s + settings.deadline_s


def test_a_release_is_built_for_both_machines() -> None:
    workflow = yaml.safe_load(text(".github/workflows/release.yml"))
    image = workflow["jobs"]["image"]
    machines = {each["machine"] for each in image["strategy"]["matrix"]["include"]}
    assert machines == {"amd64", "arm64"}
    pushes = image["steps"][-1]["run"]
    assert "--sbom=true --provenance=mode=max --push" in pushes
    joins = "".join(step.get("run", "") for step in workflow["jobs"]["release"]["steps"])
    assert all(f'"$name-{machine}"' in joins for machine in machines)
