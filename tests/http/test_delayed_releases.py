"""Releases with a delay: nobody has the messages until then, and waiting readers get them then."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import Connect, StartService
from tests.http.test_leases import ask, take
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.waiting import eventually
from workers import arrival_listener

#: Far enough in the future that no test lives to see it.
LATER_S = 3600


async def put_off(chat: ChatClient, delay_s: float, name: str = "bob", **fields: object) -> str:
    """Post a message, lease it and release it with a delay. Return the lease."""
    await chat.post(name, f"{delay_s}", 7200)
    _, taken = await ask(chat, "lease?limit=1", name)
    lease = str(taken["lease"])
    released = await ask(chat, "release", name, lease=lease, delay=delay_s, **fields)
    assert released == (200, {"released": 1})
    return lease


async def test_a_message_is_hidden_until_its_delay_ends(chat: ChatClient) -> None:
    await put_off(chat, LATER_S)
    assert await chat.texts("bob") == []
    head = await chat.request("HEAD", "/chat/bob")
    assert head.headers["X-Unread-Count"] == "0"
    assert (await take(chat))["lease"] is None
    began = datetime.now(UTC)
    await put_off(chat, 0.3)
    again = await take(chat, "?wait=20")
    assert [(each["text"], each["deliveries"]) for each in again["messages"]] == [("0.3", 2)]
    assert datetime.now(UTC) - began >= timedelta(seconds=0.3)
    # Both leases ended when they were released, and one delay has ended since.
    assert await chat.metric("chat_lease_messages_total") == 2
    assert await chat.metric("chat_scheduled_lateness_seconds_count") == 1
    assert await chat.metric("chat_messages_scheduled_total") == 0


@pytest.mark.parametrize("delay", [0, 0.0, None])
async def test_no_delay_frees_the_messages_at_once(chat: ChatClient, delay: object) -> None:
    await chat.post("bob", "hello")
    lease = (await take(chat))["lease"]
    assert await ask(chat, "release", lease=lease, delay=delay) == (200, {"released": 1})
    assert await chat.texts("bob") == ["hello"]


async def test_an_undelivered_release_with_a_delay_counts_no_delivery(chat: ChatClient) -> None:
    await put_off(chat, 0.1, delivered=False)
    again = await take(chat, "?wait=20")
    assert [each["deliveries"] for each in again["messages"]] == [1]


async def test_the_lease_can_do_nothing_more(chat: ChatClient) -> None:
    lease = await put_off(chat, LATER_S)
    for what in ("ack", "extend", "release"):
        code, problem = await ask(chat, what, lease=lease, ttl=9)
        assert (code, problem["type"].rpartition(":")[2]) == (410, "lease-over")
    # But a client whose answer was lost may repeat its request.
    for delay_s in (LATER_S, 1):
        repeated = await ask(chat, "release", lease=lease, delay=delay_s)
        assert repeated == (200, {"released": 1})
    assert await chat.texts("bob", "?wait=2") == []


async def test_some_messages_of_a_lease_come_later(chat: ChatClient) -> None:
    ids = [await chat.post("bob", text) for text in ("one", "two", "three")]
    lease = (await take(chat))["lease"]
    later = await ask(chat, "release", lease=lease, ids=ids[1:2], delay=LATER_S)
    assert later == (200, {"released": 1})
    assert await ask(chat, "ack", lease=lease, ids=ids[:1]) == (200, {"acknowledged": 1})
    assert await ask(chat, "extend", lease=lease, ttl=60) == (200, {"ttl": 60})
    assert await ask(chat, "release", lease=lease) == (200, {"released": 1})
    assert await chat.texts("bob") == ["three"]


async def test_the_sender_sees_when_the_message_comes_back(chat: ChatClient) -> None:
    body = json.dumps({"text": "x", "username": "bob", "timeout": 7200}).encode()
    posted = await chat.request("POST", "/chat", body, Prefer="receipt")
    message, receipt = json.loads(posted.body)["id"], posted.headers["X-Receipt"]
    lease = (await take(chat))["lease"]
    await ask(chat, "release", lease=lease, delay=LATER_S)
    status = await chat.request("GET", f"/messages/{message}/status", X_Receipt=receipt)
    document = json.loads(status.body)
    assert document["status"] == "scheduled"
    left = datetime.fromisoformat(document["at"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(seconds=LATER_S + 1)
    answer = await chat.request("DELETE", f"/messages/{message}", X_Receipt=receipt)
    assert answer.code == 204


async def test_a_message_expires_in_its_delay(chat: ChatClient) -> None:
    await chat.post("bob", "short", 3)
    lease = (await take(chat))["lease"]
    assert (await ask(chat, "release", lease=lease, delay=LATER_S))[0] == 200

    async def has_expired() -> bool:
        return await chat.metric("chat_messages_expired_unread_total") == 1

    await eventually(has_expired)
    assert await chat.texts("bob") == []


@pytest.mark.parametrize("delay", ["60", True, -1, 2592001, 1e300, []])
async def test_a_delay_has_a_rule_that_the_error_names(chat: ChatClient, delay: object) -> None:
    code, problem = await ask(chat, "release", lease="ab", delay=delay)
    rule = "must be a number of seconds from 0 to 2592000"
    assert (code, problem["errors"]) == (400, [{"field": "delay", "detail": rule}])


@pytest.mark.parametrize("is_same", [True, False], ids=["the leader", "another node"])
@pytest.mark.parametrize("how", ["?wait=25", "lease"])
async def test_who_waits_is_woken_when_the_delay_ends(
    start_service: StartService,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    is_same: bool,
    how: str,
) -> None:
    # Only the sweep and the change stream wake those who wait.
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))
    leader = await start_service()
    here = connect(leader if is_same else await start_service())
    there = connect(leader)
    await there.post("bob", "later")
    lease = (await take(there))["lease"]
    read: Callable[[], Awaitable[object]] = {
        "?wait=25": lambda: here.texts("bob", "?wait=25"),
        "lease": lambda: take(here, "?wait=25"),
    }[how]
    reading = asyncio.ensure_future(read())

    async def waits() -> bool:
        return await here.metric("chat_waiters") == 1

    await eventually(waits)
    assert (await ask(there, "release", lease=lease, delay=0.4))[0] == 200
    assert "later" in str(await reading)


async def test_a_delay_outlives_the_service(start_service: StartService, connect: Connect) -> None:
    first = await start_service()
    await put_off(connect(first), 0.5)
    await first.stop()
    chat = connect(await start_service())
    assert await chat.texts("bob", "?wait=25") == ["0.5"]


async def test_an_exhausted_message_dies_without_its_delay(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_deliveries=1))
    await put_off(chat, LATER_S)
    assert await chat.texts("dead/bob", "?wait=20") == [f"{LATER_S}"]


async def test_a_release_is_one_command_with_a_delay_or_without(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, shards=1)
        chat = connect(service)
        counts = []
        for delay in (None, LATER_S):
            for number in range(10):
                await chat.post(f"bob{number}", "hello")
            leases = [(await ask(chat, "lease", f"bob{n}"))[1]["lease"] for n in range(10)]
            before = proxy.sent["update"] + proxy.sent["aggregate"]
            for number, lease in enumerate(leases):
                await ask(chat, "release", f"bob{number}", lease=lease, delay=delay)
            counts.append(proxy.sent["update"] + proxy.sent["aggregate"] - before)
        # The leader renews its lease, too.
        assert all(10 <= each < 20 for each in counts), counts
        await service.stop()
