"""The guarantees of the clients: nothing is lost or repeated, and errors have types."""

from typing import Any

import pytest

from chat_inbox import (
    COUNT_MAX,
    ChatClient,
    ChatError,
    Draft,
    FieldError,
    Message,
    OutcomeUnknown,
    Posted,
    ProblemError,
    ServiceUnavailable,
    SyncChatClient,
)
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.support.middleman import Middleman, answer


async def test_posted_messages_are_counted_and_read(client: ChatClient) -> None:
    posted = await client.post("a/b é", "hello", 3600)
    assert posted.receipt is None
    assert await client.count("a/b é") == 1
    assert await client.read("a/b é") == [Message("hello", posted.id)]
    assert await client.count("a/b é") == 0
    for text in "xyz":
        await client.post("bob", text)
    assert [message.text for message in await client.read("bob", limit=2)] == ["x", "y"]


@pytest.mark.parametrize("name", ["100%", "%2F", "a/../b", "...", " ", "?x=1#y", "🐘", "a+b&c;d"])
async def test_any_username_reaches_its_own_inbox(client: ChatClient, name: str) -> None:
    posted = await client.post(name, "x")
    assert await client.count(name) == 1
    assert await client.read(name) == [Message("x", posted.id)]


@pytest.mark.parametrize("name", [".", ".."])
async def test_a_username_of_dots_is_refused(client: ChatClient, name: str) -> None:
    for asked in (client.read(name), client.count(name)):
        with pytest.raises(ProblemError) as raised:
            await asked
        assert raised.value.status == 400


