"""The service behind a mongos: each route of the API reaches the owner of its inbox, and no other.

Every inserted message leaves an orphan, and the router refuses a write that is not targeted.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from tests.conftest import Connect, StartService
from tests.mongos.router import Router, Statement
from tests.mongos.test_store import SWEEPS
from tests.support.client import ChatClient
from tests.support.events import EventStream
from tests.support.waiting import eventually
from workers.routing import route_of
from workers.store.schema import COLLECTION, READS

#: What each route sends: commands and collections. Those of maintenance may be among them.
FIND, UPDATE, INSERT = (("find", COLLECTION), ("update", COLLECTION), ("insert", COLLECTION))
COUNT, KEPT = ("aggregate", COLLECTION), ("insert", READS)

Ask: TypeAlias = Callable[..., Awaitable[Any]]


class Observed:
    """Calls routes for one inbox, and checks what each of them sends."""

    def __init__(self, chat: ChatClient, router: Router, username: str) -> None:
        self._chat = chat
        self._router = router
        self._name = username
        self._owner = {route_of(username) >> 12 & 1}

    async def ask(
        self,
        method: str,
        path: str,
        *sent: tuple[str, str],
        body: dict[str, object] | list[object] | None = None,
        **headers: str,
    ) -> Any:
        """Call a route, which must send these statements. Returns its answer."""
        before = len(self._router.statements)
        data = None if body is None else json.dumps(body).encode()
        answer = await self._chat.request(method, path, data, **headers)
        assert answer.code < 300, (path, answer.code, answer.body)
        self.check(path, self._router.statements[before:], *sent)
        return json.loads(answer.body) if answer.body else answer.headers

    def check(self, what: str, statements: list[Statement], *sent: tuple[str, str]) -> None:
        """Check that statements include these, and that those for the inbox reach its owner."""
        assert {(each.command, each.collection) for each in statements} >= set(sent), what
        for each in statements:
            if each.is_write and each.collection == COLLECTION:
                assert each.reach.shards == self._owner, (what, str(each))
            if each.filter.get("username") == self._name:
                assert each.reach.is_targeted, (what, str(each))
                assert each.reach.shards == self._owner, (what, str(each))


def post_of(username: str, **fields: object) -> dict[str, object]:
    """Return the body of a post."""
    return {"text": "hello", "username": username, **fields}


@pytest.mark.parametrize("username", ["amy", "bob"], ids=["first shard", "second shard"])
async def test_every_route_is_targeted(
    router: Router, start_service: StartService, connect: Connect, username: str
) -> None:
    router.leaves_orphans = True
    service = await start_service(mongo_uri=router.uri)
    chat = connect(service)
    observed = Observed(chat, router, username)
    ask = observed.ask
    inbox = f"/chat/{username}"
    # Posts, counts, and plain reads.
    await ask("POST", "/chat", INSERT, body=post_of(username))
    batch: list[object] = [post_of(username), post_of(username)]
    assert "id" in (await ask("POST", "/chat/batch", INSERT, body=batch))["results"][1]
    assert (await ask("HEAD", inbox, COUNT))["X-Unread-Count"] == "3"
    assert len(await ask("GET", f"{inbox}?limit=1", FIND, UPDATE)) == 1
    assert len(await ask("POST", f"{inbox}/read", FIND, UPDATE, body={})) == 2
    assert await ask("GET", inbox, FIND) == []
    # Keys.
    key = f"a-key-of-{username}-that-nobody-guesses"
    first = await ask("POST", "/chat", UPDATE, body=post_of(username), Idempotency_Key=key)
    repeat = await ask("POST", "/chat", UPDATE, FIND, body=post_of(username), Idempotency_Key=key)
    assert repeat == first
    read = await ask("GET", inbox, FIND, UPDATE, KEPT, Idempotency_Key=f"another-{key}")
    assert [each["id"] for each in read] == [first["id"]]
    assert await ask("GET", inbox, FIND, Idempotency_Key=f"another-{key}") == read
    # Leases.
    for text in ("one", "two"):
        await ask("POST", "/chat", INSERT, body=post_of(username, text=text))
    taken = await ask("POST", f"{inbox}/lease?ttl=20", FIND, UPDATE, body={})
    lease, ids = taken["lease"], [each["id"] for each in taken["messages"]]
    await ask("POST", f"{inbox}/extend", UPDATE, body={"lease": lease, "ttl": 25})
    await ask("POST", f"{inbox}/ack", UPDATE, body={"lease": lease, "ids": ids[:1]})
    await ask("POST", f"{inbox}/release", UPDATE, body={"lease": lease})
    taken = await ask("POST", f"{inbox}/lease", FIND, UPDATE, body={})
    assert await ask("POST", f"{inbox}/ack", UPDATE, body={"lease": taken["lease"]})
    # It expires in its delay.
    await ask("POST", "/chat", INSERT, body=post_of(username, timeout=5))
    taken = await ask("POST", f"{inbox}/lease", FIND, UPDATE, body={})
    await ask("POST", f"{inbox}/release", UPDATE, body={"lease": taken["lease"], "delay": 3600})
    # Receipts.
    sent = await chat.request(
        "POST", "/chat", json.dumps(post_of(username)).encode(), Prefer="receipt"
    )
    receipt, path = sent.headers["X-Receipt"], f"/messages/{json.loads(sent.body)['id']}"
    before = len(router.statements)
    assert (await ask("GET", f"{path}/status", FIND, X_Receipt=receipt))["status"] == "pending"
    await ask("DELETE", path, FIND, UPDATE, X_Receipt=receipt)
    looks = [each for each in router.statements[before:] if "_id" in each.filter]
    assert [len(each.reach.shards) for each in looks] == [1] * len(looks)
    # A stream, and its continuation.
    await stream(chat, observed, router, service.port, username)
    broadcasts = [each for each in router.untargeted() if (each.command, each.hint) not in SWEEPS]
    # A look at the new database, before the first index.
    assert {(each.command, len(each.filter)) for each in broadcasts} <= {("find", 0)}
    await check_accounting(chat)


async def stream(
    chat: ChatClient, observed: Observed, router: Router, port: int, username: str
) -> None:
    """Read a message from a stream, and acknowledge it with the next one."""
    before = len(router.statements)
    async with EventStream(port, username) as events:
        message_id = await chat.post(username, "streamed")
        while (event := await events.next()).name != "message":
            pass
        assert event.id == message_id
    async with EventStream(port, username, last_event_id=event.id):

        async def is_read() -> bool:
            return await chat.texts(username) == [] and await chat.metric(READ) == 7

        await eventually(is_read)
    observed.check("stream", router.statements[before:], INSERT, FIND, UPDATE)


READ = "chat_messages_read_total"


async def check_accounting(chat: ChatClient) -> None:
    """Wait until every accepted message has ended, and is counted once."""
    accepted = await chat.metric("chat_messages_accepted_total")

    async def is_complete() -> bool:
        ended = [await chat.metric(f"chat_messages_{each}_total") for each in ENDS]
        return sum(ended) == accepted and await chat.metric("chat_messages_pending") == 0

    await eventually(is_complete)


ENDS = ("read", "expired_unread", "revoked")


async def test_waits_batches_and_expiry_work_over_both_shards(
    router: Router, start_service: StartService, connect: Connect
) -> None:
    router.leaves_orphans = True
    services = [await start_service(mongo_uri=router.uri) for _ in range(2)]
    one, other = map(connect, services)
    names = [f"user{number}" for number in range(20)]
    assert {route_of(name) >> 12 & 1 for name in names} == {0, 1}
    waits = [asyncio.create_task(one.texts(name, "?wait=20")) for name in names]

    async def all_wait() -> bool:
        return await one.metric("chat_waiters") == len(names)

    await eventually(all_wait)
    batch = json.dumps([post_of(name) for name in names]).encode()
    assert (await other.request("POST", "/chat/batch", batch)).code == 200
    assert await asyncio.gather(*waits) == [["hello"]] * len(names)
    # What nobody reads is counted once, by one of the two.
    for name in names:
        await one.post(name, "soon over", lifetime_s=1)

    async def all_expired() -> bool:
        counts = [await each.metric("chat_messages_expired_unread_total") for each in (one, other)]
        return sum(counts) == len(names)

    await eventually(all_expired)
    assert [str(each) for each in router.untargeted() if each.is_write] == []
