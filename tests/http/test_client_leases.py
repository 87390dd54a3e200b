"""The client's leases: acknowledged or released at the end of a block, explicitly, or never."""

import asyncio
from collections.abc import Callable

import pytest

from chat_service.client import ChatClient, LeaseOver, Message
from chat_service.service import Service
from tests.conftest import StartService
from tests.support.middleman import Middleman, base_of


async def test_a_lease_is_acknowledged_when_its_block_ends(client: ChatClient) -> None:
    posted = await client.post("bob", "work", receipt=True)
    assert posted.receipt is not None
    async with await client.lease("bob", wait_s=5) as lease:
        assert lease.messages == [Message("work", posted.id)]
        assert (await client.status(posted.id, posted.receipt)).status == "leased"
        assert await client.count("bob") == 0
    assert (await client.status(posted.id, posted.receipt)).status == "read"


async def test_a_lease_is_given_back_when_its_block_raises(client: ChatClient) -> None:
    await client.post("bob", "work")
    with pytest.raises(ZeroDivisionError):
        async with await client.lease("bob"):
            raise ZeroDivisionError
    assert [message.text for message in await client.read("bob")] == ["work"]


async def test_a_lease_is_given_back_when_its_block_is_cancelled(client: ChatClient) -> None:
    await client.post("bob", "work")
    has_begun = asyncio.Event()

    async def work() -> None:
        async with await client.lease("bob"):
            has_begun.set()
            await asyncio.sleep(600)

    working = asyncio.create_task(work())
    await has_begun.wait()
    working.cancel()
    await asyncio.wait((working,))
    assert working.cancelled()
    assert [message.text for message in await client.read("bob")] == ["work"]


async def test_a_lease_can_be_settled_message_by_message(client: ChatClient) -> None:
    for text in "abcd":
        await client.post("bob", text)
    async with await client.lease("bob", ttl_s=5, limit=3) as lease:
        first, second, third = lease.messages
        assert await lease.extend(600.5) == lease.ttl_s == 600.5
        assert await lease.acknowledge([first.id]) == 1
        assert await lease.acknowledge([first.id]) == 1
        assert await lease.release([second.id]) == 1
        assert await lease.release([second.id, first.id]) == 1
    assert third.text == "c"
    assert [message.text for message in await client.read("bob")] == ["b", "d"]
    assert await lease.acknowledge() == 0


async def test_a_lease_is_settled_by_its_name_from_elsewhere(client: ChatClient) -> None:
    ids = [(await client.post("bob", text)).id for text in "abc"]
    lease = await client.lease("bob")
    name = lease.name
    assert name is not None
    assert repr(lease) == f"Lease({name!r}, ttl_s=30.0, messages=3)"
    assert await client.extend("bob", name, 60) == 60
    assert await client.acknowledge("bob", name, ids[:1]) == 1
    assert await client.release("bob", name, ids[1:2]) == 1
    assert [message.text for message in await client.read("bob")] == ["b"]
    assert await client.acknowledge("bob", name) == 1
    assert await client.release("bob", name) == 0
    with pytest.raises(LeaseOver):
        await client.extend("bob", name, 60)


async def test_a_lease_of_nothing_asks_nothing(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        async with await client.lease("bob") as lease:
            assert lease.messages == []
            assert (await lease.acknowledge(), await lease.release(["x"])) == (0, 0)
            assert await lease.extend(5) == 30
        assert len(between.heads) == 1


async def test_a_lease_that_is_over_says_so(client: ChatClient) -> None:
    await client.post("bob", "work")
    lease = await client.lease("bob", ttl_s=0.05)
    another = await client.lease("bob", wait_s=10)
    assert another.messages == lease.messages
    with pytest.raises(LeaseOver):
        await lease.acknowledge()
    with pytest.raises(LeaseOver):
        await lease.extend(5)
    assert await lease.release() == 0


async def test_a_lease_with_a_lost_answer_is_delivered_again(service: Service) -> None:
    async with Middleman(service.port) as between, ChatClient(between.base) as client:
        await client.post("bob", "work")
        between.lose = 1
        async with await client.lease("bob", ttl_s=0.2, wait_s=5) as lease:
            assert [message.text for message in lease.messages] == ["work"]
            between.lose = 1
        assert between.lose == 0
        assert await client.read("bob") == []


async def test_a_lease_released_elsewhere_ends_without_an_error(
    client: ChatClient,
) -> None:
    await client.post("bob", "hello")
    async with await client.lease("bob") as lease:
        assert lease.name is not None
        assert await client.release("bob", lease.name) == 1
        assert len(await client.read("bob")) == 1
        assert await lease.release() == 0


async def test_a_wait_for_a_lease_goes_on_over_many_requests(
    start_service: StartService, connect_client: Callable[..., ChatClient]
) -> None:
    client = connect_client(base_of(await start_service(max_wait_s=0.05)))
    waiting = asyncio.create_task(client.wait_lease("bob", 20, limit=1))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await client.post("bob", "hello")
    async with await waiting as lease:
        assert [message.text for message in lease.messages] == ["hello"]
    assert (await client.wait_lease("bob", 0.1)).name is None


async def test_a_lease_names_what_it_lost_and_what_it_did_not(client: ChatClient) -> None:
    stays = (await client.post("bob", "stays")).id
    goes = (await client.post("bob", "goes", timeout_s=3)).id
    lease = await client.lease("bob", ttl_s=60)
    assert [message.id for message in lease.messages] == [stays, goes]
    await asyncio.sleep(3.1)
    with pytest.raises(LeaseOver) as raised:
        await lease.__aexit__(None, None, None)
    assert (raised.value.acknowledged, raised.value.lost) == ((stays,), (goes,))
    # The lease holds no more messages.
    assert await lease.acknowledge() == 0
