"""Long polls: answered once a message is there, and at no other reader's expense."""

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.raw import HOST, get
from tests.support.waiting import eventually


async def waiting(chat: ChatClient, number: int = 1) -> None:
    """Wait until this many requests wait for messages."""

    async def wait() -> bool:
        return await chat.metric("chat_waiters") == number

    await eventually(wait)


@pytest.mark.parametrize("asked", ["?wait=20", "?wait=20&limit=1", "?limit=5&wait=20.5"])
async def test_a_waiting_read_returns_when_a_message_arrives(chat: ChatClient, asked: str) -> None:
    read = asyncio.create_task(chat.texts("bob", asked))
    await waiting(chat)
    await chat.post("eve", "not for bob")
    await chat.post("bob", "hello")
    assert await read == ["hello"]
    assert await chat.texts("bob") == []


async def test_a_preference_waits_and_is_reported_as_applied(chat: ChatClient) -> None:
    asked = chat.request("POST", "/chat/bob/read", b"", Prefer="wait=20, receipt")
    read = asyncio.create_task(asked)
    await waiting(chat)
    await chat.post("bob", "hello")
    answer = await read
    assert [each["text"] for each in json.loads(answer.body)] == ["hello"]
    assert answer.headers["Preference-Applied"] == "wait=20"


async def test_a_read_waits_as_long_as_asked_and_allowed(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_wait_s=0.1))
    assert await chat.texts("bob", "?wait=0.05") == []
    answer = await chat.request("GET", "/chat/bob?wait=3600")
    assert json.loads(answer.body) == []
    assert answer.headers["Preference-Applied"] == "wait=0.1"


@pytest.mark.parametrize("wait", ["-1", "abc", "", "1e9", "NaN", "inf", "1,5", "\u0661", "9" * 10])
async def test_a_wait_that_is_no_number_of_seconds_is_refused(chat: ChatClient, wait: str) -> None:
    await chat.post("bob", "still here")
    answer = await chat.request("GET", "/chat/bob?wait=" + quote(wait))
    assert answer.code == 400
    assert json.loads(answer.body)["errors"][0]["field"] == "wait"
    twice = await chat.request("GET", "/chat/bob?wait=1&wait=2")
    assert twice.code == 400
    assert await chat.texts("bob") == ["still here"]


async def test_one_of_many_waiters_gets_the_message(
    chat: ChatClient,
) -> None:
    left = {asyncio.create_task(chat.texts("bob", "?wait=20")) for _ in range(20)}
    await waiting(chat, 20)
    for number in range(20):
        await chat.post("bob", str(number))
        answered, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        assert [await read for read in answered] == [[str(number)]]
        await waiting(chat, 19 - number)


async def test_a_waiting_read_gets_what_another_leaves(chat: ChatClient) -> None:
    reads = [asyncio.create_task(chat.texts("bob", "?wait=20&limit=1")) for _ in range(3)]
    await waiting(chat, 3)
    body = json.dumps([{"text": str(n), "username": "bob"} for n in range(3)])
    assert (await chat.request("POST", "/chat/batch", body.encode())).code == 200
    assert sorted([text for read in reads for text in await read]) == ["0", "1", "2"]


@pytest.mark.parametrize("wait", [0.1 + 0.2, 1 / 3, 0.0001 / 3 + 0.0001])
async def test_a_wait_may_have_all_the_decimals_that_a_float_has(
    chat: ChatClient, wait: float
) -> None:
    await chat.post("bob", "hello")
    assert await chat.texts("bob", f"?wait={wait!r}") == ["hello"]
    await chat.post("bob", "again")
    answer = await chat.request("POST", f"/chat/bob/lease?wait={wait!r}&ttl={1 + wait!r}", b"")
    assert answer.code == 200


@pytest.mark.parametrize("headers", [(), (b"Prefer: wait=20",)])
async def test_a_client_that_leaves_a_long_poll_takes_nothing(
    service: Service, chat: ChatClient, headers: tuple[bytes, ...]
) -> None:
    # On the fast path, or on Tornado.
    target = b"/chat/bob" if headers else b"/chat/bob?wait=20"
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(get(target, *headers))
    await waiting(chat)
    writer.transport.abort()
    await waiting(chat, 0)
    await chat.post("bob", "hello")
    assert await chat.texts("bob") == ["hello"]
    assert await chat.metric("chat_messages_undelivered_total") == 0


