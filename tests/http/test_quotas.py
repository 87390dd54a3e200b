"""Full inboxes and a database that has reached its limit, on the fast path and on Tornado's."""

import json

import pytest
from tornado.httpclient import HTTPResponse

from chat_service.service import Service
from tests.conftest import Connect, StartService
from tests.support.raw import Answer, Wire, assert_problem, get, message, post, request, texts_of
from tests.support.waiting import eventually

KEY = b"Idempotency-Key: 0123456789abcdef012345"


async def ask(service: Service, sent: bytes) -> Answer:
    """Send a request on its own connection. Return the answer."""
    wire = Wire(service.port)
    answer = await (await wire.connect()).ask(sent)
    await wire.close()
    return answer


async def fill(service: Service) -> int:
    """Post to bob until he is full. Return how many messages were stored."""
    stored = 0
    while (await ask(service, post(message("bob", "hi")))).status == 201:
        stored += 1
    return stored


@pytest.mark.settings(inbox_messages_max=8)
async def test_a_post_to_a_full_inbox_is_refused(service: Service, path: bytes) -> None:
    assert await fill(service) == 8
    answer = await ask(service, post(message("bob", "hi"), path))
    assert_problem(answer, 429, "inbox-full")
    assert answer.headers["retry-after"] == "10"
    assert answer.document["stored"] is False
    assert (await ask(service, post(message("eve", "hi"), path))).status == 201
    assert len(texts_of(await ask(service, get(b"/chat/bob", path)))) == 8


@pytest.mark.settings(inbox_messages_max=8)
async def test_a_read_inbox_takes_posts_again(service: Service, path: bytes) -> None:
    await fill(service)
    await ask(service, get(b"/chat/bob", path))

    async def is_stored() -> bool:
        return (await ask(service, post(message("bob", "hi"), path))).status == 201

    await eventually(is_stored)


@pytest.mark.settings(inbox_bytes_max=80)
async def test_bytes_fill_an_inbox(service: Service, path: bytes) -> None:
    long = "x" * 10
    answers = [await ask(service, post(message("bob", long), path)) for _ in range(12)]
    assert [answer.status for answer in answers] == [201] * 8 + [429] * 4


@pytest.mark.settings(inbox_messages_max=8)
async def test_items_of_a_batch_beyond_the_quota_fail_alone(service: Service) -> None:
    await fill(service)
    items = [{"username": name, "text": "hi"} for name in ("bob", "eve", "bob", "eve")]
    answer = await ask(service, request(b"POST", b"/chat/batch", body=json.dumps(items).encode()))
    results = answer.document["results"]
    assert [list(result) for result in results] == [["error"], ["id"], ["error"], ["id"]]
    assert results[0]["error"]["type"] == "urn:chat:problem:inbox-full"


@pytest.mark.settings(inbox_messages_max=100)
async def test_a_batch_fills_an_inbox_up_to_its_quota(service: Service) -> None:
    items = [{"username": "bob", "text": str(number)} for number in range(300)]
    answer = await ask(service, request(b"POST", b"/chat/batch", body=json.dumps(items).encode()))
    stored = sum("id" in result for result in answer.document["results"])
    assert 100 <= stored <= 100 + 100 // 8


@pytest.mark.settings(inbox_messages_max=8)
async def test_a_repeat_is_answered_although_the_inbox_is_full(service: Service) -> None:
    first = await ask(service, post(message("bob", "first"), KEY))
    await fill(service)
    again = await ask(service, post(message("bob", "first"), KEY))
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    other = KEY.replace(b"0123", b"4567")
    assert_problem(await ask(service, post(message("bob", "new"), other)), 429, "inbox-full")


async def test_a_database_at_its_limit_refuses_posts_only(
    start_service: StartService, connect: Connect, path: bytes
) -> None:
    service = await start_service(storage_max_bytes=600_000)
    chat = connect(service)
    name, _, value = path.decode().partition(": ")

    async def send(text: str) -> HTTPResponse:
        return await chat.request("POST", "/chat", message("bob", text), **{name: value})

    text = "x" * 50_000

    answers = [await send(text)]

    async def is_refused() -> bool:
        answers.append(await send(text))
        return answers[-1].code == 507

    await eventually(is_refused)
    # A shorter text might be stored: the next measurement may find room for it.
    assert json.loads(answers[-1].body)["type"].endswith("storage-full")
    read = await chat.request("GET", "/chat/bob?limit=1", None, **{name: value})
    assert [each["text"] for each in json.loads(read.body)] == [text]
    # As the purge does some minutes after they were read or expired.
    await service._store._messages.delete_many({})

    async def is_stored() -> bool:
        return (await send("x")).code == 201

    await eventually(is_stored)
