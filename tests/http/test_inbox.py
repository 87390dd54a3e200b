"""The two endpoints of the original specification, from a user's point of view."""

import asyncio
import json

from tests.support.client import ChatClient


async def test_a_message_is_read_once(chat: ChatClient) -> None:
    message_id = await chat.post("bob", "hello")
    assert await chat.read("bob") == [("hello", message_id)]
    assert await chat.read("bob") == []


async def test_messages_come_back_in_the_order_they_were_posted(chat: ChatClient) -> None:
    for number in range(20):
        await chat.post("bob", str(number))
    assert await chat.texts("bob") == [str(number) for number in range(20)]


async def test_the_two_answers_are_frozen_to_the_byte(chat: ChatClient) -> None:
    posted = await chat.request("POST", "/chat", b'{"text": "hi", "username": "bob"}')
    message_id = json.loads(posted.body)["id"]
    assert posted.code == 201
    assert posted.headers["Content-Type"] == "application/json"
    assert posted.body == b'{"id":"%b"}' % message_id.encode()
    read = await chat.request("GET", "/chat/bob")
    assert read.code == 200
    assert read.headers["Content-Type"] == "application/json"
    assert read.body == b'[{"text":"hi","id":"%b"}]' % message_id.encode()
    assert (await chat.request("GET", "/chat/bob")).body == b"[]"


async def test_two_reads_at_once_share_no_message(chat: ChatClient) -> None:
    for _ in range(20):
        posted = {await chat.post("bob", "x") for _ in range(5)}
        reads = await asyncio.gather(*(chat.read("bob") for _ in range(8)))
        ids = [message.id for read in reads for message in read]
        assert sorted(ids) == sorted(posted)
