"""Receipts: a sender can query the status of its message, and revoke it while it is unread."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.waiting import eventually


async def send(chat: ChatClient, text: str = "hello", lifetime_s: int = 60) -> tuple[str, str]:
    """Post to bob. Return the id of the message, and its receipt."""
    body = json.dumps({"text": text, "username": "bob", "timeout": lifetime_s}).encode()
    answer = await chat.request("POST", "/chat", body, Prefer="receipt")
    assert (answer.code, answer.headers["Preference-Applied"]) == (201, "receipt")
    assert json.loads(answer.body).keys() == {"id"}
    return json.loads(answer.body)["id"], answer.headers["X-Receipt"]


async def status(chat: ChatClient, message_id: str, receipt: str) -> tuple[str, bool]:
    answer = await chat.request("GET", f"/messages/{message_id}/status", X_Receipt=receipt)
    assert answer.code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    document = json.loads(answer.body)
    assert document.pop("id") == message_id
    if document["at"] is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(document["at"])
        assert timedelta(0) <= age < timedelta(minutes=5)
    return document["status"], document["at"] is not None


async def test_a_sender_sees_its_message_pending_leased_and_read(chat: ChatClient) -> None:
    sent = await send(chat)
    assert await status(chat, *sent) == ("pending", False)
    taken = await chat.request("POST", "/chat/bob/lease", b"")
    assert await status(chat, *sent) == ("leased", False)
    lease = json.dumps({"lease": json.loads(taken.body)["lease"]}).encode()
    await chat.request("POST", "/chat/bob/ack", lease)
    assert await status(chat, *sent) == ("read", True)


async def test_a_sender_sees_that_nobody_read_its_message(chat: ChatClient) -> None:
    sent = await send(chat, lifetime_s=1)

    async def expired() -> bool:
        return await status(chat, *sent) == ("expired", True)

    await eventually(expired)


async def test_a_revoked_message_is_never_read(chat: ChatClient) -> None:
    message_id, receipt = await send(chat)
    await chat.post("bob", "another")
    for _ in range(2):
        answer = await chat.request("DELETE", f"/messages/{message_id}", X_Receipt=receipt)
        assert (answer.code, answer.body) == (204, b"")
    assert await status(chat, message_id, receipt) == ("revoked", True)
    assert await chat.texts("bob") == ["another"]
    assert await chat.metric("chat_messages_revoked_total") == 1


async def test_it_is_too_late_to_take_back_what_was_read(chat: ChatClient) -> None:
    message_id, receipt = await send(chat)
    assert await chat.texts("bob") == ["hello"]
    answer = await chat.request("DELETE", f"/messages/{message_id}", X_Receipt=receipt)
    problem = json.loads(answer.body)
    assert (answer.code, problem["status"], problem["fate"]) == (409, 409, "read")
    assert await status(chat, message_id, receipt) == ("read", True)


@pytest.mark.parametrize("receipt", ["", "x", "j-iOMu8EJEX_m97UQ9dU4LHPBk7Gz8wz", "é", "a" * 7000])
async def test_without_its_receipt_a_message_is_not_there(chat: ChatClient, receipt: str) -> None:
    message_id, _ = await send(chat)
    plain = await chat.post("bob", "without a receipt")
    for each in (message_id, plain, "0" * 32, "%00", "x" * 500):
        asked = await chat.request("GET", f"/messages/{each}/status", X_Receipt=receipt)
        revoked = await chat.request("DELETE", f"/messages/{each}", X_Receipt=receipt)
        assert (asked.code, revoked.code) == (404, 404)
    assert await chat.texts("bob") == ["hello", "without a receipt"]


async def test_a_repeated_post_gets_a_receipt_that_works(chat: ChatClient) -> None:
    body = b'{"text": "hello", "username": "bob"}'
    receipts = []
    for _ in range(2):
        answer = await chat.request("POST", "/chat", body, Prefer="receipt", Idempotency_Key="once")
        message_id = json.loads(answer.body)["id"]
        receipts.append(answer.headers["X-Receipt"])
    assert receipts[0] != receipts[1]
    for receipt in receipts:
        assert await status(chat, message_id, receipt) == ("pending", False)


async def test_a_receipt_holds_on_every_node(start_service: StartService, connect: Connect) -> None:
    here, there = connect(await start_service()), connect(await start_service())
    sent = await send(here)
    assert await there.texts("bob") == ["hello"]
    assert await status(here, *sent) == ("read", True)
    assert await status(there, *sent) == ("read", True)


async def test_a_missing_receipt_is_named(chat: ChatClient) -> None:
    message_id, _ = await send(chat)
    for method, path in (
        ("GET", f"/messages/{message_id}/status"),
        ("DELETE", f"/messages/{message_id}"),
    ):
        answer = await chat.request(method, path)
        assert answer.code == 400
        assert json.loads(answer.body)["errors"][0]["field"] == "X-Receipt"
    assert await chat.texts("bob") == ["hello"]
