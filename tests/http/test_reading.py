"""Reads: with a limit, by POST, counting without consuming, and very long inboxes."""

import asyncio
import json
import re
from typing import Any

import pytest
from pymongo import MongoClient

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.raw import get
from tests.support.waiting import eventually
from workers.commands import COUNT_MAX


async def test_a_limit_takes_the_oldest_and_leaves_the_rest(chat: ChatClient) -> None:
    for number in range(5):
        await chat.post("bob", str(number))
    assert await chat.texts("bob", "?limit=2") == ["0", "1"]
    assert await chat.texts("bob", "?limit=1") == ["2"]
    assert await chat.texts("bob") == ["3", "4"]


async def test_the_post_twin_reads_the_same(chat: ChatClient) -> None:
    await chat.post("bob", "1")
    await chat.post("bob", "2")
    first = await chat.request("POST", "/chat/bob/read?limit=1", b"")
    assert [message["text"] for message in json.loads(first.body)] == ["1"]
    second = await chat.request("POST", "/chat/bob/read", b"{}")
    assert [message["text"] for message in json.loads(second.body)] == ["2"]
    assert await chat.read("bob") == []


@pytest.mark.parametrize("route", ["read", "lease"])
@pytest.mark.parametrize("body", [b'{"limit": 1}', b"limit=1", b"[]"])
async def test_parameters_in_a_body_empty_no_inbox(
    chat: ChatClient, route: str, body: bytes
) -> None:
    await chat.post("bob", "1")
    await chat.post("bob", "2")
    refused = await chat.request("POST", f"/chat/bob/{route}", body)
    assert (refused.code, json.loads(refused.body)["errors"]) == (
        400,
        [{"field": "body", "detail": "must be empty or {}: use query parameters instead"}],
    )
    assert await chat.texts("bob") == ["1", "2"]


async def test_counting_consumes_nothing(chat: ChatClient) -> None:
    for _ in range(3):
        await chat.post("bob", "x")
    for _ in range(2):
        head = await chat.request("HEAD", "/chat/bob")
        assert (head.code, head.headers["X-Unread-Count"], head.body) == (200, "3", b"")
    assert len(await chat.read("bob")) == 3
    assert (await chat.request("HEAD", "/chat/bob")).headers["X-Unread-Count"] == "0"


async def test_a_full_inbox_is_counted_up_to_a_bound(
    chat: ChatClient, service: Service, mongo_uri: str, database: str
) -> None:
    await chat.post("bob", "one")
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        messages = client[database]["messages"]
        one = messages.find_one({"username": "bob"})
        assert one is not None
        for count, said in ((COUNT_MAX, str(COUNT_MAX)), (COUNT_MAX + 1, f">{COUNT_MAX}")):
            there = messages.count_documents({"username": "bob"})
            messages.insert_many(
                [{**one, "_id": f"{number:032x}"} for number in range(there, count)]
            )
            head = await chat.request("HEAD", "/chat/bob")
            assert head.headers["X-Unread-Count"] == said


async def test_a_message_lives_as_long_as_it_says(chat: ChatClient) -> None:
    await chat.post("bob", "short", 1)
    await chat.post("bob", "long", 3600)
    await asyncio.sleep(1.1)
    assert await chat.texts("bob") == ["long"]


async def test_a_long_inbox_is_read_whole_in_one_request(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(slice_max=50))
    numbers = [str(number) for number in range(1234)]
    for start in range(0, len(numbers), 50):
        batch = numbers[start : start + 50]
        await asyncio.gather(*(chat.post("bob", number) for number in batch))
    texts = await chat.texts("bob")
    assert sorted(texts, key=int) == numbers
    assert await chat.read("bob") == []


async def test_an_inbox_of_large_messages_is_read_whole_and_in_order(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service())
    sent = [f"{number}{'x' * 60_000}" for number in range(40)]
    for text in [*sent, *"small"]:
        await chat.post("bob", text)
    assert await chat.texts("bob", "?limit=9") == sent[:9]
    assert await chat.texts("bob") == [*sent[9:], *"small"]
    assert await chat.read("bob") == []


async def test_a_limit_beyond_a_slice_is_kept_too(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(slice_max=10))
    for number in range(64):
        await chat.post("bob", str(number))
    assert await chat.texts("bob", "?limit=37") == [str(number) for number in range(37)]
    assert await chat.texts("bob", "?limit=999") == [str(number) for number in range(37, 64)]


async def test_a_long_read_ends_however_fast_others_post(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(slice_max=5))
    for _ in range(30):
        await chat.post("bob", "before")
    reading = asyncio.create_task(chat.texts("bob"))
    posted = 30
    while not reading.done():
        await chat.post("bob", "meanwhile")
        posted += 1
    read = await reading
    assert read[:30] == ["before"] * 30
    assert len(read) + len(await chat.texts("bob")) == posted


async def test_two_nodes_never_return_the_same_message(
    start_service: StartService, connect: Connect
) -> None:
    nodes = [connect(await start_service()), connect(await start_service())]
    for _ in range(10):
        posted = await asyncio.gather(*(nodes[n % 2].post("bob", "x") for n in range(40)))
        reads = await asyncio.gather(*(nodes[n % 2].read("bob", "?limit=15") for n in range(6)))
        rest = [await node.read("bob") for node in nodes]
        ids = [message.id for read in (*reads, *rest) for message in read]
        assert sorted(ids) == sorted(posted)


async def test_sequential_posts_through_two_nodes_stay_in_order(
    start_service: StartService, connect: Connect
) -> None:
    nodes = [connect(await start_service()), connect(await start_service())]
    for number in range(60):
        await nodes[number % 2].post("bob", str(number))
    assert await nodes[0].texts("bob") == [str(number) for number in range(60)]


@pytest.mark.parametrize("path", ["fast path", "Tornado"])
async def test_a_client_that_already_left_claims_nothing(
    service: Service, chat: ChatClient, path: str
) -> None:
    first = (
        get(b"/chat/nobody") if path == "fast path" else get(b"/chat/nobody?limit=1", b"Prefer: x")
    )
    for number in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(first)
        await reader.readuntil(b"[]")
        await chat.post(f"user-{number}", "hello")
        writer.write(get(f"/chat/user-{number}".encode()))
        # The request and the end of its connection arrive together.
        writer.close()
        await writer.wait_closed()

    async def all_are_gone() -> bool:
        metrics = (await chat.request("GET", "/metrics")).body.decode()
        counts = re.findall(r'^chat_http_requests_total\{code="499".*} (\S+)', metrics, re.M)
        return sum(map(float, counts)) == 10

    await eventually(all_are_gone)
    assert await chat.metric("chat_messages_undelivered_total") == 0
    for number in range(10):
        assert await chat.texts(f"user-{number}") == ["hello"]
