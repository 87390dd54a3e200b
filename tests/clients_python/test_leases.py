"""The client's leases: acknowledged or released at the end of a block, explicitly, or never."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from chat_inbox import ChatClient, Delivered, Lease, LeaseOver, Origin, ProblemError
from chat_inbox.calls import Grant
from chat_inbox.leasing import HeldLease
from chat_inbox.steps import Pause
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.conftest import StartService
from tests.support.middleman import Middleman, answer, base_of
from tests.support.waiting import eventually


async def test_a_lease_is_acknowledged_when_its_block_ends(client: ChatClient) -> None:
    posted = await client.post("bob", "work", receipt=True)
    assert posted.receipt is not None
    async with client.lease("bob", wait_s=5) as lease:
        assert lease.messages == [Delivered("work", posted.id, deliveries=1)]
        assert (await client.status(posted.id, posted.receipt)).status == "leased"
        assert await client.count("bob") == 0
    assert (await client.status(posted.id, posted.receipt)).status == "read"


async def test_a_lease_may_be_awaited_for_longer_than_it_lasts(client: ChatClient) -> None:
    async def post_late() -> None:
        await asyncio.sleep(1.2)
        await client.post("bob", "work")

    posting = asyncio.create_task(post_late())
    async with client.lease("bob", ttl_s=1, wait_s=20) as lease:
        assert [message.text for message in lease] == ["work"]
    await posting
    assert await client.read("bob") == []


async def test_a_lease_that_ended_on_its_way_is_asked_for_again(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        between.refusals["/extend"] = answer(410, b'{"type": "urn:chat:problem:lease-over"}')
        client = new_client(between.base)

        async def work() -> list[int]:
            async with client.lease("bob", ttl_s=1, wait_s=60) as lease:
                return [message.deliveries for message in lease]

        working = asyncio.create_task(work())
        await asyncio.sleep(1.2)
        await client.post("bob", "work")

        async def is_refused() -> bool:
            return any("/extend" in head for head in between.heads)

        await eventually(is_refused)
        between.refusals.clear()
        assert await working == [2]


async def test_a_lease_is_given_back_when_its_block_raises(client: ChatClient) -> None:
    await client.post("bob", "work")
    with pytest.raises(ZeroDivisionError):
        async with client.lease("bob"):
            raise ZeroDivisionError
    assert [message.text for message in await client.read("bob")] == ["work"]


async def test_a_lease_is_given_back_when_its_block_is_cancelled(client: ChatClient) -> None:
    await client.post("bob", "work")
    has_begun = asyncio.Event()

    async def work() -> None:
        async with client.lease("bob"):
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
    async with client.lease("bob", ttl_s=5, limit=3) as lease:
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


async def test_a_lease_of_nothing_asks_nothing(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        async with client.lease("bob") as lease:
            assert lease.messages == []
            assert (await lease.acknowledge(), await lease.release(["x"])) == (0, 0)
            assert await lease.extend(5) == 30
        assert len(between.heads) == 1


async def test_a_lease_that_is_over_says_so(client: ChatClient) -> None:
    await client.post("bob", "work")
    lease = await client.lease("bob", ttl_s=0.05)
    another = await client.lease("bob", wait_s=10)
    assert [each.id for each in another.messages] == [each.id for each in lease.messages]
    assert [each.deliveries for each in another.messages] == [2]
    with pytest.raises(LeaseOver):
        await lease.acknowledge()
    with pytest.raises(LeaseOver):
        await lease.extend(5)
    assert await lease.release() == 0


async def test_a_lease_with_a_lost_answer_is_delivered_again(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        await client.post("bob", "work")
        between.lose = 1
        async with client.lease("bob", ttl_s=0.2, wait_s=5) as lease:
            assert [message.text for message in lease.messages] == ["work"]
            between.lose = 1
        assert between.lose == 0
        assert await client.read("bob") == []


async def test_a_lease_released_elsewhere_ends_without_an_error(
    client: ChatClient,
) -> None:
    await client.post("bob", "hello")
    async with client.lease("bob") as lease:
        assert lease.name is not None
        assert await client.release("bob", lease.name) == 1
        assert len(await client.read("bob")) == 1
        assert await lease.release() == 0


async def test_a_wait_for_a_lease_goes_on_over_many_requests(
    start_service: StartService, new_client: NewClient
) -> None:
    client = new_client(base_of(await start_service(max_wait_s=0.05)))
    waiting = asyncio.ensure_future(client.lease("bob", limit=1, wait_s=20))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await client.post("bob", "hello")
    async with await waiting as lease:
        assert [message.text for message in lease.messages] == ["hello"]
    assert (await client.lease("bob", wait_s=0.1)).name is None


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


# Leases that extend themselves


def paths_of(heads: list[str]) -> list[str]:
    """Return the last part of the path of each request."""
    return [head.split(" ")[1].partition("?")[0].rpartition("/")[2] for head in heads]


async def test_a_lease_in_a_block_outlives_its_first_time(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        posted = await client.post("bob", "work", receipt=True)

        async def is_extended_thrice() -> bool:
            return paths_of(between.heads).count("extend") > 2

        async with client.lease("bob", ttl_s=0.5) as lease:
            assert len(lease.messages) == 1
            await eventually(is_extended_thrice)
            lease.check()
            assert (await client.status(posted.id, posted.receipt or "")).status == "leased"
        count = paths_of(between.heads).count("extend")
        assert (await client.status(posted.id, posted.receipt or "")).status == "read"
        await asyncio.sleep(0.6)
        assert paths_of(between.heads).count("extend") == count


async def test_a_lost_lease_is_reported_to_its_block(
    service: Service, new_client: NewClient
) -> None:
    client, thief = new_client(base_of(service)), new_client(base_of(service))
    ids = [(await client.post("bob", text)).id for text in "ab"]
    done = []

    async def work() -> None:
        async with client.lease("bob", ttl_s=0.5) as lease:
            assert lease.name is not None
            for message in lease:
                done.append(message.text)
                assert await thief.release("bob", lease.name) == 2
                assert len((await thief.lease("bob")).messages) == 2
                await eventually(lambda: is_lost(lease))

    with pytest.raises(LeaseOver) as raised:
        await work()
    assert done == ["a"]
    assert sorted(raised.value.lost) == ids


async def is_lost(lease: Lease) -> bool:
    """Return whether a lease is known to be lost."""
    try:
        lease.check()
    except LeaseOver:
        return True
    return False


async def test_a_lease_that_cannot_be_extended_ends_on_time(
    service: Service, new_client: NewClient
) -> None:
    unavailable = answer(503, b'{"type": "urn:chat:problem:unavailable", "detail": "is down"}')
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        await client.post("bob", "work")
        lease = await client.lease("bob", ttl_s=0.5)
        async with lease:
            lease.check()
            between.answers = [unavailable] * 1000
            await eventually(lambda: is_lost(lease))
            with pytest.raises(LeaseOver, match="is down"):
                lease.check()
            between.answers = []
            # The service may grant it after all, as long as it has not ended it.
            await lease.release()

        async def is_unread() -> bool:
            return await client.count("bob") == 1

        await eventually(is_unread)


async def test_a_failed_extension_is_tried_again(service: Service, new_client: NewClient) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        await client.post("bob", "work")
        async with client.lease("bob", ttl_s=3) as lease:
            assert len(lease.messages) == 1
            between.answers = [answer(503), b""]

            async def is_extended_thrice() -> bool:
                return paths_of(between.heads).count("extend") > 2

            await eventually(is_extended_thrice)
            lease.check()
        assert await client.read("bob") == []


async def test_acknowledging_everything_is_no_lost_lease(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        await client.post("bob", "work")
        async with client.lease("bob", ttl_s=0.2) as lease:
            assert await lease.acknowledge(lease.messages[0].id) == 1
            await asyncio.sleep(0.5)
            lease.check()
        assert paths_of(between.heads).count("ack") == 1


def test_a_lease_without_messages_is_not_extended() -> None:
    flow = HeldLease(Grant("bob", "ab", 30.0, time.monotonic() + 30, [], False)).keep()
    assert isinstance(next(flow), Pause)
    with pytest.raises(StopIteration):
        next(flow)


# Dead letters


@pytest.mark.settings(max_deliveries=2)
async def test_a_dead_letter_says_where_it_comes_from(client: ChatClient) -> None:
    posted = await client.post("bob", "poison", 600, receipt=True)
    for deliveries in (1, 2):
        lease = await client.lease("bob", wait_s=60)
        assert [each.deliveries for each in lease.messages] == [deliveries]
        assert lease.messages[0].dead is None
        await lease.release()
    inbox = await client.dead_letter_inbox("bob")
    assert inbox == "dead/bob"
    async with client.lease(inbox, wait_s=60) as lease:
        (letter,) = lease.messages
        assert letter.text == "poison"
        assert letter.dead == Origin("bob", posted.id, 2)
    assert (await client.status(posted.id, posted.receipt or "")).status == "dead"


POISON = 5


@pytest.mark.settings(max_deliveries=3)
@pytest.mark.parametrize("names_each", [False, True])
async def test_only_the_job_in_hand_dies_of_its_exceptions(
    client: ChatClient, names_each: bool
) -> None:
    ids = [(await client.post("jobs", str(number), 600)).id for number in range(12)]
    done: set[str] = set()
    failures = 0
    while len(done) < len(ids) - 1 or failures < 3:
        try:
            async with client.lease("jobs", wait_s=10) as lease:
                for message in lease:
                    if message.id == ids[POISON]:
                        raise ZeroDivisionError
                    assert message.deliveries == 1
                    done.add(message.id)
                    if names_each:
                        await lease.acknowledge(message.id)
        except ZeroDivisionError:
            failures += 1
    assert (done, failures) == ({*ids} - {ids[POISON]}, 3)
    inbox = await client.dead_letter_inbox("jobs")
    assert inbox is not None
    (letter,) = (await client.lease(inbox, wait_s=60)).messages
    assert letter.dead == Origin("jobs", ids[POISON], 3)
    assert (await client.lease("jobs")).name is None


async def test_all_messages_count_once_they_are_in_hand(client: ChatClient) -> None:
    async def counts(begin: Callable[[Lease], object]) -> list[int]:
        """Return the deliveries of three messages, after the block of their lease has raised."""
        for text in "abc":
            await client.post("bob", text)
        with suppress(ZeroDivisionError):
            async with client.lease("bob") as lease:
                begin(lease)
                raise ZeroDivisionError
        async with client.lease("bob") as lease:
            return [message.deliveries for message in lease]

    assert await counts(lambda _: None) == [1, 1, 1]
    assert await counts(lambda lease: next(iter(lease))) == [2, 1, 1]
    assert await counts(list) == [2, 2, 2]
    assert await counts(lambda lease: lease.messages) == [2, 2, 2]


async def test_a_block_acknowledges_only_what_it_has_received(client: ChatClient) -> None:
    ids = [(await client.post("bob", text)).id for text in "abc"]
    async with client.lease("bob") as lease:
        for message in lease:
            if message.text == "b":
                break
    async with client.lease("bob") as lease:
        pass
    rest = await client.lease("bob")
    assert [(each.id, each.deliveries) for each in rest.messages] == [(ids[2], 1)]


async def test_a_job_that_failed_comes_back_after_its_delay(client: ChatClient) -> None:
    later, soon, other = [(await client.post("bob", text)).id for text in "abc"]
    async with client.lease("bob") as lease:
        assert len(lease.messages) == 3
        assert await lease.release(later, delay_s=3600) == 1
        assert await lease.release(other) == 1
        assert [each.id for each in await client.read("bob")] == [other]
        assert await lease.release([soon], delay_s=0.3, delivered=False) == 1
    again = await client.lease("bob", wait_s=20)
    assert [(each.id, each.deliveries) for each in again.messages] == [(soon, 1)]
    assert again.name is not None
    assert await client.release("bob", again.name, delay_s=3600) == 1
    assert await client.release("bob", again.name, delay_s=3600) == 1
    with pytest.raises(ProblemError, match="delay must be a number of seconds"):
        await client.release("bob", again.name, delay_s=-1)


async def test_a_release_says_whether_its_messages_were_delivered(client: ChatClient) -> None:
    ids = [(await client.post("bob", text)).id for text in "abcd"]
    lease = await client.lease("bob")
    first, second, *_ = lease.messages
    assert await lease.release([first.id, second.id], delivered=False) == 2
    assert lease.name is not None
    assert await client.release("bob", lease.name, ids[2], delivered=False) == 1
    assert await client.release("bob", lease.name, ids[3]) == 1
    assert [each.deliveries for each in (await client.lease("bob")).messages] == [1, 1, 1, 2]
