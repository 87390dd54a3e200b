"""The client at a service with access control, limits and quotas: errors with types, no losses."""

import asyncio
from pathlib import Path

import pytest

from chat_inbox import (
    Forbidden,
    InboxFull,
    RateLimited,
    Unauthorized,
)
from chat_inbox.errors import problem_of
from chat_service.service import Service
from tests.clients_python.conftest import NewClient
from tests.conftest import StartService
from tests.support.access import TOKENS, everybody, write
from tests.support.middleman import base_of
from tests.support.waiting import eventually

NEEDS = 'it needs the right to read "alice"'


async def test_rights_decide_what_a_client_may_do(guarded: Service, new_client: NewClient) -> None:
    async with new_client(base_of(guarded), token=TOKENS["bob"]) as bob:
        posted = await bob.post("alice", "hi", receipt=True)
        assert posted.receipt is not None
        assert (await bob.status(posted.id, posted.receipt)).status == "pending"
        for refused in (bob.read("alice"), bob.count("alice"), bob.lease("alice")):
            with pytest.raises(Forbidden):
                await refused
        with pytest.raises(Forbidden):
            await anext(bob.stream("alice"))
    async with new_client(base_of(guarded), token=TOKENS["eve"]) as eve:
        allowed, forbidden = await eve.post_batch([("eve", "to myself"), ("bob", "x")])
        assert not isinstance(allowed, Exception)
        assert isinstance(forbidden, Forbidden)
    for token in (None, TOKENS["nobody"]):
        async with new_client(base_of(guarded), token=token) as stranger:
            with pytest.raises(Unauthorized):
                await stranger.post("alice", "x")
            with pytest.raises(Unauthorized):
                await stranger.count("alice")
            with pytest.raises(Unauthorized):
                await anext(stranger.stream("alice"))
    async with new_client(base_of(guarded), token=TOKENS["alice"]) as alice:
        assert [message.text for message in await alice.read("alice")] == ["hi"]


async def test_an_error_names_the_missing_right(guarded: Service, new_client: NewClient) -> None:
    async with new_client(base_of(guarded), token=TOKENS["bob"]) as bob:
        for refused in (
            bob.read("alice"),
            bob.lease("alice"),
            bob.extend("alice", "x", 1),
            bob.acknowledge("alice", "x"),
            bob.release("alice", "x"),
            anext(bob.stream("alice")),
        ):
            with pytest.raises(Forbidden) as raised:
                await refused
            assert raised.value.needs == 'read "alice"'
            assert str(raised.value) == f"403 forbidden: {raised.value.detail}; {NEEDS}"
        # The answer to a HEAD request has no body.
        for head in (bob.count("alice"), bob.dead_letter_inbox("alice")):
            with pytest.raises(Forbidden) as raised:
                await head
            assert str(raised.value) == f"403 Forbidden: {NEEDS}"
    async with new_client(base_of(guarded), token=TOKENS["eve"]) as eve:
        with pytest.raises(Forbidden) as raised:
            await eve.post("bob", "x")
        _, in_batch = await eve.post_batch([("eve", "to myself"), ("bob", "x")])
        assert isinstance(in_batch, Forbidden)
        assert in_batch.needs == raised.value.needs == 'send to "bob"'


@pytest.mark.parametrize(
    ("status", "text"),
    [(400, "400 Bad Request"), (503, "503 Service Unavailable"), (599, "599 unknown status")],
)
def test_an_answer_without_a_body_has_a_text(status: int, text: str) -> None:
    assert str(problem_of(status, b"")) == text


async def test_a_stream_outlives_its_first_token(
    guarded: Service, access_file: Path, new_client: NewClient
) -> None:
    given: list[str] = []

    def token() -> str:
        given.append(TOKENS["root" if given else "bob"])
        return given[-1]

    async with (
        new_client(base_of(guarded), token=TOKENS["root"]) as sender,
        new_client(base_of(guarded), token=token) as client,
    ):
        await sender.post("bob", "first", 600)
        stream = client.stream("bob")
        assert (await anext(stream)).text == "first"
        # Acknowledges the first message, and waits.
        waiting = asyncio.ensure_future(anext(stream))
        write(access_file, everybody(bob="-"))

        async def is_renewed() -> bool:
            return len(given) == 2

        await eventually(is_renewed)
        await sender.post("bob", "second", 600)
        assert (await waiting).text == "second"
        await stream.acknowledge()
        await stream.close()
        assert await sender.count("bob") == 0


async def test_a_stream_of_a_revoked_token_says_so(
    guarded: Service, access_file: Path, new_client: NewClient
) -> None:
    async with new_client(base_of(guarded), token=TOKENS["bob"]) as client:
        stream = client.stream("bob")
        waiting = asyncio.ensure_future(anext(stream))
        write(access_file, everybody(bob="-"))
        with pytest.raises(Unauthorized):
            await waiting


async def test_a_client_beyond_its_rate_is_told_when(
    start_service: StartService, new_client: NewClient
) -> None:
    # Nothing accrues during the test.
    service = await start_service(client_requests_per_s=0.001, client_burst=3)
    async with new_client(base_of(service)) as client:
        for _ in range(3):
            await client.post("bob", "x")
        with pytest.raises(RateLimited) as raised:
            await client.post("bob", "x")
        assert raised.value.retry_after_s > 30
        with pytest.raises(RateLimited):
            await client.count("bob")


async def test_the_client_reports_a_full_inbox_and_loses_nothing(
    start_service: StartService, new_client: NewClient
) -> None:
    service = await start_service(inbox_messages_max=8)
    async with new_client(base_of(service)) as client:
        results = [
            result
            for number in range(40)
            for result in await client.post_batch([("bob", str(number))])
        ]
        stored = [result for result in results if not isinstance(result, Exception)]
        refused = [result for result in results if isinstance(result, Exception)]
        assert len(stored) + len(refused) == 40
        assert stored
        assert refused
        assert {type(error) for error in refused} == {InboxFull}
        with pytest.raises(InboxFull, match="nothing was stored"):
            await client.post("bob", "x")
        assert len(await client.read("bob")) == len(stored)
