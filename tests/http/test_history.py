"""The samples of the dashboard: their counters, and the ports that serve them."""

import json
import math
import re
import socket
import time
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import urljoin

import pytest

from chat_service import __version__
from chat_service.metrics.day import DAY_EVERY_S, DAY_S
from chat_service.metrics.history import EVERY_S, SAMPLES
from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.waiting import eventually

Sample: TypeAlias = Callable[[float], None]

OPS_PATHS = ("/ops", "/ops/runbook", "/ops/history", "/metrics")


async def history(chat: ChatClient, query: str = "") -> dict[str, Any]:
    """Return the decoded answer of /ops/history."""
    answer = await chat.request("GET", f"/ops/history{query}")
    assert (answer.code, answer.headers["Content-Type"]) == (200, "application/json")
    document: dict[str, Any] = json.loads(answer.body)
    return document


def last(document: dict[str, Any]) -> dict[str, float]:
    """Return the last value of each series of the only process."""
    (process,) = document["processes"]
    return dict(zip(document["series"], process["samples"][-1][1:], strict=True))


@pytest.fixture
def sample(service: Service, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Return a function that takes a sample at a time. The service itself takes none meanwhile."""
    take = service._history.sample
    monkeypatch.setattr(service._history, "sample", lambda *_, **__: None)
    return take


async def test_the_samples_say_what_the_metrics_say(chat: ChatClient) -> None:
    before = await history(chat)
    assert last(before)["chat_messages_accepted_total"] == 0
    for number in range(5):
        await chat.post("bob", str(number))
    assert len(await chat.read("bob")) == 5
    assert (await chat.request("GET", "/chat/")).code == 404

    async def is_sampled() -> bool:
        return last(await history(chat))["chat_messages_read_total"] == 5

    await eventually(is_sampled)
    values = last(await history(chat))
    assert values["chat_messages_accepted_total"] == 5
    assert values['chat_http_requests_total{code="ok"}'] == 6
    assert values['chat_http_requests_total{code="4xx"}'] == 1
    for name in ("chat_batch_posts", "chat_batch_requests", "chat_queue_wait_seconds"):
        assert values[f"{name}_count"] == await chat.metric(f"{name}_count"), name
        assert values[f"{name}_sum"] == pytest.approx(await chat.metric(f"{name}_sum")), name
    text = (await chat.request("GET", "/metrics")).body.decode()
    for name in values:
        if name.startswith(("chat_queue_wait", "chat_batch")):
            assert f"{name} {values[name]}\n" in text


async def test_a_service_reports_its_state_and_its_node(service: Service, chat: ChatClient) -> None:
    async def is_disk_measured() -> bool:
        return (await history(chat))["node"]["disk"] is not None

    # A service on a busy machine may answer before it has measured the disk.
    await eventually(is_disk_measured)
    document = await history(chat)
    assert document["state"] == {
        "severity": "ok",
        "says": "Everything works.",
        "conditions": [],
    }
    assert document["thresholds"]["latency"] == {"value": 0.5, "unit": "s", "runbook": "p99-is-up"}
    node = document["node"]
    assert node["name"].endswith(f":{service.port}")
    assert (node["version"], node["processes"]) == (__version__, 1)
    assert node["database"]["state"] == "available"
    assert node["database"]["kind"] == "replica set"
    assert node["database"]["members"] == 1
    assert int(node["database"]["version"].split(".")[0]) >= 6
    assert 0 < node["disk"]["free_bytes"] < node["disk"]["total_bytes"]
    assert 0 < node["disk"]["free_min_bytes"] < node["disk"]["total_bytes"]
    assert node["started"] <= node["oldest_sample"] <= document["now"]
    assert node["uptime_s"] == pytest.approx(document["now"] - node["started"])

    async def knows_the_leader() -> bool:
        return bool((await history(chat))["node"]["leader"])

    await eventually(knows_the_leader)


async def test_a_condition_is_told_with_its_next_step(service: Service, chat: ChatClient) -> None:
    found: dict[str, dict[str, str]] = {}

    async def is_missing() -> bool:
        # The service checks the indexes again and again, and then sets this to 0.
        service._worker_metrics.indexes_missing.set(1)
        state = (await history(chat))["state"]
        found.update({each["name"]: each for each in state["conditions"]})
        return state["severity"] == "failing" and "indexes-missing" in found

    await eventually(is_missing)
    condition = found["indexes-missing"]
    assert condition["runbook"] == "indexes-missing"
    assert condition["says"]
    assert condition["next_step"]


async def test_the_last_day_has_a_row_for_two_minutes(
    service: Service, sample: Sample, chat: ChatClient
) -> None:
    assert (await history(chat, "?range=day"))["processes"] == []
    await chat.post("bob", "x")
    recorder, now = service._recorder, time.time()
    for ahead in (1, 2):
        sample(now + ahead * DAY_EVERY_S)
        await recorder.turn(now + ahead * DAY_EVERY_S)
    document = await history(chat, "?range=day")
    assert (document["every"], document["span"]) == (DAY_EVERY_S, DAY_S)
    assert document["state"]["severity"] == "ok"
    (run,) = document["processes"]
    place = document["series"].index("chat_messages_accepted_total") + 1
    assert [each[place] for each in run["samples"]] == [0, 1, 1]
    assert run["samples"][0][0] == run["started"]
    since = run["samples"][1][0]
    (newer,) = (await history(chat, f"?range=day&since={since}"))["processes"]
    assert newer["samples"] == run["samples"][2:]
    answer = await chat.request("GET", "/ops/history?range=week")
    assert answer.code == 400
    assert json.loads(answer.body)["errors"][0]["field"] == "range"


async def test_only_what_is_newer_is_answered_again(chat: ChatClient) -> None:
    first = await history(chat)
    (process,) = first["processes"]
    newest = process["samples"][-1][0]
    assert newest <= first["now"]
    (again,) = (await history(chat, f"?since={newest}"))["processes"]
    assert (again["pid"], again["started"]) == (process["pid"], process["started"])
    assert all(sample[0] > newest for sample in again["samples"])

    async def has_more() -> bool:
        (then,) = (await history(chat, f"?since={newest}"))["processes"]
        return len(then["samples"]) == 1

    await eventually(has_more)


@pytest.mark.parametrize("since", ["x", "-1", "1e9", "", "1&since=2"])
async def test_an_invalid_time_is_named(chat: ChatClient, since: str) -> None:
    answer = await chat.request("GET", f"/ops/history?since={since}")
    assert answer.code == 400
    assert json.loads(answer.body)["errors"][0]["field"] == "since"


async def test_a_quarter_of_an_hour_is_kept_and_no_more(sample: Sample, chat: ChatClient) -> None:
    now = (await history(chat))["now"]
    for number in range(1, SAMPLES + 50):
        sample(now + number * EVERY_S)
        sample(now + number * EVERY_S + 0.001)
    (process,) = (await history(chat))["processes"]
    times = [sample[0] for sample in process["samples"]]
    assert len(times) == SAMPLES
    assert times[-1] == pytest.approx(now + (SAMPLES + 49) * EVERY_S)
    assert times == sorted(set(times))


async def test_no_other_site_may_read_it(chat: ChatClient) -> None:
    answer = await chat.request("GET", "/ops/history", None, Origin="https://evil.test")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("changes", [{"ops": "off"}, {"host": "0.0.0.0", "allowed_hosts": ()}])
async def test_a_public_port_has_nothing_that_is_for_operators(
    start_service: StartService, connect: Connect, changes: dict[str, object]
) -> None:
    chat = connect(await start_service(**changes))
    chat.contract = None
    for path in OPS_PATHS:
        assert (await chat.request("GET", path)).code == 404, path
        for page in ("/", "/docs"):
            body = (await chat.request("GET", page)).body
            assert f'"{path}"'.encode() not in body
            assert f'"{path[1:]}"'.encode() not in body
        assert path not in json.loads((await chat.request("GET", "/openapi.json")).body)["paths"]
    for path in ("/livez", "/readyz", "/"):
        assert (await chat.request("GET", path)).code == 200, path


async def test_a_public_port_can_serve_operators(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(host="0.0.0.0", allowed_hosts=(), ops="on"))
    for path in OPS_PATHS:
        assert (await chat.request("GET", path)).code == 200, path


async def test_the_operators_port_serves_only_their_pages(
    start_service: StartService, connect: Connect, free_port: int
) -> None:
    chat = connect(await start_service(ops="off", ops_port=free_port))
    ops = ChatClient(f"http://127.0.0.1:{free_port}")
    chat.contract = ops.contract = None
    for path in (*OPS_PATHS, "/livez", "/readyz", "/assets/base.css"):
        assert (await ops.request("GET", path)).code == 200, path
    for path in ("/", "/chat/bob"):
        assert (await ops.request("GET", path)).code == 404, path
    assert (await ops.request("POST", "/chat", b'{"text":"x","username":"b"}')).code == 404
    for page in ("/ops", "/ops/runbook"):
        text = (await ops.request("GET", page)).body.decode()
        for link in re.findall(r'(?:href|src)="([^"#]+)"', text):
            assert (await ops.request("GET", urljoin(page, link))).code == 200, link
    await chat.post("bob", "x")
    for path in OPS_PATHS:
        assert (await chat.request("GET", path)).code == 404, path

    async def is_seen() -> bool:
        return last(await history(ops))["chat_messages_accepted_total"] == 1

    await eventually(is_seen)
    ops.close()


@pytest.fixture
def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_unknown_is_null_on_the_dashboard_and_nan_in_metrics(
    service: Service, chat: ChatClient
) -> None:
    # The service counts the pending messages too, perhaps between these two steps.
    async def is_nan() -> bool:
        service._worker_metrics.pending.set(math.nan)
        return math.isnan(await chat.metric("chat_messages_pending"))

    async def is_null() -> bool:
        service._worker_metrics.pending.set(math.nan)
        return last(await history(chat))["chat_messages_pending"] is None

    await eventually(is_nan)
    await eventually(is_null)
    answer = await chat.request("GET", "/ops/history")
    # Browsers cannot parse NaN or Infinity in JSON.
    assert b"NaN" not in answer.body
