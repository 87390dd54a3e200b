"""For operators: health, metrics that add up, request ids, and logs without secrets."""

import asyncio
import json
from pathlib import Path

import pytest

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.client_limits import FIVE, eventually_waits
from tests.support.proxy import MongoProxy
from tests.support.raw import Wire, get, message, post
from tests.support.waiting import eventually


async def test_a_healthy_service_is_alive_and_ready(chat: ChatClient) -> None:
    for path in ("/livez", "/readyz"):
        response = await chat.request("GET", path)
        assert response.code == 200
        assert json.loads(response.body)["status"] == "ok"
        assert (await chat.request("HEAD", path)).code == 200


async def test_without_its_database_a_service_is_alive_but_not_ready(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat = connect(service)
        proxy.cut_before.update(dict.fromkeys(("hello", "ping", "insert", "find"), 10_000))
        ready = await chat.request("GET", "/readyz")
        assert ready.code == 503
        assert json.loads(ready.body)["database"] is False
        assert (await chat.request("GET", "/livez")).code == 200
        refused = await chat.request("GET", "/chat/bob")
        assert refused.code == 503
        assert refused.headers["Retry-After"] == "1"
        assert json.loads(refused.body)["claimed"] is False
        posted = await chat.request("POST", "/chat", b'{"text":"x","username":"bob"}')
        assert posted.code == 503
        assert json.loads(posted.body)["stored"] in (False, "unknown")
        proxy.cut_before.clear()

        async def is_ready() -> bool:
            return (await chat.request("GET", "/readyz")).code == 200

        await eventually(is_ready)
        await chat.post("bob", "back")
        await service.stop()


async def test_a_lost_reply_is_nothing_that_a_client_sees(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri)
        chat = connect(service)
        proxy.lose_reply["insert"] = 1
        message_id = await chat.post("bob", "x")
        proxy.lose_reply["update"] = 1
        assert await chat.read("bob") == [("x", message_id)]
        assert await chat.read("bob") == []
        await service.stop()


async def test_an_unknown_outcome_is_answered_as_unknown(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, mongo_timeout_s=1.0)
        chat = connect(service)
        await chat.post("bob", "x")
        proxy.lose_reply.update({"update": 1000, "insert": 1000})
        read = await chat.request("GET", "/chat/bob")
        posted = await chat.request("POST", "/chat", b'{"text":"x","username":"eve"}')
        assert (read.code, json.loads(read.body)["claimed"]) == (503, "unknown")
        assert (posted.code, json.loads(posted.body)["stored"]) == (503, "unknown")
        assert await chat.metric("chat_outcomes_unknown_total") == 2
        await service.stop()


async def test_requests_end_by_their_deadline_when_the_database_hangs(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(
            mongo_uri=proxy.uri, shards=1, deadline_s=0.4, mongo_timeout_s=0.4
        )
        chat = connect(service)
        proxy.hold |= {"find": b"text", "insert": b"text"}
        reads = [asyncio.create_task(chat.request("GET", f"/chat/u{n}")) for n in range(5)]
        await proxy.held.wait()
        reads += [asyncio.create_task(chat.request("GET", f"/chat/v{n}")) for n in range(5)]
        assert {response.code for response in await asyncio.gather(*reads)} == {503}
        proxy.release()
        await service.stop()


async def test_a_full_queue_is_answered_at_once(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        service = await start_service(mongo_uri=proxy.uri, shards=1, queue_max=5)
        chat = connect(service)
        proxy.hold["insert"] = b"text"
        first = asyncio.create_task(chat.post("early", "x"))
        await proxy.held.wait()
        body = b'{"text":"x","username":"u"}'
        posts = [asyncio.create_task(chat.request("POST", "/chat", body)) for _ in range(20)]

        async def fifteen_are_answered() -> bool:
            return sum(post.done() for post in posts) == 15

        await eventually(fifteen_are_answered)
        refusals = [post.result() for post in posts if post.done()]
        assert {response.code for response in refusals} == {503}
        assert {json.loads(response.body)["type"] for response in refusals} == {
            "urn:chat:problem:overloaded"
        }
        assert {response.headers["Retry-After"] for response in refusals} == {"1"}
        proxy.release()
        accepted = [response.code for response in await asyncio.gather(*posts)].count(201)
        await first
        assert accepted == 5
        assert len(await chat.read("u")) == 5
        await service.stop()


async def test_the_counters_account_for_every_message(chat: ChatClient) -> None:
    for number in range(10):
        # Only the other inbox has messages that expire soon, so that no read must hurry.
        await chat.post(f"user-{number % 2}", "x", 1 if number in (1, 3) else 60)
    await chat.read("user-0", "?limit=3")
    assert await chat.metric("chat_messages_accepted_total") == 10
    assert await chat.metric("chat_messages_read_total") == 3

    async def two_have_expired() -> bool:
        return await chat.metric("chat_messages_expired_unread_total") == 2

    await eventually(two_have_expired)
    rest = len(await chat.read("user-0")) + len(await chat.read("user-1"))
    expired = await chat.metric("chat_messages_expired_unread_total")
    assert await chat.metric("chat_messages_read_total") == 3 + rest
    assert 3 + rest + expired == 10


async def test_metrics_name_routes_and_never_inboxes(chat: ChatClient) -> None:
    await chat.post("secret-name", "secret-text")
    await chat.read("secret-name")
    await chat.request("BREW", "/no/such/path")
    text = (await chat.request("GET", "/metrics")).body.decode()
    assert 'chat_http_requests_total{code="201",method="POST",route="/chat"} 1.0' in text
    assert 'route="/chat/:username"' in text
    assert 'chat_http_requests_total{code="404",method="other",route="none"} 1.0' in text
    assert "secret" not in text


async def test_a_sensible_request_id_is_kept_and_any_other_replaced(chat: ChatClient) -> None:
    kept = await chat.request("GET", "/chat/bob", None, X_Request_ID="order-66.a")
    assert kept.headers["X-Request-ID"] == "order-66.a"
    for strange in ("", "x" * 65, "a b", "é"):
        replaced = await chat.request("GET", "/chat/bob", None, X_Request_ID=strange)
        assert replaced.headers["X-Request-ID"] not in ("", strange)
    problem = await chat.request("GET", "/nowhere", None, X_Request_ID="trace-1")
    assert json.loads(problem.body)["instance"] == "trace-1"


@pytest.mark.settings(**FIVE, client_waiters_max=1, client_bytes_per_s=1000, ops="on")
async def test_refusals_are_counted_by_limit(service: Service, chat: ChatClient) -> None:
    wire = Wire(service.port)
    waiting = await wire.connect()
    await waiting.send(get(b"/chat/bob?wait=20"))
    await eventually_waits(service, 1)
    assert (await wire.ask(get(b"/chat/bob?wait=20"))).status == 429
    assert (await wire.ask(post(message("bob", "x" * 20_000)))).status == 201
    assert (await wire.ask(post(message("bob", "x")))).status == 429
    answers = [await wire.ask(get(b"/chat/nobody")) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 2 + [429] * 4
    lines = (await chat.request("GET", "/metrics")).body.decode().splitlines()
    name = "chat_http_requests_limited_total"
    counts = {"waits": 1, "bytes": 1, "requests": 4, "connections": 0}
    for limit, count in counts.items():
        assert f'{name}{{limit="{limit}"}} {count}.0' in lines
    await wire.close()
