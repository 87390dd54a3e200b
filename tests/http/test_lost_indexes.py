"""An operator drops or changes indexes: what clients and load balancers see."""

import json
from collections.abc import Iterator
from typing import TypeAlias

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from tests.support.client import ChatClient
from tests.support.waiting import eventually
from workers.store.layout import NEWEST

KEY = "order-4711-confirmed"

Messages: TypeAlias = Collection[dict[str, object]]


@pytest.fixture
def messages(mongo_uri: str, database: str, chat: ChatClient) -> Iterator[Messages]:
    """The collection, accessed as an operator would, after the service has created it."""
    with MongoClient[dict[str, object]](mongo_uri) as client:
        yield client[database]["messages"]


async def test_a_dropped_collection_heals_by_itself(chat: ChatClient, messages: Messages) -> None:
    messages.drop()

    message = json.dumps({"username": "bob", "text": "after"}).encode()

    async def serves() -> bool:
        stored = await chat.request("POST", "/chat", body=message, Idempotency_Key=KEY)
        read = await chat.request("GET", "/chat/bob")
        ready = await chat.request("GET", "/readyz")
        return (stored.code, read.code, ready.code) == (201, 200, 200)

    await eventually(serves)
    # All posts with the key stored one message.
    assert NEWEST.key_index in messages.index_information()
    assert messages.count_documents({}) == 1


async def test_readyz_reports_a_changed_index_until_dropped(
    chat: ChatClient, messages: Messages
) -> None:
    messages.drop_index(NEWEST.key_index)
    messages.create_index("key.hash", name=NEWEST.key_index)

    async def readiness() -> dict[str, object]:
        answer = await chat.request("GET", "/readyz")
        found: dict[str, object] = json.loads(answer.body)
        assert answer.code == (200 if found["status"] == "ok" else 503)
        return found

    async def is_noticed() -> bool:
        return (await readiness())["indexes"] is False

    await eventually(is_noticed, within_s=30)
    assert (await readiness())["database"] is True
    body = json.dumps({"username": "bob", "text": "hello"}).encode()
    keyed = await chat.request("POST", "/chat", body=body, Idempotency_Key=KEY)
    assert (keyed.code, json.loads(keyed.body)["stored"]) == (503, False)
    assert (await chat.request("POST", "/chat", body=body)).code == 201
    messages.drop_index(NEWEST.key_index)

    async def is_ready() -> bool:
        return (await readiness())["status"] == "ok"

    await eventually(is_ready, within_s=30)
    assert (await chat.request("POST", "/chat", body=body, Idempotency_Key=KEY)).code == 201
