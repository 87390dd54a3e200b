"""Leases over HTTP: a message that is not acknowledged is delivered again."""

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.waiting import eventually


async def ask(chat: ChatClient, what: str, username: str = "bob", **fields: object) -> Any:
    answer = await chat.request("POST", f"/chat/{username}/{what}", json.dumps(fields).encode())
    return (answer.code, json.loads(answer.body))


async def take(chat: ChatClient, query: str = "") -> Any:
    code, taken = await ask(chat, f"lease{query}")
    assert code == 200
    return taken


async def test_a_leased_message_is_hidden_and_read_once_acknowledged(
    chat: ChatClient,
) -> None:
    ids = [await chat.post("bob", text) for text in ("one", "two")]
    taken = await take(chat)
    assert taken["messages"] == [
        {"text": text, "id": message_id, "deliveries": 1}
        for text, message_id in zip(("one", "two"), ids, strict=True)
    ]
    assert taken["ttl"] == 30
    assert await chat.texts("bob") == []
    count = await chat.request("HEAD", "/chat/bob")
    assert count.headers["X-Unread-Count"] == "0"
    assert await ask(chat, "ack", lease=taken["lease"], ids=ids[:1]) == (200, {"acknowledged": 1})
    assert await ask(chat, "release", lease=taken["lease"]) == (200, {"released": 1})
    assert await chat.texts("bob") == ["two"]


async def test_a_lease_of_nothing_is_null(chat: ChatClient) -> None:
    assert await take(chat, "?ttl=5") == {"lease": None, "ttl": 5, "messages": []}


async def test_an_expired_lease_releases_and_refuses_a_late_ack(
    chat: ChatClient,
) -> None:
    await chat.post("bob", "hello")
    taken = await take(chat, "?ttl=0.2")
    # A long poll gets the message once its lease has ended.
    again = await take(chat, "?ttl=30&wait=10")
    assert again["messages"] == [{**taken["messages"][0], "deliveries": 2}]
    code, problem = await ask(chat, "ack", lease=taken["lease"])
    assert (code, problem["type"].rpartition(":")[2]) == (410, "lease-over")
    assert await ask(chat, "ack", lease=again["lease"]) == (200, {"acknowledged": 1})
    assert await chat.metric("chat_lease_messages_total") == 2


async def test_a_repeated_acknowledgement_says_the_same(chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    lease = (await take(chat))["lease"]
    for _ in range(3):
        assert await ask(chat, "ack", lease=lease) == (200, {"acknowledged": 1})
    assert await chat.metric("chat_messages_read_total") == 1


async def test_an_extended_lease_goes_on(chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    lease = (await take(chat, "?ttl=0.5"))["lease"]
    assert await ask(chat, "extend", lease=lease, ttl=60.5) == (200, {"ttl": 60.5})
    assert await chat.texts("bob", "?wait=1") == []
    assert await ask(chat, "extend", lease=lease, ttl=10**6) == (200, {"ttl": 3600})
    assert await ask(chat, "ack", lease=lease) == (200, {"acknowledged": 1})


async def test_a_message_that_expires_on_loan_is_gone(chat: ChatClient) -> None:
    await chat.post("bob", "short", 3)
    lease = (await take(chat, "?ttl=60"))["lease"]

    async def expired() -> bool:
        return await chat.metric("chat_messages_expired_unread_total") == 1

    await eventually(expired)
    assert (await ask(chat, "ack", lease=lease))[0] == 410
    assert await chat.texts("bob") == []


async def test_a_lease_is_taken_once_over_all_nodes(
    start_service: StartService, connect: Connect
) -> None:
    nodes = [connect(await start_service()) for _ in range(2)]
    for number in range(30):
        await nodes[0].post("bob", str(number))
    taken = await asyncio.gather(*(take(nodes[n % 2], "?limit=3") for n in range(20)))
    texts = [message["text"] for each in taken for message in each["messages"]]
    assert sorted(texts, key=int) == [str(number) for number in range(30)]


@pytest.mark.parametrize("what", ["ack", "release", "extend"])
async def test_only_the_lease_of_this_inbox_counts(chat: ChatClient, what: str) -> None:
    await chat.post("bob", "hello")
    lease = (await take(chat))["lease"]
    assert (await ask(chat, what, "eve", lease=lease, ttl=9))[0] == 410
    assert (await ask(chat, what, lease="0" * 32, ttl=9))[0] == 410
    assert (await ask(chat, what, lease=lease[:-1], ttl=9))[0] == 410
    assert await ask(chat, "ack", lease=lease) == (200, {"acknowledged": 1})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "lease"),
        ({"lease": None}, "lease"),
        ({"lease": 7}, "lease"),
        ({"lease": {"$gt": ""}}, "lease"),
        ({"lease": "../x"}, "lease"),
        ({"lease": ""}, "lease"),
        ({"lease": "ab", "ids": "x"}, "ids"),
        ({"lease": "ab", "ids": [{"$ne": 1}]}, "ids"),
        ({"lease": "ab", "ids": ["x"] * 5001}, "ids"),
    ],
)
@pytest.mark.parametrize("what", ["ack", "release"])
async def test_a_bad_field_is_named(
    chat: ChatClient, what: str, fields: dict[str, object], field: str
) -> None:
    answer = await chat.request("POST", f"/chat/bob/{what}", json.dumps(fields).encode())
    code, problem = answer.code, json.loads(answer.body)
    assert (code, problem["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize("ttl", [0, -1, "5", True, None, [], float("nan")])
async def test_a_ttl_that_is_no_number_of_seconds_is_refused(chat: ChatClient, ttl: object) -> None:
    await chat.post("bob", "hello")
    lease = (await take(chat))["lease"]
    assert (await ask(chat, "extend", lease=lease, ttl=ttl))[0] == 400
    assert (await ask(chat, f"lease?ttl={ttl}"))[0] == (200 if ttl == "5" else 400)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"\xff", b"null", b"[" * 5000),
        # Invalid UTF-8 in an ignored field.
        b'{"lease": "ab", "ttl": 5, "ids": [], "note": "\xff"}',
    ],
)
async def test_a_body_that_is_no_object_is_refused(chat: ChatClient, body: bytes) -> None:
    for what in ("ack", "release", "extend"):
        answer = await chat.request("POST", f"/chat/bob/{what}", body)
        assert (answer.code, answer.headers["Content-Type"]) == (400, "application/problem+json")
        assert json.loads(answer.body)["type"] == "urn:chat:problem:invalid-json"


