"""The client's streams deliver each message once, across broken connections and restarts."""

import asyncio
import gc
import sys
from contextlib import suppress

import httpx
import pytest

from chat_inbox import ChatClient, Stream, SyncChatClient, SyncStream
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.conftest import StartService
from tests.support.middleman import Middleman, answer, base_of
from tests.support.waiting import eventually


async def take(stream: Stream, count: int) -> list[str]:
    """Return the texts of the next messages."""
    return [(await anext(stream)).text for _ in range(count)]


async def none_is_unread(client: ChatClient, username: str) -> None:
    """Wait until no message is unread or leased."""

    async def is_so() -> bool:
        return await client.count(username) == 0

    await eventually(is_so)
    assert await client.read(username) == []


async def test_a_stream_delivers_old_and_new_messages(client: ChatClient) -> None:
    await client.post("bob", "there\r\n\n: è\0")
    async with client.stream("bob") as stream:
        assert await take(stream, 1) == ["there\r\n\n: è\0"]
        coming = asyncio.create_task(take(stream, 1))
        await client.post("bob", "came")
        assert await coming == ["came"]
        await stream.acknowledge()
    await none_is_unread(client, "bob")


async def test_asking_for_the_next_message_acknowledges(client: ChatClient) -> None:
    posted = [await client.post("bob", text, receipt=True) for text in "ab"]

    async def statuses() -> list[str]:
        return [(await client.status(each.id, each.receipt or "")).status for each in posted]

    async with client.stream("bob") as stream:
        await anext(stream)
        assert await statuses() == ["leased", "leased"]
        await anext(stream)
        assert await statuses() == ["read", "leased"]


async def test_unfinished_messages_go_to_another_consumer(client: ChatClient) -> None:
    for text in "abc":
        await client.post("bob", text)
    # This stream is not closed explicitly, but when it is garbage-collected.
    async for message in client.stream("bob"):
        if message.text == "b":
            break
    async with client.stream("bob") as another:
        assert sorted(await take(another, 2)) == ["b", "c"]


async def test_a_stream_goes_on_after_a_restart_of_the_service(
    start_service: StartService, new_client: NewClient
) -> None:
    service = await start_service()
    client = new_client(base_of(service))
    for text in "abc":
        await client.post("bob", text)
    taken = []
    async with client.stream("bob") as stream:
        taken += await take(stream, 1)
        assert await service.drain()
        await service.stop()
        waiting = asyncio.create_task(take(stream, 3))
        await start_service(port=service.port)
        await client.post("bob", "d")
        taken += await waiting
        await stream.acknowledge()
    assert taken == ["a", "b", "c", "d"]
    await none_is_unread(client, "bob")


async def test_a_stream_that_reconnects_returns_each_message_once(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        for text in "abc":
            await client.post("bob", text)
        async with client.stream("bob") as stream:
            assert await take(stream, 2) == ["a", "b"]
            between.cut()
            assert await take(stream, 1) == ["c"]
            last = await client.post("bob", "d")
            assert (await anext(stream)).id == last.id
            await stream.acknowledge()
        heads = [head for head in between.heads if "/stream " in head]
        assert len(heads) == 2
        assert "Last-Event-ID" not in heads[0]
        assert "Last-Event-ID" in heads[1]
        await none_is_unread(client, "bob")


async def test_a_redelivered_message_is_acknowledged_not_returned(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client, direct = new_client(between.base), new_client(base_of(service))
        posted = [await client.post("bob", text, receipt=True) for text in "ab"]
        async with client.stream("bob") as stream:
            assert await take(stream, 1) == ["a"]
            between.answers = [answer(410, b'{"type": "urn:chat:problem:lease-over"}')]
            assert await take(stream, 1) == ["b"]
            between.cut()

            async def both_are_unread() -> bool:
                return await direct.count("bob") == 2

            await eventually(both_are_unread)
            # Another lease in between, so the Last-Event-ID does not cover the first message.
            lease = await direct.lease("bob")
            assert await lease.release() == 2
            await direct.post("bob", "c")
            assert await take(stream, 1) == ["c"]
            first = posted[0]
            assert (await direct.status(first.id, first.receipt or "")).status == "read"
            await stream.acknowledge()
        await none_is_unread(direct, "bob")


async def test_a_stream_begins_when_the_service_is_there(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        await client.post("bob", "a")
        between.answers = [answer(503), b""]
        assert await take(client.stream("bob"), 1) == ["a"]


async def test_a_stream_goes_on_after_a_next_that_was_cancelled(service: Service) -> None:
    async with ChatClient(base_of(service)) as client, client.stream("bob") as stream:
        await client.post("bob", "a")
        assert await take(stream, 1) == ["a"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(stream)
        await client.post("bob", "b")
        assert await take(stream, 1) == ["b"]


async def test_closing_the_client_ends_its_streams(client: ChatClient) -> None:
    stream = client.stream("bob")
    waiting = asyncio.create_task(anext(stream, None))
    await client.post("bob", "a")
    assert await waiting is not None
    waiting = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    await client.close()
    assert await waiting is None
    assert await anext(stream, None) is None


async def test_a_closed_stream_has_no_connection(service: Service) -> None:
    transport = httpx.HTTPTransport()

    def consume() -> SyncStream:
        with SyncChatClient(base_of(service)) as chat:
            chat.post("bob", "a")
        stream = client.stream("bob")
        assert next(stream).text == "a"
        stream.close()
        return stream

    client = SyncChatClient(base_of(service), transport=transport)
    stream = await asyncio.to_thread(consume)
    assert transport._pool.connections == []
    assert await asyncio.to_thread(next, stream, None) is None
    client.close()


async def test_a_stream_that_cannot_be_requested_says_so(new_client: NewClient) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError("Illegal header value")

    client = new_client("http://127.0.0.1:1", transport=httpx.MockTransport(refuse))
    with pytest.raises(ValueError, match="not valid HTTP"):
        async with asyncio.timeout(30):
            await anext(client.stream("bob"))


@pytest.mark.parametrize("kind", [ChatClient, SyncChatClient])
def test_a_refused_name_leaves_no_stream_behind(
    kind: type[ChatClient | SyncChatClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    client = kind("http://127.0.0.1:1")
    with suppress(UnicodeEncodeError):
        client.stream("\ud800")
    gc.collect()
    assert unraisable == []