async def test_a_waiter_gets_a_message_stored_by_another_node(
    start_service: StartService, connect: Connect
) -> None:
    here, there = connect(await start_service()), connect(await start_service())
    for number in range(20):
        read = asyncio.create_task(here.texts("bob", "?wait=20"))
        await waiting(here)
        await there.post("bob", str(number))
        assert await read == [str(number)]


async def test_a_waiter_gets_a_message_released_by_another_node(
    start_service: StartService, connect: Connect
) -> None:
    here, there = connect(await start_service()), connect(await start_service())
    await there.post("bob", "hello")
    lease = json.loads((await there.request("POST", "/chat/bob/lease", b"")).body)["lease"]
    read = asyncio.create_task(here.texts("bob", "?wait=20"))
    await waiting(here)
    body = json.dumps({"lease": lease}).encode()
    assert (await there.request("POST", "/chat/bob/release", body)).code == 200
    assert await read == ["hello"]


async def test_a_service_that_stops_answers_those_that_wait(
    start_service: StartService, connect: Connect
) -> None:
    service = await start_service()
    chat = connect(service)
    reads = [asyncio.create_task(chat.texts(f"user-{n}", "?wait=20")) for n in range(10)]
    await waiting(chat, 10)
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /chat/slow?wait=20 HTTP/1.1\r\n" + HOST + b"\r\n\r\n")
    await waiting(chat, 11)
    assert await service.drain()
    assert [await read for read in reads] == [[]] * 10
    writer.close()


async def test_a_wait_that_ends_in_an_outage_is_not_an_empty_inbox(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat, other = connect(service), connect(await start_service())
        read = asyncio.create_task(chat.request("GET", "/chat/bob?wait=3"))
        lease = asyncio.create_task(chat.request("POST", "/chat/bob/lease?wait=3", b""))
        await waiting(chat, 2)
        proxy.cut_rate = dict.fromkeys(("find", "aggregate", "hello", "getMore"), 1.0)
        await other.post("bob", "hello")
        for answer in (await read, await lease):
            assert (answer.code, json.loads(answer.body)["claimed"]) == (503, False)
        proxy.cut_rate = {}
        assert await other.texts("bob") == ["hello"]
        await service.stop()


async def test_no_more_wait_than_may(start_service: StartService, connect: Connect) -> None:
    chat = connect(await start_service(waiters_max=2))
    reads = [asyncio.create_task(chat.texts("bob", "?wait=20")) for _ in range(2)]
    await waiting(chat, 2)
    answer = await chat.request("GET", "/chat/bob?wait=20")
    assert (answer.code, json.loads(answer.body)["claimed"]) == (503, False)
    assert await chat.texts("bob") == []
    for number in range(2):
        await chat.post("bob", str(number))
        await waiting(chat, 1 - number)
    assert sorted([text for read in reads for text in await read]) == ["0", "1"]


async def test_a_wait_counts_as_one_however_it_was_asked_for(chat: ChatClient) -> None:
    ways: list[tuple[str, dict[str, str]]] = [
        ("?wait=0.01", {}),
        ("?x=1&wait=0.01", {}),
        ("", {"Prefer": "wait=0.01"}),
        ("?await=1", {}),
        ("", {"Prefer": "receipt"}),
    ]
    # A post ignores a requested wait.
    body = b'{"text": "x", "username": "eve"}'
    await chat.request("POST", "/chat?wait=1", body, Prefer="wait=1")
    for query, headers in ways:
        await chat.request("GET", f"/chat/bob{query}", None, **headers)
    counted = (await chat.request("GET", "/metrics")).body.decode().splitlines()
    name = "chat_http_request_duration_seconds_count"
    assert f'{name}{{route="/chat/:username"}} 2.0' in counted
    assert f'{name}{{route="/chat/:username?wait"}} 3.0' in counted
    assert f'{name}{{route="/chat"}} 1.0' in counted
