"""What the container does: it is started as ECS starts it, with the variables of the template."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings
from tests.deploy.ecs.template import ROOT, Stack
from tests.support.code_path import CODE_PATH

ACCESS = '[anonymous]\nsend = ["a % \\\\n $HOME *"]'


def started(stack: Stack, tmp_path: Path, **changed: str) -> "subprocess.CompletedProcess[str]":
    """Run the container's command with `--print-config`, as its entry point does."""
    container = stack.container()
    # It stands in for the image's.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return subprocess.run(
        [*container["EntryPoint"], *container["Command"], "--print-config"],
        env={
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": CODE_PATH,
            "CHAT_MONGO_URI": "mongodb://user:password@db/?replicaSet=rs0",
            **stack.environment(),
            **changed,
        },
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_the_service_understands_every_variable(tmp_path: Path) -> None:
    stack = Stack(Access="both", JwtIssuer="https://login.example", JwtAudience="chat")
    file = tmp_path / "access.toml"
    done = started(stack, tmp_path, ACCESS_TOML=ACCESS, CHAT_ACCESS_FILE=str(file))
    assert (done.returncode, done.stderr) == (0, "")
    settings = json.loads(done.stdout)
    assert settings["drain_delay_s"] == 12
    assert settings["trusted_proxies"] == ["10.40.0.0/24", "10.40.1.0/24", "10.40.2.0/24"]
    assert settings["public_url"] == "https://chat.example.com"
    assert (settings["ops"], settings["ops_port"]) == ("off", 9090)
    assert settings["jwt_issuer"] == "https://login.example"
    # No variable is unknown to the service.
    names = {name.removeprefix("CHAT_").lower() for name in stack.environment() if "CHAT_" in name}
    assert names <= set(Settings.__struct_fields__)


def test_the_access_file_has_every_character_of_its_secret(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    done = started(Stack(), tmp_path, ACCESS_TOML=ACCESS, CHAT_ACCESS_FILE=str(file))
    assert done.returncode == 0
    assert file.read_text(encoding="utf-8") == ACCESS + "\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_service_starts_without_an_access_file(tmp_path: Path) -> None:
    done = started(Stack(Access="off", AccessSecret=""), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["access"] == "off"


def test_the_health_check_is_that_of_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(
        r"^HEALTHCHECK --interval=(\d+)s --timeout=(\d+)s --start-period=(\d+)s "
        r"--retries=(\d+) \\\n\s+CMD (\[.*\])$",
        dockerfile,
        re.MULTILINE,
    )
    assert found is not None
    interval, timeout, start, retries = map(int, found.groups()[:4])
    assert Stack().container()["HealthCheck"] == {
        "Command": ["CMD", *json.loads(found[5])],
        "Interval": interval,
        "Timeout": timeout,
        "StartPeriod": start,
        "Retries": retries,
    }
    assert re.search(r"^USER (.*)$", dockerfile, re.MULTILINE)[1] == Stack().container()["User"]  # type: ignore[index]


def test_the_template_has_the_collector_of_the_project() -> None:
    stack = Stack(Telemetry="newrelic", CollectorImage="collector", NewRelicSecret="arn:aws:secret")
    for variable, name in (("COLLECTOR", "collector.yaml"), ("BACKEND", "newrelic.yaml")):
        lines = (ROOT / "deploy" / "otel" / name).read_text(encoding="utf-8").splitlines()
        wanted = [each for each in lines if each.strip() and not each.lstrip().startswith("#")]
        assert stack.environment("collector")[variable].splitlines() == wanted
    # The collector must run when the service starts, and end after it.
    assert stack.container()["DependsOn"] == [{"ContainerName": "collector", "Condition": "START"}]


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({"AccessSecret": ""}, "AccessSecret"),
        ({"Access": "jwt", "JwtIssuer": "https://login.example"}, "JwtAudience"),
        ({"Telemetry": "otlp"}, "CollectorImage"),
        ({"Telemetry": "newrelic", "CollectorImage": "collector"}, "NewRelicSecret"),
    ],
)
def test_incomplete_parameters_are_refused(parameters: dict[str, str], rule: str) -> None:
    (broken,) = Stack(**parameters).broken_rules()
    assert broken.startswith(rule)


def test_the_default_parameters_are_complete() -> None:
    assert Stack().broken_rules() == []
