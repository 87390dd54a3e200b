"""Prometheus with the service's metrics, the alert rules, and the dashboard's queries."""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tornado.ioloop import IOLoop

from tests.support.client import ChatClient
from tests.support.dashboard import PROMETHEUS, alerts, expressions
from tests.support.server import Server
from tests.support.waiting import PATIENCE, eventually

#: These metrics exist only after the first event that they count.
_OF_EVENTS = (
    # Only a service with TLS has these.
    "chat_tls_",
    "chat_outcomes_unknown_total",
    "chat_process_restarts_total",
)


def promtool(*arguments: str) -> None:
    """Run promtool, which must find no error."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("config", "prometheus.yml"), ("rules", "alerts.yml")],
    ids=lambda arguments: arguments[0],
)
def test_promtool_finds_no_error(arguments: tuple[str, str]) -> None:
    promtool("check", *arguments)


def test_each_alert_fires_only_for_its_condition() -> None:
    promtool("test", "rules", "alerts.test.yml")


@pytest.fixture
def prometheus(io_loop: IOLoop, server: Server, tmp_path: Path) -> Iterator[ChatClient]:
    """A Prometheus with the shipped configuration that scrapes the test's service every second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    text = (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
    assert "127.0.0.1:8080" in text
    text = text.replace("127.0.0.1:8080", server.base.removeprefix("http://"))
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("interval: 15s", "interval: 1s"), encoding="utf-8")
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    client = ChatClient(f"http://{address}")
    client.contract = None
    yield client
    client.close()
    process.terminate()
    process.wait(20 * PATIENCE)


async def ask(prometheus: ChatClient, path: str) -> Any:
    """Return the data of a successful answer, or None if Prometheus does not listen yet."""
    try:
        answer = await prometheus.request("GET", f"/api/v1/{path}")
    except ConnectionRefusedError:
        return None
    if answer.code == 503:
        return None
    document = json.loads(answer.body)
    assert document["status"] == "success", document
    return document["data"]


async def test_every_panel_shows_data_from_prometheus(
    prometheus: ChatClient, chat: ChatClient
) -> None:
    async def shows(expression: str) -> bool:
        # A rate needs two scrapes, so cause new events for each.
        await chat.post("bob", "hello")
        lease = json.loads((await chat.request("POST", "/chat/bob/lease", b"")).body)["lease"]
        await chat.request("POST", "/chat/bob/release", json.dumps({"lease": lease}).encode())
        await chat.read("bob")
        data = await ask(prometheus, f"query?query={quote(expression)}")
        return data is not None and bool(data["result"])

    for title, expression in expressions():
        if any(metric in expression for metric in _OF_EVENTS):
            assert (await ask(prometheus, f"query?query={quote(expression)}")) is not None, title
        else:
            await eventually(lambda text=expression: shows(text), 30)  # type: ignore[misc]


async def test_prometheus_evaluates_the_alerts_and_none_fires(prometheus: ChatClient) -> None:
    rules: list[dict[str, Any]] = []

    async def evaluated() -> bool:
        data = await ask(prometheus, "rules")
        rules[:] = [rule for group in (data or {"groups": []})["groups"] for rule in group["rules"]]
        return bool(rules) and all(rule["health"] != "unknown" for rule in rules)

    await eventually(evaluated, 30)
    assert {rule["name"] for rule in rules} == set(alerts())
    assert {rule["health"] for rule in rules} == {"ok"}
    assert "firing" not in {rule["state"] for rule in rules}