async def test_a_read_whose_answer_is_lost_loses_nothing(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        posted = [await client.post("bob", text) for text in "abc"]
        between.lose = 2
        assert [message.id for message in await client.read("bob")] == [each.id for each in posted]
        assert between.lose == 0
        assert await client.read("bob") == []


async def test_a_post_whose_answer_is_lost_is_one_message(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        between.lose = 2
        posted = await client.post("bob", "once", receipt=True)
        assert between.lose == 0
        assert posted.receipt is not None
        assert (await client.status(posted.id, posted.receipt)).status == "pending"
        assert await client.read("bob") == [Message("once", posted.id)]


async def test_a_client_that_was_closed_says_so(client: ChatClient) -> None:
    await client.post("bob", "x")
    async with client:
        lease = await client.lease("bob")
    with pytest.raises(RuntimeError, match="closed"):
        await client.read("bob")
    with pytest.raises(RuntimeError, match="closed"):
        client.stream("bob")
    with pytest.raises(RuntimeError, match="closed"):
        await lease.acknowledge()


async def test_posts_with_one_key_are_one_message(client: ChatClient) -> None:
    first = await client.post("bob", "x", key="order 66")
    assert not first.is_replayed
    again = await client.post("bob", "x", key="order 66")
    assert (again.id, again.is_replayed) == (first.id, True)
    with pytest.raises(ProblemError) as raised:
        await client.post("bob", "y", key="order 66")
    assert (raised.value.status, raised.value.kind) == (422, "key-reused")
    with pytest.raises(ProblemError, match="with another text, timeout or delay"):
        await client.post("bob", "x", 90, key="order 66")
    assert await client.count("bob") == 1


async def test_a_text_must_be_str(client: ChatClient) -> None:
    text: Any = b"x"
    with pytest.raises(TypeError, match="a text must be str, not bytes"):
        await client.post("bob", text)
    with pytest.raises(TypeError, match="a text must be str, not bytes"):
        await client.post_batch([("bob", text)])


async def test_each_of_many_posts_gets_its_answer(client: ChatClient) -> None:
    stored, refused, other = await client.post_batch(
        [("bob", "1"), Draft("bob", "2", timeout_s=0), ("eve", "3", 60)], receipt=True
    )
    assert isinstance(stored, Posted)
    assert isinstance(other, Posted)
    assert isinstance(refused, ProblemError)
    assert (refused.status, [error.field for error in refused.errors]) == (400, ["timeout"])
    assert stored.receipt is not None
    assert (await client.status(stored.id, stored.receipt)).status == "pending"
    assert await client.read("bob") == [Message("1", stored.id)]
    assert await client.read("eve") == [Message("3", other.id)]


async def test_posts_beyond_one_batch_are_stored_once_and_in_order(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        between.lose = 1
        posted = await client.post_batch(("bob", str(number)) for number in range(501))
        read = await client.read("bob")
        assert [message.text for message in read] == [str(number) for number in range(501)]
        assert [each.id for each in posted if isinstance(each, Posted)] == [m.id for m in read]


async def test_requests_to_an_absent_service_are_retried(new_client: NewClient) -> None:
    async with Middleman(0) as between:
        base = between.base
    client = new_client(base, tries=2)
    for asked in (client.post("bob", "x"), client.read("bob"), client.count("bob")):
        with pytest.raises(ServiceUnavailable, match=f"no answer from {base}: .*refused"):
            await asked
    assert [type(each) for each in await client.post_batch([("bob", "x")])] == [ServiceUnavailable]


async def test_a_busy_service_is_asked_again(service: Service, new_client: NewClient) -> None:
    busy = answer(503, b'{"type": "urn:chat:problem:overloaded"}')
    async with Middleman(service.port) as between:
        client = new_client(between.base, tries=3)
        between.answers = [busy, busy]
        posted = await client.post("bob", "x")
        between.answers = [busy]
        assert await client.read("bob") == [Message("x", posted.id)]
        between.answers = [busy] * 3
        with pytest.raises(ServiceUnavailable) as raised:
            await client.post("bob", "never")
        assert raised.value.answer is not None
        assert raised.value.answer.type == "urn:chat:problem:overloaded"
        assert await client.count("bob") == 0


async def test_a_full_disk_does_not_settle_an_unknown_outcome(
    service: Service, new_client: NewClient
) -> None:
    unknown = answer(503, b'{"type": "urn:chat:problem:outcome-unknown", "stored": "unknown"}')
    full = answer(507, b'{"type": "urn:chat:problem:storage-full", "stored": false}')
    async with Middleman(service.port) as between:
        client = new_client(between.base, tries=3)
        between.answers = [unknown, full]
        with pytest.raises(OutcomeUnknown):
            await client.post("bob", "x")
        between.answers = [full]
        with pytest.raises(ProblemError) as refused:
            await client.post("bob", "x")
        assert (refused.value.status, refused.value.kind) == (507, "storage-full")


async def test_an_outcome_that_stays_unknown_is_settled_by_its_key(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base, tries=2)
        between.lose = 2
        with pytest.raises(OutcomeUnknown) as posting:
            await client.post("bob", "x")
        between.lose = 2
        with pytest.raises(OutcomeUnknown) as reading:
            await client.read("bob")
        posted = await client.post("bob", "x", key=posting.value.key)
        assert await client.read("bob") == []
        again = await client.read("bob", key=reading.value.key)
        assert again == [Message("x", posted.id)]
        between.lose = 2
        (unknown,) = await client.post_batch([("bob", "y")])
        assert isinstance(unknown, OutcomeUnknown)
        await client.post_batch([("bob", "y")], key=unknown.key)
        assert [message.text for message in await client.read("bob")] == ["y"]


@pytest.mark.parametrize("length", [1, 245, 246, 255])
async def test_a_key_of_any_length_is_one_for_many_posts(client: ChatClient, length: int) -> None:
    for _ in range(2):
        (posted,) = await client.post_batch([("bob", "hello")], key="k" * length)
        assert isinstance(posted, Posted)
    assert len(await client.read("bob")) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "ü" * 250])
async def test_an_invalid_key_is_refused_and_not_replaced(client: ChatClient, key: str) -> None:
    for asked in (client.post("bob", "x", key=key), client.read("bob", key=key)):
        with pytest.raises(ProblemError, match="Idempotency-Key"):
            await asked
    (posted,) = await client.post_batch([("bob", "x")], key=key)
    assert isinstance(posted, ProblemError)
    assert "Idempotency-Key" in posted.detail


async def test_a_key_cannot_forge_a_header(client: ChatClient) -> None:
    for key in ("a\r\nX-Injected: yes", "a\0b"):
        with pytest.raises(ValueError, match="not valid HTTP"):
            await client.post("bob", "x", key=key)
    assert await client.count("bob") == 0


@pytest.mark.parametrize("kind", [ChatClient, SyncChatClient])
@pytest.mark.parametrize("base", ["localhost:8080", "", "ftp://host", "http://", "//host"])
def test_an_invalid_address_is_refused_at_once(
    kind: type[ChatClient] | type[SyncChatClient], base: str
) -> None:
    with pytest.raises(ValueError, match="must begin with"):
        kind(base)


async def test_problems_have_a_type_and_name_their_fields(client: ChatClient) -> None:
    with pytest.raises(ProblemError) as raised:
        await client.post("bob", "x", 0)
    problem = raised.value
    assert (problem.status, problem.kind) == (400, "invalid-request")
    assert problem.type == "urn:chat:problem:invalid-request"
    rule = "must be an integer from 1 to 2592000"
    assert problem.errors == (FieldError("timeout", rule),)
    assert problem.title
    assert problem.instance
    assert problem.detail == f"timeout {rule}"
    with pytest.raises(ProblemError, match="username"):
        await client.read("x" * 129)
    with pytest.raises(ProblemError, match="username"):
        await anext(client.stream("x" * 129))
    with pytest.raises(ProblemError) as raised:
        await client.count("x" * 129)
    assert raised.value.status == 400


async def test_an_answer_of_another_program_is_an_error(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base, tries=1)
        for body in (b"", b"<html>", b"[]", b'{"id": {}', b"[" * 100_000, b'{"results": [{}]}'):
            for call in ("read", "lease"):
                between.answers = [answer(200, body)]
                if (call, body) == ("read", b"[]"):
                    continue
                with pytest.raises(ChatError, match="not from a chat service"):
                    await getattr(client, call)("bob")
            between.answers = [answer(200, body)]
            (result,) = await client.post_batch([("bob", "x")])
            assert isinstance(result, ChatError)


# Many unread messages


async def test_a_count_beyond_the_maximum_is_one_more(
    service: Service, new_client: NewClient
) -> None:
    async with Middleman(service.port) as between:
        client = new_client(between.base)
        between.answers = [answer(200, b"", b"X-Unread-Count: >10000")]
        assert await client.count("bob") == COUNT_MAX + 1


# Receipts


async def test_a_sender_follows_a_message_and_takes_it_back(client: ChatClient) -> None:
    posted = await client.post("bob", "lunch?", receipt=True)
    assert posted.receipt is not None
    assert await client.status(posted.id, posted.receipt) == ("pending", None)
    assert await client.revoke(posted.id, posted.receipt)
    assert await client.revoke(posted.id, posted.receipt)
    assert (await client.status(posted.id, posted.receipt)).status == "revoked"
    assert await client.read("bob") == []


async def test_a_message_that_was_read_cannot_be_revoked(client: ChatClient) -> None:
    posted = await client.post("bob", "lunch?", receipt=True)
    assert posted.receipt is not None
    await client.read("bob")
    assert not await client.revoke(posted.id, posted.receipt)
    status, at = await client.status(posted.id, posted.receipt)
    assert status == "read"
    assert at is not None
    assert at.utcoffset() is not None
    for asked in (client.revoke(posted.id, "another"), client.status(posted.id, "another")):
        with pytest.raises(ProblemError) as raised:
            await asked
        assert (raised.value.status, raised.value.kind) == (404, "not-found")


# Delays


async def test_a_delayed_message_is_scheduled_until_its_time(client: ChatClient) -> None:
    posted = await client.post("bob", "later", delay_s=600.5, receipt=True)
    assert posted.receipt is not None
    status, due = await client.status(posted.id, posted.receipt)
    assert status == "scheduled"
    assert due is not None
    assert await client.read("bob") == []
    assert await client.revoke(posted.id, posted.receipt)
    soon = await client.post("bob", "soon", delay_s=0.1)
    assert await client.wait("bob", 60) == [Message("soon", soon.id)]


async def test_drafts_of_a_batch_have_delays(client: ChatClient) -> None:
    results = await client.post_batch([Draft("bob", "1", None, 600), Draft("bob", "2", delay_s=-1)])
    assert isinstance(results[0], Posted)
    assert isinstance(results[1], ProblemError)
    assert [each.field for each in results[1].errors] == ["delay"]
    assert await client.count("bob") == 0
