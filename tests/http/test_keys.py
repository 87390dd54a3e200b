"""Idempotency keys: a repeated request takes effect once, and gets the same answer."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import MongoClient
from tornado.httpclient import HTTPResponse

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.raw import get, unharmed
from tests.support.waiting import eventually


async def post(
    chat: ChatClient, key: str, text: str = "hello", username: str = "bob", **headers: str
) -> HTTPResponse:
    body = json.dumps({"text": text, "username": username}).encode()
    return await chat.request("POST", "/chat", body, Idempotency_Key=key, **headers)


async def read(chat: ChatClient, key: str, username: str = "bob", query: str = "") -> list[str]:
    answer = await chat.request("GET", f"/chat/{username}{query}", Idempotency_Key=key)
    assert answer.code == 200, answer.body
    return [message["text"] for message in json.loads(answer.body)]


async def test_a_post_that_is_repeated_is_one_message(chat: ChatClient) -> None:
    key = str(uuid4())
    answers = [await post(chat, key), await post(chat, key), await post(chat, f'"{key}"')]
    assert {(answer.code, answer.body) for answer in answers} == {(201, answers[0].body)}
    replayed = [answer.headers.get("Idempotent-Replayed") for answer in answers]
    assert replayed == [None, "true", "true"]
    assert await chat.texts("bob") == ["hello"]
    # The message was read, and its key is still known.
    assert (await post(chat, key)).body == answers[0].body
    assert await chat.texts("bob") == []


async def test_a_key_with_another_message_is_refused(chat: ChatClient) -> None:
    key = str(uuid4())
    await post(chat, key)
    answer = await post(chat, key, "bye")
    assert answer.code == 422
    assert json.loads(answer.body)["type"].endswith("key-reused")
    assert await chat.texts("bob") == ["hello"]


async def test_a_key_of_one_inbox_is_none_of_another(chat: ChatClient) -> None:
    key = str(uuid4())
    answers = [await post(chat, key, username=name) for name in ("bob", "eve", "bob", "eve")]
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [
        *(None, None, "true", "true")
    ]
    assert [answer.body for answer in answers[2:]] == [answer.body for answer in answers[:2]]
    both = await asyncio.gather(*(post(chat, str(key)[:9], username=str(n)) for n in range(8)))
    assert {answer.code for answer in both} == {201}, "they are in flight at the same time"
    assert await chat.texts("bob") == await chat.texts("eve") == ["hello"]


async def test_in_an_old_database_a_key_belongs_to_all_inboxes(
    mongo_uri: str, database: str, start_service: StartService, connect: Connect
) -> None:
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        client[database]["fleet"].insert_one({"_id": "schema", "version": 1})
    chat, key = connect(await start_service()), str(uuid4())
    assert (await post(chat, key)).code == 201
    refused = await post(chat, key, username="eve")
    assert json.loads(refused.body)["type"].endswith("key-reused")
    assert await chat.texts("eve") == []


async def test_twins_are_one_message_over_all_nodes(
    start_service: StartService, connect: Connect
) -> None:
    nodes = [connect(await start_service()) for _ in range(2)]
    key = str(uuid4())
    answers = await asyncio.gather(*(post(nodes[number % 2], key) for number in range(40)))
    assert {answer.code for answer in answers} <= {201, 409}
    assert len({answer.body for answer in answers if answer.code == 201}) == 1
    assert await nodes[0].texts("bob") == ["hello"]


async def test_a_repeat_of_an_open_request_gets_409(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri)
        chat, key = connect(service), str(uuid4())
        proxy.hold["update"] = b"text"
        first = asyncio.create_task(post(chat, key))
        await proxy.held.wait()
        twin = await post(chat, key)
        assert (twin.code, twin.headers["Retry-After"]) == (409, "1")
        assert json.loads(twin.body)["type"].endswith("key-in-flight")
        proxy.release()
        assert (await first).code == 201
        assert (await post(chat, key)).body == (await first).body
        await service.stop()


async def test_a_repeated_post_of_unknown_outcome_stores_one_message(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat, key = connect(service), str(uuid4())
        proxy.lose_reply["update"] = 1000
        assert (await post(chat, key)).code == 503
        proxy.lose_reply.clear()

        async def stored() -> bool:
            return (await post(chat, key)).code == 201

        await eventually(stored)
        assert await chat.texts("bob") == ["hello"]
        # The message counts as accepted although its first answer was lost.

        async def counted() -> bool:
            return await chat.metric("chat_messages_accepted_total") == 1

        await eventually(counted)
        await service.stop()


async def test_a_repeated_read_returns_the_same_messages(
    start_service: StartService, connect: Connect
) -> None:
    nodes = [connect(await start_service()) for _ in range(2)]
    key = str(uuid4())
    await nodes[0].post("bob", "one")
    await nodes[0].post("bob", "two")
    assert await read(nodes[0], key, query="?limit=1") == ["one"]
    await nodes[0].post("bob", "three")
    for node in nodes:
        assert await read(node, key) == ["one"]
    assert await read(nodes[1], str(uuid4())) == ["two", "three"]
    assert await nodes[0].texts("bob") == []
    assert await read(nodes[1], key) == ["one"]
    # A key of one inbox returns nothing from another inbox.
    await nodes[0].post("eve", "hers")
    assert await read(nodes[0], key, "eve") == ["hers"]


async def test_expired_messages_are_not_repeated(chat: ChatClient) -> None:
    key = str(uuid4())
    await chat.post("bob", "short", 3)
    await chat.post("bob", "long")
    assert await read(chat, key) == ["short", "long"]

    async def expired() -> bool:
        return await read(chat, key) == ["long"]

    await eventually(expired)


async def test_a_repeat_never_returns_newer_messages(
    chat: ChatClient,
) -> None:
    await chat.post("bob", "short", 3)
    assert await read(chat, "k" * 22) == ["short"]
    await chat.post("bob", "long")

    async def is_gone() -> bool:
        return await read(chat, "k" * 22) == []

    await eventually(is_gone)
    assert await read(chat, "k" * 22, query="?wait=20") == []
    assert await read(chat, "l" * 22) == ["long"]


async def test_an_empty_answer_is_not_remembered(chat: ChatClient) -> None:
    key = str(uuid4())
    assert await read(chat, key) == []
    await chat.post("bob", "hello")
    assert await read(chat, key, query="?wait=5") == ["hello"]
    assert await read(chat, key) == ["hello"]


async def test_a_read_with_a_key_says_that_more_is_there(chat: ChatClient) -> None:
    for number in range(3):
        await chat.post("bob", str(number))
    answer = await chat.request("GET", "/chat/bob?limit=2", Idempotency_Key=str(uuid4()))
    assert answer.headers["X-More"] == "true"
    answer = await chat.request("GET", "/chat/bob", Idempotency_Key=str(uuid4()))
    assert "X-More" not in answer.headers
    assert len(json.loads(answer.body)) == 1


async def test_a_repeated_read_of_unknown_outcome_gets_its_messages(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat, other, key = connect(service), connect(await start_service()), str(uuid4())
        await other.post("bob", "hello")
        proxy.lose_reply["update"] = 1000
        answer = await chat.request("GET", "/chat/bob", Idempotency_Key=key)
        assert answer.code == 503
        proxy.lose_reply.clear()
        assert await other.texts("bob") == []
        assert await read(other, key) == ["hello"]
        await service.stop()


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "é" * 30, "a\tb" * 10, '"open'])
async def test_an_invalid_key_is_refused(chat: ChatClient, key: str) -> None:
    await chat.post("bob", "still here")
    raw = key.encode().decode("latin1")
    for answer in (
        await post(chat, raw, username="eve"),
        await chat.request("GET", "/chat/bob", Idempotency_Key=raw),
    ):
        assert answer.code == 400
        assert json.loads(answer.body)["errors"][0]["field"] == "Idempotency-Key"
    assert await chat.texts("bob") == ["still here"]
    assert await chat.texts("eve") == []


async def test_two_keys_are_none(service: Service, chat: ChatClient) -> None:
    await chat.post("bob", "still here")
    keys = (b"Idempotency-Key: " + b"a" * 30, b"Idempotency-Key: " + b"b" * 30)
    async with unharmed(service) as wire:
        answer = await (await wire.connect()).ask(get(b"/chat/bob", *keys))
        assert answer.status == 400
        assert answer.document["errors"][0]["field"] == "Idempotency-Key"
    assert await chat.texts("bob") == ["still here"]


async def test_a_key_that_can_be_guessed_reads_nothing(chat: ChatClient) -> None:
    await chat.post("bob", "still here")
    answer = await chat.request("GET", "/chat/bob", Idempotency_Key="x" * 21)
    assert answer.code == 400
    assert "22 characters" in json.loads(answer.body)["detail"]
    assert await chat.texts("bob") == ["still here"]
