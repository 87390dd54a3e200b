"""A node dies, stops or pauses while it leads: another one leads, and all messages are counted."""

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pymongo import MongoClient

from tests.conftest import StartService
from tests.support.client import ChatClient
from tests.support.server import Server
from tests.support.waiting import eventually
from workers.store.base import Leader, PendingCount
from workers.store.mongo import MongoStore

Fleet: TypeAlias = MongoClient[dict[str, Any]]
#: Longer than a lease and the looks of a follower.
TAKE_OVER_S = 20
ENDS = ("read", "expired_unread", "revoked")


class Nodes:
    """Two nodes on one database. The first one leads."""

    def __init__(self, servers: list[Server], fleet: Fleet, database: str) -> None:
        self.servers = servers
        self.chats = [ChatClient(server.base) for server in servers]
        self._fleet = fleet[database]["fleet"]

    def lease(self) -> dict[str, Any]:
        """Return the leader lease."""
        found = self._fleet.find_one({"_id": "leader"})
        assert found is not None
        return found

    def leads(self, number: int) -> bool:
        """Return whether the lease names a node."""
        return str(self.lease()["node"]).endswith(f"/{self.servers[number].process.pid}")

    async def taken_over(self) -> dict[str, Any]:
        """Wait until the second node leads. Return its lease."""

        async def is_done() -> bool:
            return self.leads(1) and await self.chats[1].metric("chat_leader") == 1

        await eventually(is_done, TAKE_OVER_S)
        return self.lease()


async def ends_of(chat: ChatClient) -> int:
    """Return how many messages ended by the counters of a node."""
    return sum([int(await chat.metric(f"chat_messages_{end}_total")) for end in ENDS])


async def expired_of(chat: ChatClient) -> int:
    """Return how many expired messages a node has counted."""
    return int(await chat.metric("chat_messages_expired_unread_total"))


@pytest.fixture
def nodes(mongo_uri: str, database: str, tmp_path: Path) -> Iterator[Nodes]:
    """Two nodes on one database; the first to start leads."""
    servers = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = ("--mongo-uri", mongo_uri)
        servers.append(Server(folder, *arguments, CHAT_MONGO_DATABASE=database))
    with servers[0], servers[1], MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        started = Nodes(servers, client, database)
        assert started.leads(0)
        yield started
        for chat in started.chats:
            chat.close()


async def test_a_killed_leader_is_replaced_and_all_is_counted(nodes: Nodes) -> None:
    leader, other = nodes.chats
    for number in range(20):
        await other.post("bob", f"dies early {number}", 1)

    async def is_counted() -> bool:
        return await expired_of(leader) == 20

    await eventually(is_counted)
    assert await expired_of(other) == 0
    before, lease = await ends_of(leader), nodes.lease()
    nodes.servers[0].process.kill()
    nodes.servers[0].wait()
    for number in range(20):
        await other.post("bob", f"dies late {number}", 1)
        await other.post("eve", f"lives {number}", 600)
    leased = await other.request("POST", "/chat/eve/lease?ttl=1&limit=5")
    assert leased.code == 200
    new = await nodes.taken_over()
    assert new["since"] >= lease["until"], "it waited for the end of the lease"

    async def adds_up() -> bool:
        accepted = await other.metric("chat_messages_accepted_total")
        pending = await other.metric("chat_messages_pending")
        # The sum is also right before the new leader counts the expired messages: they are pending
        # until then.
        return await expired_of(other) == 20 and await ends_of(other) + before + pending == accepted

    await eventually(adds_up, 30)

    async def has_all() -> bool:
        return int((await other.request("HEAD", "/chat/eve")).headers["X-Unread-Count"]) == 20

    await eventually(has_all)
    assert len(await other.texts("eve")) == 20


async def test_a_paused_leader_follows_when_it_continues(nodes: Nodes) -> None:
    leader, other = nodes.chats
    await other.post("bob", "seen by both", 600)
    nodes.servers[0].signal(signal.SIGSTOP)
    try:
        for _ in range(20):
            await other.post("bob", "x", 1)
        await nodes.taken_over()
    finally:
        nodes.servers[0].signal(signal.SIGCONT)

    async def follows() -> bool:
        return await leader.metric("chat_leader") == 0

    await eventually(follows)
    assert nodes.leads(1)

    async def is_counted() -> bool:
        return await expired_of(leader) + await expired_of(other) == 20

    await eventually(is_counted)

    async def both_know() -> bool:
        return [await chat.metric("chat_messages_pending") for chat in nodes.chats] == [1, 1]

    await eventually(both_know, 30)
    assert await expired_of(leader) + await expired_of(other) == 20


async def test_a_leader_that_stops_leaves_the_lease_free(nodes: Nodes) -> None:
    nodes.servers[0].signal(signal.SIGTERM)
    assert nodes.servers[0].wait() == 0
    lease = nodes.lease()
    assert lease["until"] == datetime.fromtimestamp(0, UTC) or nodes.leads(1)
    await nodes.taken_over()


async def test_two_nodes_that_both_lead_count_all_once(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lead(store: MongoStore, pending: PendingCount | None) -> Leader:
        until_ms = store._clock.now_ms() + 6000
        return Leader("both", True, until_ms, pending or PendingCount(None, 0, 0))

    monkeypatch.setattr(MongoStore, "lead", lead)
    services = [await start_service(), await start_service()]
    chats = [ChatClient(f"http://127.0.0.1:{service.port}") for service in services]
    assert all(service._pool.leader == "both" for service in services)
    await asyncio.gather(*(chat.post("bob", "x", 2) for chat in chats for _ in range(60)))
    await asyncio.gather(*(chat.post("eve", "x", 3) for chat in chats for _ in range(30)))
    await chats[0].request("POST", "/chat/eve/lease?ttl=1&limit=20")
    await chats[1].request("POST", "/chat/eve/lease?ttl=60&limit=20")

    async def is_counted() -> bool:
        return sum([await expired_of(chat) for chat in chats]) >= 180

    await eventually(is_counted, 20)
    # Both sweep once more.
    for service in services:
        await service._pool._maintenance._expire()
        await service._pool._maintenance._end_leases()
    assert sum([await expired_of(chat) for chat in chats]) == 180
    assert await services[0]._store.count_pending() == 0
    for chat in chats:
        chat.close()
