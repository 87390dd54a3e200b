"""Waiting at one node for messages that arrive through another, without the periodic search."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.events import EventStream
from tests.support.proxy import MongoProxy
from tests.support.waiting import PATIENCE, eventually
from workers import arrival_listener

pytestmark = pytest.mark.usefixtures("without_searches")


@pytest.fixture
def without_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the change stream, and the searches that belong to it, wake those who wait."""
    monkeypatch.setattr(arrival_listener, "SEARCH_EVERY_S", (1000.0, 1000.0))


async def waiting(chat: ChatClient, number: int) -> None:
    """Wait until this many requests wait for messages."""

    async def wait() -> bool:
        return await chat.metric("chat_waiters") == number

    await eventually(wait)


@pytest.mark.parametrize("is_certain", [True, False])
async def test_a_new_inbox_wakes_through_another_node(
    start_service: StartService, connect: Connect, is_certain: bool
) -> None:
    here, there = connect(await start_service()), connect(await start_service())
    rng = random.Random(0)
    for number in range(30):
        read = asyncio.create_task(here.texts(f"user-{number}", "?wait=20"))
        if is_certain:
            await waiting(here, 1)
        else:
            # Before, during or after the search of the read, or the opening of the stream.
            await asyncio.sleep(rng.uniform(0, 0.02))
        await there.post(f"user-{number}", str(number))
        assert await read == [str(number)]


async def test_all_who_begin_to_wait_at_once_are_woken(
    start_service: StartService, connect: Connect
) -> None:
    here, there = connect(await start_service()), connect(await start_service())
    names = [f"user-{number}" for number in range(60)]
    reads = []
    for name in names:
        reads.append(asyncio.create_task(here.texts(name, "?wait=25")))
        await asyncio.sleep(0.005)
    for name in names:
        await there.post(name, name)
    assert [await read for read in reads] == [[name] for name in names]


async def test_streams_that_come_and_go_get_all_messages(
    start_service: StartService, connect: Connect
) -> None:
    here = await start_service()
    there = connect(await start_service())

    # A few at a time, so that no request exceeds its deadline on a busy machine.
    places = asyncio.Semaphore(10)

    async def subscribe(number: int) -> None:
        async with places, EventStream(here.port, f"user-{number}") as stream:
            for text in ("one", "two"):
                await there.post(f"user-{number}", text)
                # There may be another lease before, but no pause that ends with a comment.
                while (event := await stream.next()).name == "open":
                    pass
                assert (event.name, event.data and event.data["text"]) == ("message", text)

    async with asyncio.timeout(40 * PATIENCE):
        await asyncio.gather(*map(subscribe, range(200)))


async def test_waiting_costs_nothing_for_messages_to_others(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        here = connect(service := await start_service(mongo_uri=proxy.uri))
        there = connect(await start_service())
        read = asyncio.create_task(here.texts("bob", "?wait=25"))
        await waiting(here, 1)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), proxy.sent["getMore"]
        for number in range(100):
            await there.post(f"user-{number}", "not for bob")
        # One request a second, however many messages are stored.
        assert proxy.sent["getMore"] - before <= loop.time() - began + 1
        await there.post("bob", "hello")
        assert await read == ["hello"]
        await service.stop()


async def test_polling_again_opens_no_other_stream(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        proxy.naming = b"$changeStream"
        here = connect(service := await start_service(mongo_uri=proxy.uri))
        there = connect(await start_service())
        for number in range(30):
            read = asyncio.create_task(here.texts("bob", "?wait=20"))
            await waiting(here, 1)
            await there.post("bob", str(number))
            assert await read == [str(number)]
        assert proxy.sent["aggregate"] == 1
        await service.stop()


async def test_leases_that_end_wake_nobody_else(
    start_service: StartService, connect: Connect, mongo_uri: str, tmp_path: Path
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        here = connect(service := await start_service(mongo_uri=proxy.uri))
        other = await start_service()
        there = connect(other)
        read = asyncio.create_task(here.texts("bob", "?wait=25"))
        await waiting(here, 1)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), proxy.sent["getMore"]
        for number in range(20):
            await there.post(f"user-{number}", "not acknowledged")
            async with EventStream(other.port, f"user-{number}") as stream:
                await stream.texts(1)
            # It is unread again.
            assert await there.texts(f"user-{number}", "?wait=20") == ["not acknowledged"]
        assert proxy.sent["getMore"] - before <= loop.time() - began + 1
        await there.post("bob", "hello")
        assert await read == ["hello"]
        await service.stop()
