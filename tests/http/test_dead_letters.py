"""A message that its readers cannot process: delivered, counted, and then out of their way."""

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest

from tests.conftest import Connect, StartService
from tests.http.test_receipts import send, status
from tests.http.test_websockets import message, stream
from tests.support.client import ChatClient
from tests.support.events import EventStream
from tests.support.waiting import eventually
from workers.errors import StoreUnavailable


async def ask(chat: ChatClient, path: str, **fields: Any) -> tuple[int, Any]:
    """Send a POST. Return the status and the JSON of the answer."""
    answer = await chat.request("POST", path, json.dumps(fields).encode())
    return answer.code, json.loads(answer.body)


async def take(chat: ChatClient, inbox: str = "bob", query: str = "?wait=10") -> Any:
    """Lease the unread messages of an inbox."""
    code, taken = await ask(chat, f"/chat/{inbox}/lease{query}")
    assert code == 200
    return taken


async def ends(chat: ChatClient) -> dict[str, float]:
    """Return the counters of messages."""
    names = ("accepted", "read", "expired_unread", "revoked", "dead")
    return {name: await chat.metric(f"chat_messages_{name}_total") for name in names}


async def test_a_message_moves_after_its_last_delivery(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_deliveries=3))
    message_id, receipt = await send(chat, "poison")
    good = await chat.post("bob", "good")
    for number in (1, 2):
        taken = await take(chat)
        assert [each["deliveries"] for each in taken["messages"]] == [number, number]
        code, _ = await ask(chat, "/chat/bob/release", lease=taken["lease"])
        assert code == 200
    taken = await take(chat, query="?wait=10&ttl=0.5")
    assert [each["deliveries"] for each in taken["messages"]] == [3, 3]
    code, _ = await ask(chat, "/chat/bob/ack", lease=taken["lease"], ids=[good])
    assert code == 200
    head = await chat.request("HEAD", "/chat/bob")
    assert head.headers["X-Dead-Letter-Inbox"] == "dead%2Fbob"
    # Those that wait for a dead letter are woken, too.
    dead = await take(chat, head.headers["X-Dead-Letter-Inbox"])
    (letter,) = dead["messages"]
    assert letter == {
        "text": "poison",
        "id": letter["id"],
        "deliveries": 1,
        "dead": {"username": "bob", "id": message_id, "deliveries": 3},
    }
    assert letter["id"] != message_id
    assert await chat.texts("bob") == []

    async def is_counted() -> bool:
        return (await ends(chat))["dead"] == 1

    await eventually(is_counted)
    assert await status(chat, message_id, receipt) == ("dead", True)
    answer = await chat.request("DELETE", f"/messages/{message_id}", X_Receipt=receipt)
    assert (answer.code, json.loads(answer.body)["fate"]) == (409, "dead")
    late = await ask(chat, "/chat/bob/ack", lease=taken["lease"], ids=[message_id])
    assert (late[0], late[1]["lost"]) == (410, [message_id])
    assert await ask(chat, "/chat/dead%2Fbob/ack", lease=dead["lease"]) == (
        200,
        {"acknowledged": 1},
    )
    # The copy counts as accepted: accepted = read + expired + revoked + dead + pending.
    sums = {"accepted": 3, "read": 2, "expired_unread": 0, "revoked": 0, "dead": 1}
    assert await ends(chat) == sums
    leases = {"acknowledged": 2, "released": 4, "expired": 1}
    text = (await chat.request("GET", "/metrics")).body.decode()
    for end, number in leases.items():
        assert f'chat_lease_messages_total{{end="{end}"}} {number}.0' in text


async def test_a_release_can_say_that_nothing_was_delivered(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_deliveries=2))
    await chat.post("bob", "begun")
    waiting = await chat.post("bob", "waiting")
    for number in (1, 2):
        taken = await take(chat)
        assert [each["deliveries"] for each in taken["messages"]] == [number, 1]
        fields = {"lease": taken["lease"], "ids": [waiting], "delivered": False}
        for _ in range(2):
            assert await ask(chat, "/chat/bob/release", **fields) == (200, {"released": 1})
        code, _ = await ask(chat, "/chat/bob/release", lease=taken["lease"], delivered=None)
        assert code == 200
    (letter,) = (await take(chat, "dead%2Fbob"))["messages"]
    assert letter["text"] == "begun"
    assert await chat.texts("bob") == ["waiting"]
    code, problem = await ask(chat, "/chat/bob/release", lease=taken["lease"], delivered="no")
    assert (code, problem["errors"][0]["field"]) == (400, "delivered")


async def test_plain_reads_and_events_show_no_deliveries(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(max_deliveries=3)
    chat = connect(service)
    for _ in range(2):
        await chat.post("bob", "hello")
    taken = await take(chat)
    await ask(chat, "/chat/bob/release", lease=taken["lease"])
    answer = await chat.request("GET", "/chat/bob?limit=1")
    assert [each.keys() for each in json.loads(answer.body)] == [{"text", "id"}]
    async with EventStream(service.port) as events:
        assert (await events.next()).data.keys() == {"text", "id"}


async def test_a_stream_that_closes_unacknowledged_delivered(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service(max_deliveries=2)
    chat = connect(service)
    message_id = await chat.post("bob", "poison")
    for number in (1, 2):
        async with stream(service) as socket:
            received = await message(socket)
            assert (received["id"], received["deliveries"]) == (message_id, number)
            assert "dead" not in received
    origin = {"username": "bob", "id": message_id, "deliveries": 2}
    async with stream(service, "dead%2Fbob") as socket:
        received = await message(socket)
        assert (received["text"], received["dead"]) == ("poison", origin)


async def test_a_restart_finishes_a_move_and_wakes_any_node(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise StoreUnavailable("the node is killed here")

    dies = await start_service(max_deliveries=1)
    monkeypatch.setattr(dies._store, "_copy", fails)
    chat = connect(dies)
    message_id, receipt = await send(chat, "poison")
    await ask(chat, "/chat/bob/release", lease=(await take(chat))["lease"])

    async def is_dead() -> bool:
        return await status(chat, message_id, receipt) == ("dead", True)

    await eventually(is_dead)
    # A node with other rules waits for the dead letter, and yet another one may move it.
    other = connect(await start_service())
    waiting = asyncio.create_task(take(other, "dead%2Fbob"))
    await dies.stop()
    (letter,) = (await waiting)["messages"]
    assert letter["dead"] == {"username": "bob", "id": message_id, "deliveries": 1}


async def test_the_longest_name_has_a_dead_letter_inbox(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_deliveries=1))
    name = "é" * 128
    await chat.post(name, "poison")
    path = "%C3%A9" * 128
    await ask(chat, f"/chat/{path}/release", lease=(await take(chat, path))["lease"])
    head = await chat.request("HEAD", f"/chat/{path}")
    dead = head.headers["X-Dead-Letter-Inbox"]
    assert len(unquote(dead)) == 128
    (letter,) = (await take(chat, dead))["messages"]
    assert letter["dead"]["username"] == name