@pytest.mark.parametrize("names_ids", [False, True])
async def test_a_success_never_hides_that_a_message_is_lost(
    chat: ChatClient, names_ids: bool
) -> None:
    ids = [await chat.post("bob", "stays"), await chat.post("bob", "goes")]
    lease = (await take(chat, "?ttl=3"))["lease"]
    assert await ask(chat, "ack", lease=lease, ids=ids[:1]) == (200, {"acknowledged": 1})
    named = ids if names_ids else None
    # The lost message is first in another lease, then read.
    again = await take(chat, "?ttl=30&wait=10")
    for _ in range(2):
        code, problem = await ask(chat, "ack", lease=lease, ids=named)
        assert (code, problem["type"].rpartition(":")[2]) == (410, "lease-over")
        assert (problem["acknowledged"], problem["lost"]) == (ids[:1], ids[1:])
        await ask(chat, "ack", lease=again["lease"])
    assert await ask(chat, "ack", lease=lease, ids=ids[:1]) == (200, {"acknowledged": 1})


async def test_an_ack_covers_leased_messages_beside_lost_ones(chat: ChatClient) -> None:
    ids = [await chat.post("bob", "short", 3), await chat.post("bob", "long")]
    lease = (await take(chat))["lease"]

    async def expired() -> bool:
        return await chat.metric("chat_messages_expired_unread_total") == 1

    await eventually(expired)
    for _ in range(2):
        code, problem = await ask(chat, "ack", lease=lease)
        assert (code, problem["acknowledged"], problem["lost"]) == (410, ids[1:], ids[:1])
    assert await chat.metric("chat_messages_read_total") == 1


async def test_released_messages_are_not_lost(chat: ChatClient) -> None:
    ids = [await chat.post("bob", text) for text in "abc"]
    lease = (await take(chat))["lease"]
    assert await ask(chat, "release", lease=lease, ids=ids[:1]) == (200, {"released": 1})
    other = (await take(chat))["lease"]
    assert await ask(chat, "ack", lease=other) == (200, {"acknowledged": 1})
    assert await ask(chat, "ack", lease=lease) == (200, {"acknowledged": 2})
    assert await ask(chat, "ack", lease=lease, ids=[]) == (200, {"acknowledged": 0})
    code, problem = await ask(chat, "ack", lease=lease, ids=[ids[0], "junk", ids[1], ids[1]])
    assert (code, problem["acknowledged"], problem["lost"]) == (410, [ids[1]], [ids[0], "junk"])
