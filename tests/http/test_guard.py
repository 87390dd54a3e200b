"""What no person or program meant to ask reads nothing and writes nothing, and is told why."""

import json
from typing import Final

import pytest

from tests.support.client import ChatClient

GUARDED: Final = (
    ("GET", "/chat/bob"),
    ("GET", "/chat/bob?wait=5"),
    ("HEAD", "/chat/bob"),
    ("POST", "/chat"),
    ("POST", "/chat/batch"),
    ("POST", "/chat/bob/read"),
    ("POST", "/chat/bob/lease"),
    ("POST", "/chat/bob/ack"),
    ("POST", "/chat/bob/release"),
    ("POST", "/chat/bob/extend"),
    ("GET", "/chat/bob/stream"),
    ("GET", f"/messages/{'0' * 32}/status"),
    ("DELETE", f"/messages/{'0' * 32}"),
)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-Purpose", "prefetch"),
        ("Sec-Purpose", "prefetch;prerender"),
        ("Purpose", "prefetch"),
        ("X-Purpose", "preview"),
        ("X-Moz", "prefetch"),
        ("Sec-Fetch-Site", "cross-site"),
    ],
)
async def test_prefetches_and_other_sites_requests_touch_nothing(
    chat: ChatClient, header: str, value: str
) -> None:
    await chat.post("bob", "hello")
    before = await chat.metric("chat_messages_accepted_total")
    body = b'{"text": "x", "username": "bob", "lease": "0"}'
    for method, path in GUARDED:
        headers = {header.replace("-", "_"): value}
        sent = body if method == "POST" else None
        answer = await chat.request(method, path, sent, **headers)
        assert answer.code == 403, (method, path)
        if method != "HEAD":
            problem = json.loads(answer.body)
            assert problem["type"].endswith("speculative")
            assert "nothing" in problem["detail"]
    assert await chat.metric("chat_messages_accepted_total") == before
    assert await chat.texts("bob") == ["hello"]


async def test_no_route_of_an_inbox_consumes_on_head_or_options(chat: ChatClient) -> None:
    await chat.post("bob", "hello")
    for path in dict.fromkeys(path for _, path in GUARDED):
        options = await chat.request("OPTIONS", path)
        assert options.code == 204
        assert "OPTIONS" in options.headers["Allow"]
        head = await chat.request("HEAD", path)
        allowed = "HEAD" in options.headers["Allow"]
        assert head.code == (200 if allowed else 405)
    assert await chat.texts("bob") == ["hello"]
