"""POST /chat/batch: many messages in one request, each with its own result."""

import json
from typing import Any

import pytest

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient


def message(text: object, username: str = "bob") -> dict[str, object]:
    return {"text": text, "username": username}


async def post(chat: ChatClient, *messages: object, **headers: str) -> Any:
    body = json.dumps(messages).encode()
    answer = await chat.request("POST", "/chat/batch", body, **headers)
    assert answer.code == 200, answer.body
    return json.loads(answer.body)["results"]


async def test_each_message_is_stored_in_order(chat: ChatClient) -> None:
    results = await post(chat, *(message(str(number)) for number in range(100)))
    received = await chat.read("bob")
    assert [each.text for each in received] == [str(number) for number in range(100)]
    assert [{"id": each.id} for each in received] == results


async def test_one_bad_message_fails_alone_and_says_why(chat: ChatClient) -> None:
    bad = [{"text": "x"}, 7, None, [], "x", message(1), message("x" * 65537), message("x", "..")]
    results = await post(chat, message("first"), *bad, message("last"))
    assert [set(result) for result in results] == [{"id"}, *[{"error"}] * len(bad), {"id"}]
    statuses = [result["error"]["status"] for result in results[1:-1]]
    assert statuses == [400, 400, 400, 400, 400, 400, 413, 400]
    assert results[1]["error"]["errors"][0]["field"] == "username"
    assert await chat.texts("bob") == ["first", "last"]


async def test_an_invalid_message_gets_its_own_error(chat: ChatClient) -> None:
    body = b'[{"text": "x", "username": "bob"}, 7]'
    answer = await chat.request("POST", "/chat/batch", body)
    _, number = json.loads(answer.body)["results"]
    assert number["error"]["title"] == "The message is not a JSON object"
    assert number["error"]["detail"] == (
        "the message must be an object with the fields text, username and timeout"
    )
    lines = b'{"text": "x", "username": "bob"}\n{"text": \n{"text": "\xff"}\n[]\n%b\n'
    answer = await chat.request("POST", "/chat/batch", lines % (b"[" * 2000))
    wrong = json.loads(answer.body)["results"][1:]
    assert [each["error"]["type"] for each in wrong] == ["urn:chat:problem:invalid-json"] * 4
    assert "body" not in json.dumps(wrong)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
async def test_messages_may_come_on_lines(chat: ChatClient, end: str) -> None:
    body = end + "\n".join(json.dumps(message(text)) for text in ("one", "two")) + end
    answer = await chat.request("POST", "/chat/batch", body.encode())
    assert len(json.loads(answer.body)["results"]) == 2
    alone = json.dumps(message("three")).encode()
    answer = await chat.request("POST", "/chat/batch", alone, Content_Type="application/x-ndjson")
    assert len(json.loads(answer.body)["results"]) == 1
    assert await chat.texts("bob") == ["one", "two", "three"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"text":"x","username":"bob"}',
        b"7",
        b"[1",
        b"\xff",
        b'{\n"text": "x",\n"username": "bob"\n}',
    ],
)
async def test_a_body_that_is_no_batch_is_refused_whole(chat: ChatClient, body: bytes) -> None:
    answer = await chat.request("POST", "/chat/batch", body)
    assert answer.code == 400
    assert await chat.texts("bob") == []


async def test_an_empty_batch_has_no_results(chat: ChatClient) -> None:
    assert await post(chat) == []


async def test_a_batch_has_a_bound_in_number_and_in_size(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_batch_messages=3, max_batch_bytes=1000))
    many = json.dumps([message("x")] * 4).encode()
    assert (await chat.request("POST", "/chat/batch", many)).code == 400
    large = json.dumps([message("x" * 900)]).encode() + b" " * 100
    assert (await chat.request("POST", "/chat/batch", large)).code == 413
    # A single post has its own limit.
    assert (
        await chat.request("POST", "/chat", json.dumps(message("x" * 2000)).encode())
    ).code == 201
    assert len(await chat.texts("bob")) == 1


async def test_a_repeated_batch_is_stored_once(chat: ChatClient) -> None:
    messages = [message(str(number)) for number in range(5)]
    first = await post(chat, *messages[:3], Idempotency_Key="batch")
    # As if the first request had been cut off after three messages.
    again = await post(chat, *messages, Idempotency_Key="batch")
    assert again[:3] == first
    assert await chat.texts("bob") == ["0", "1", "2", "3", "4"]
    (other,) = await post(chat, message("other"), Idempotency_Key="batch")
    assert other["error"]["status"] == 422


async def test_each_message_may_have_a_receipt(chat: ChatClient) -> None:
    results = await post(chat, message("one"), message("two"), Prefer="receipt")
    assert len({result["receipt"] for result in results}) == 2
    for result in results:
        path = f"/messages/{result['id']}"
        answer = await chat.request("DELETE", path, X_Receipt=result["receipt"])
        assert answer.code == 204
    assert await chat.texts("bob") == []


async def test_an_inbox_may_be_called_batch(chat: ChatClient) -> None:
    await post(chat, message("hello", "batch"))
    count = await chat.request("HEAD", "/chat/batch")
    assert count.headers["X-Unread-Count"] == "1"
    assert await chat.texts("batch") == ["hello"]
    answer = await chat.request("DELETE", "/chat/batch")
    assert (answer.code, answer.headers["Allow"]) == (405, "POST, GET, HEAD, OPTIONS")


async def test_empty_lines_between_messages_are_none_however_many(
    start_service: StartService, connect: Connect
) -> None:
    chat = connect(await start_service(max_batch_messages=3))
    messages = [json.dumps({"text": str(number), "username": "bob"}) for number in range(3)]
    for between in ("\n" * 9, "\r\n\r\n", "\n \t\n" * 9):
        body = between.join(["", *messages, ""]).encode()
        answer = await chat.request("POST", "/chat/batch", body)
        assert all("id" in result for result in json.loads(answer.body)["results"]), answer.body
        assert await chat.texts("bob") == ["0", "1", "2"]


async def test_a_batch_may_begin_with_a_byte_order_mark(chat: ChatClient) -> None:
    mark = b"\xef\xbb\xbf"
    one = json.dumps(message("x")).encode()
    for body, kind in ((b"[" + one + b"]", "json"), (one + b"\n" + one, "x-ndjson")):
        answer = await chat.request(
            "POST", "/chat/batch", mark + body, Content_Type=f"application/{kind}"
        )
        assert all("id" in each for each in json.loads(answer.body)["results"])
    assert len(await chat.read("bob")) == 3
