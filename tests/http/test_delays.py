"""Posts with a delay: readable from their time on, and not before."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.waiting import eventually
from workers import arrival_listener

#: Far enough in the future that no test lives to see it.
LATER_S = 3600


async def post(chat: ChatClient, delay: object, name: str = "bob", **headers: str) -> str:
    """Post a message with a delay; its text is the delay. Return its id."""
    body = json.dumps({"text": f"{delay}", "username": name, "delay": delay}).encode()
    answer = await chat.request("POST", "/chat", body, **headers)
    assert (answer.code, json.loads(answer.body).keys()) == (201, {"id"})
    return str(json.loads(answer.body)["id"])


async def test_a_message_is_unreadable_before_its_time(chat: ChatClient) -> None:
    began = datetime.now(UTC)
    await post(chat, LATER_S)
    await post(chat, 0.3)
    assert await chat.texts("bob") == []
    head = await chat.request("HEAD", "/chat/bob")
    assert head.headers["X-Unread-Count"] == "0"
    assert await chat.texts("bob", "?wait=20") == ["0.3"]
    assert datetime.now(UTC) - began >= timedelta(seconds=0.3)
    assert await chat.texts("bob") == []
    assert await chat.metric("chat_messages_scheduled_total") == 2
    assert await chat.metric("chat_messages_accepted_total") == 2
    assert await chat.metric("chat_scheduled_lateness_seconds_count") == 1
    # It was no lease that ended.
    assert await chat.metric('chat_lease_messages_total{end="expired"}') == 0


@pytest.mark.parametrize("delay", [0, 0.0, None])
async def test_no_delay_is_readable_at_once(chat: ChatClient, delay: object) -> None:
    await post(chat, delay)
    assert await chat.texts("bob") == [f"{delay}"]
    assert await chat.metric("chat_messages_scheduled_total") == 0


async def test_messages_come_in_the_order_of_their_times(chat: ChatClient) -> None:
    for delay in (0.4, 0.2, 0.3, 0):
        await post(chat, delay)
    found: list[str] = []

    async def are_all_there() -> bool:
        head = await chat.request("HEAD", "/chat/bob")
        return head.headers["X-Unread-Count"] == "4"

    await eventually(are_all_there)
    found += await chat.texts("bob")
    assert found == ["0", "0.2", "0.3", "0.4"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        *(("-1", 400), ("true", 400), ('"5"', 400), ("1e999", 400), ("9" * 400, 400)),
        *(("[]", 400), ("2592000.5", 400), ("2592000", 201), ("1e-9", 201)),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_delay_is_a_number_of_seconds(chat: ChatClient, given: str, fault: int) -> None:
    body = f'{{"text": "x", "username": "bob", "delay": {given}}}'.encode()
    answer = await chat.request("POST", "/chat", body)
    assert answer.code == fault
    if fault == 400:
        (error,) = json.loads(answer.body)["errors"]
        assert error == {
            "field": "delay",
            "detail": "must be a number of seconds from 0 to 2592000",
        }


async def test_a_batch_has_messages_with_and_without_delays(chat: ChatClient) -> None:
    batch: list[dict[str, Any]] = [
        {"text": "later", "username": "bob", "delay": LATER_S},
        {"text": "now", "username": "bob"},
        {"text": "wrong", "username": "bob", "delay": "soon"},
        {"text": "soon", "username": "bob", "delay": 0.05},
    ]
    answer = await chat.request("POST", "/chat/batch", json.dumps(batch).encode())
    results = json.loads(answer.body)["results"]
    assert [set(each) for each in results] == [{"id"}, {"id"}, {"error"}, {"id"}]
    assert await chat.texts("bob") == ["now"]
    assert await chat.texts("bob", "?wait=20") == ["soon"]


async def test_the_receipt_of_a_scheduled_message_has_its_time(chat: ChatClient) -> None:
    body = json.dumps({"text": "x", "username": "bob", "delay": LATER_S}).encode()
    posted = await chat.request("POST", "/chat", body, Prefer="receipt")
    message, receipt = json.loads(posted.body)["id"], posted.headers["X-Receipt"]
    status = await chat.request("GET", f"/messages/{message}/status", X_Receipt=receipt)
    document = json.loads(status.body)
    assert (document["id"], document["status"]) == (message, "scheduled")
    left = datetime.fromisoformat(document["at"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(seconds=LATER_S + 1)
    answer = await chat.request("DELETE", f"/messages/{message}", X_Receipt=receipt)
    assert answer.code == 204
    status = await chat.request("GET", f"/messages/{message}/status", X_Receipt=receipt)
    assert json.loads(status.body)["status"] == "revoked"


async def test_a_key_with_another_delay_is_refused(chat: ChatClient) -> None:
    answers = []
    for delay in (3600, 3600.0, 1800, 0, None):
        body = json.dumps({"text": "x", "username": "bob", "delay": delay}).encode()
        answers.append(await chat.request("POST", "/chat", body, Idempotency_Key="k"))
    assert [each.code for each in answers] == [201, 201, 422, 422, 422]
    assert answers[0].body == answers[1].body
    batch = [{"text": "x", "username": "bob", "delay": LATER_S}]
    codes = []
    for delay in (LATER_S, LATER_S, 5):
        batch[0]["delay"] = delay
        answer = await chat.request(
            "POST", "/chat/batch", json.dumps(batch).encode(), Idempotency_Key="b"
        )
        codes.append("id" in json.loads(answer.body)["results"][0])
    assert codes == [True, True, False]


async def test_a_key_without_a_delay_has_the_hash_of_earlier_versions(
    chat: ChatClient, mongo_uri: str, database: str
) -> None:
    body = json.dumps({"text": "x", "username": "bob", "delay": 0}).encode()
    assert (await chat.request("POST", "/chat", body, Idempotency_Key="k")).code == 201
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        stored = client[database]["messages"].find_one({"key": {"$exists": True}})
    # SHA-256 of "3:bob1:x2:60".
    expected = "9e2fd7457370be1015036f80d804348bafc61b3296f0c3269078981bc58d2787"
    assert stored is not None
    assert stored["key"]["body"] == expected


@pytest.mark.parametrize("is_same", [True, False], ids=["the leader", "another node"])
async def test_who_waits_is_woken_at_the_time(
    start_service: StartService,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    is_same: bool,
) -> None:
    # Only the sweep and the change stream wake those who wait.
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    leader = await start_service()
    other = leader if is_same else await start_service()
    here = connect(other)
    reads = [asyncio.create_task(here.texts(name, "?wait=25")) for name in ("amy", "bob")]

    async def all_wait() -> bool:
        return await here.metric("chat_waiters") == 2

    await eventually(all_wait)
    for name in ("amy", "bob"):
        await post(connect(leader), 0.4, name)
    assert [await read for read in reads] == [["0.4"], ["0.4"]]


async def test_a_scheduled_message_wakes_nobody_when_it_is_posted(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        here = connect(service := await start_service(mongo_uri=proxy.uri, shards=1))
        there = connect(await start_service())
        read = asyncio.create_task(here.texts("bob", "?wait=25"))

        async def waits() -> bool:
            return await here.metric("chat_waiters") == 1

        await eventually(waits)
        before = await here.metric("chat_batch_reads_count")
        for chat in (here, there):
            await post(chat, LATER_S)
        await there.post("bob", "now")
        assert await read == ["now"]
        # The search of the read when it was woken, at last.
        assert await here.metric("chat_batch_reads_count") == before + 1
        await service.stop()


async def test_a_delay_outlives_the_service(start_service: StartService, connect: Connect) -> None:
    first = await start_service()
    await post(connect(first), 0.5)
    await first.stop()
    chat = connect(await start_service())
    assert await chat.texts("bob", "?wait=25") == ["0.5"]


async def test_posts_without_a_delay_send_the_same_commands(
    start_service: StartService,
    connect: Connect,
    mongo_uri: str,
    database: str,
    tmp_path: Path,
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service: Service = await start_service(mongo_uri=proxy.uri, shards=1)
        chat = connect(service)
        counts = []
        for delay in (None, LATER_S):
            before = proxy.sent["insert"] + proxy.sent["update"]
            for _ in range(10):
                await post(chat, delay)
            counts.append(proxy.sent["insert"] + proxy.sent["update"] - before)
        # One insert for each, with a delay or without. The leader renews its lease, too.
        assert all(10 <= each <= 12 for each in counts), counts
        with MongoClient[dict[str, Any]](mongo_uri) as client:
            messages = client[database]["messages"]
            sizes = [
                messages.count_documents({}, hint=hint) for hint in ("lease_ends", "leases", "kept")
            ]
            assert sizes == [10, 0, 0]
        await service.stop()
