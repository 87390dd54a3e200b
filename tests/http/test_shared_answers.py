"""Answers for operators: a hundred requests cost as much as one."""

import asyncio
import json
import time

import pytest

from chat_service.api.shared_answers import Pace
from chat_service.handlers import dashboard
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.waiting import eventually


async def pings(chat: ChatClient) -> float:
    """Return how often the service has pinged the database."""
    text = (await chat.request("GET", "/metrics")).body.decode()
    counts = [line for line in text.splitlines() if 'operation="ping"' in line and "_count" in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


async def test_concurrent_probes_ping_the_database_once(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.service.CHECK_KEPT_S", 60)
    chat = connect(await start_service())
    for _ in range(2):
        answers = await asyncio.gather(*(chat.request("GET", "/readyz") for _ in range(50)))
        assert {answer.code for answer in answers} == {200}
    assert await pings(chat) == 1


async def test_the_database_is_asked_again_after_a_while(chat: ChatClient) -> None:
    async def is_asked_again() -> bool:
        assert (await chat.request("GET", "/readyz")).code == 200
        return await pings(chat) >= 2

    await eventually(is_asked_again)


async def test_a_drain_shows_at_once_whatever_is_kept(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.service.CHECK_KEPT_S", 60)
    service = await start_service(drain_delay_s=1.0)
    chat = connect(service)
    assert (await chat.request("GET", "/readyz")).code == 200
    draining = asyncio.create_task(service.drain())
    await asyncio.sleep(0)
    answer = await chat.request("GET", "/readyz")
    assert answer.code == 503
    assert json.loads(answer.body)["accepting"] is False
    await draining


async def test_the_metrics_are_rendered_once_for_all_who_ask(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.service.METRICS_KEPT_S", 60)
    chat = connect(await start_service())
    first = (await chat.request("GET", "/metrics")).body
    await chat.post("bob", "x")
    answers = await asyncio.gather(*(chat.request("GET", "/metrics") for _ in range(20)))
    assert {answer.body for answer in answers} == {first}


async def test_the_metrics_are_rendered_again_after_a_while(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_service.service.METRICS_KEPT_S", 0.2)
    chat = connect(await start_service())
    await chat.request("GET", "/metrics")
    await chat.post("bob", "x")

    async def is_counted() -> bool:
        return await chat.metric("chat_messages_accepted_total") == 1

    await eventually(is_counted)


async def test_the_history_is_compressed_once_in_a_while(
    chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "ZIPPED_EVERY_S", 60)
    codings = []
    for _ in range(3):
        answer = await chat.request("GET", "/ops/history", None, Accept_Encoding="gzip")
        assert json.loads(answer.body)["series"]
        codings.append(answer.headers.get("X-Consumed-Content-Encoding"))
    assert codings == ["gzip", None, None]


async def test_a_day_is_always_compressed_and_paced(
    chat: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    async def turn(pace: Pace) -> None:
        turns.append(pace._at_once)

    monkeypatch.setattr(Pace, "turn", turn)
    for _ in range(2):
        answer = await chat.request("GET", "/ops/history?range=day", None, Accept_Encoding="gzip")
        assert answer.headers["X-Consumed-Content-Encoding"] == "gzip"
    # What is newer is as small as a part of the last quarter of an hour.
    await chat.request("GET", f"/ops/history?range=day&since={int(time.time()) - 60}", None)
    assert turns == [dashboard.DAYS_AT_ONCE, dashboard.DAYS_AT_ONCE, dashboard.HISTORY_AT_ONCE]
