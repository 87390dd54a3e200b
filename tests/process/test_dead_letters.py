"""The node that moves dead letters is killed in the middle of it: each moves once."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection

from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually

MESSAGES = 200
#: Longer than a lease of the leader and the looks of its follower.
TAKE_OVER_S = 20


@pytest.fixture
def servers(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[list[Server]]:
    """Two nodes on one database; the first to start leads."""
    environment: dict[str, Any] = {"CHAT_MONGO_DATABASE": database, "CHAT_MAX_DELIVERIES": "1"}
    with ExitStack() as running:
        started = []
        for name in ("leader", "other"):
            (tmp_path / name).mkdir()
            server = Server(tmp_path / name, "--mongo-uri", mongo_uri, **environment)
            started.append(running.enter_context(server))
        yield started


async def post(chat: ChatClient, path: str, document: object) -> Any:
    answer = await chat.request("POST", path, json.dumps(document).encode())
    assert answer.code == 200
    return json.loads(answer.body)


async def test_each_dead_letter_moves_once_if_the_leader_dies(
    servers: list[Server], mongo_uri: str, database: str
) -> None:
    leader, other = servers
    chat = ChatClient(other.base)
    texts = {f"poison {number}" for number in range(MESSAGES)}
    results = await post(
        chat, "/chat/batch", [{"text": each, "username": "bob", "timeout": 600} for each in texts]
    )
    lease = await post(chat, "/chat/bob/lease?ttl=60", {})
    assert len(lease["messages"]) == len(results["results"]) == MESSAGES
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        messages: Collection[dict[str, Any]] = client[database]["messages"]
        await post(chat, "/chat/bob/release", {"lease": lease["lease"]})
        while await asyncio.to_thread(messages.find_one, {"dead": {"$exists": True}}) is None:
            pass
        leader.process.kill()
        leader.wait()

        async def all_moved() -> bool:
            dead = {"dead": {"$exists": True}, "lease.until": {"$exists": False}}
            return await asyncio.to_thread(messages.count_documents, dead) == MESSAGES

        await eventually(all_moved, TAKE_OVER_S)
    letters = await post(chat, "/chat/dead%2Fbob/lease", {})
    # A dead letter more than once would be one too many.
    assert sorted(each["text"] for each in letters["messages"]) == sorted(texts)
    assert {each["dead"]["id"] for each in letters["messages"]} == {
        each["id"] for each in results["results"]
    }
    assert await chat.texts("bob") == []
    assert await chat.metric("chat_messages_dead_total") > 0
    chat.close()
