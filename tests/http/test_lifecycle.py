"""The metrics account for every message, over all nodes and despite lost replies."""

import asyncio
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.conftest import Connect, StartService
from tests.support.client import ChatClient
from tests.support.proxy import MongoProxy
from tests.support.waiting import eventually
from workers.pending import pause_after_count

USERS = ("ann", "bob", "cy")
MAX_DELIVERIES = 2


async def live(chat: ChatClient, seed: int, steps: int) -> None:
    """Send the requests of a client, and ignore failures."""
    rng = random.Random(seed)
    receipts: list[tuple[str, str]] = []
    for number in range(steps):
        user, key = rng.choice(USERS), f"{seed}-{number}-{'k' * 22}"
        fields = {"text": key, "username": user, "timeout": rng.choice((1, 600))}
        body = json.dumps(fields).encode()
        match rng.choice(("post", "post", "keyed post", "receipt", "read", "keyed read", "lease")):
            case "post":
                await chat.request("POST", "/chat", body)
            case "keyed post":
                for _ in range(3):
                    answer = await chat.request("POST", "/chat", body, Idempotency_Key=key)
                    if answer.code == 201:
                        break
            case "receipt":
                answer = await chat.request("POST", "/chat", body, Prefer="receipt")
                if answer.code == 201:
                    sent = json.loads(answer.body)["id"]
                    receipts.append((sent, answer.headers["X-Receipt"]))
                if receipts and rng.random() < 0.5:
                    message_id, receipt = rng.choice(receipts)
                    await chat.request("DELETE", f"/messages/{message_id}", X_Receipt=receipt)
            case "read":
                await chat.request("GET", f"/chat/{user}?limit={rng.randint(1, 5)}&wait=0.05")
            case "keyed read":
                for _ in range(3):
                    path = f"/chat/{user}?limit=3"
                    answer = await chat.request("GET", path, Idempotency_Key=key)
                    if answer.code == 200:
                        break
            case "lease":
                path = f"/chat/{user}/lease?ttl={rng.choice((0.2, 60))}&limit=5"
                answer = await chat.request("POST", path, b"")
                if answer.code == 200:
                    lease = json.loads(answer.body)["lease"]
                    asked = json.dumps({"lease": lease or "0"}).encode()
                    end = rng.choice(("ack", "ack", "release", "nothing"))
                    await chat.request("POST", f"/chat/{user}/{end}", asked)


async def accepts(chat: ChatClient) -> bool:
    """Return whether a service stores a message."""
    body = b'{"text": "x", "username": "nobody"}'
    return (await chat.request("POST", "/chat", body)).code == 201


async def exhaust(chat: ChatClient) -> None:
    """Lease a message, and release it, as often as it takes to become a dead letter."""
    await chat.post("poisoned", "x", 600)
    for _ in range(MAX_DELIVERIES):
        answer = await chat.request("POST", "/chat/poisoned/lease?wait=5", b"")
        asked = json.dumps({"lease": json.loads(answer.body)["lease"]}).encode()
        assert (await chat.request("POST", "/chat/poisoned/release", asked)).code == 200


@pytest.mark.parametrize("losses", [0.0, 0.05], ids=["no fault", "lost replies"])
async def test_accepted_is_all_that_ended_and_what_is_pending(
    start_service: StartService,
    connect: Connect,
    mongo_uri: str,
    database: str,
    tmp_path: Path,
    losses: float,
) -> None:
    async with MongoProxy(mongo_uri, tmp_path) as proxy:
        changes = {"mongo_timeout_s": 1.0, "max_deliveries": MAX_DELIVERIES}
        services = [await start_service(mongo_uri=proxy.uri, **changes) for _ in range(2)]
        nodes = [connect(service) for service in services]

        async def lose() -> None:
            """Lose some replies, then all for a while, so that outcomes stay unknown."""
            for rate, seconds in ((losses, 0.5), (float(losses > 0), 1.5), (losses, 0.0)):
                proxy.lose_rate = dict.fromkeys(("insert", "update", "find"), rate)
                await asyncio.sleep(seconds)

        await asyncio.gather(lose(), *(live(nodes[n % 2], n, 25) for n in range(8)))
        proxy.lose_rate = {}
        for node in nodes:
            # It may still take the database for unavailable.
            await eventually(partial(accepts, node))
        await exhaust(nodes[0])
        for each in (1, 600):
            # Ensure that at least one message expires and one is revoked.
            body = json.dumps({"text": "x", "username": "nobody", "timeout": each}).encode()
            answer = await nodes[0].request("POST", "/chat", body, Prefer="receipt")
        path = f"/messages/{json.loads(answer.body)['id']}"
        await nodes[1].request("DELETE", path, X_Receipt=answer.headers["X-Receipt"])
        with MongoClient[dict[str, Any]](mongo_uri) as client:
            messages = client[database]["messages"]

            async def sum_of(name: str) -> int:
                return int(sum([await node.metric(name) for node in nodes]))

            async def is_balanced() -> bool:
                stored = await asyncio.to_thread(messages.count_documents, {})
                unread = await asyncio.to_thread(
                    messages.count_documents,
                    {"$or": [{"unread": True}, {"lease.until": {"$exists": True}}]},
                )
                accepted = await sum_of("chat_messages_accepted_total")
                ended = [
                    await sum_of(f"chat_messages_{fate}_total")
                    for fate in ("read", "expired_unread", "revoked", "dead")
                ]
                # The values are from different moments, so compare until they agree.
                return 0 < accepted == stored == sum(ended) + unread and all(ended)

            await eventually(is_balanced, 20)
            unknown = await sum_of("chat_outcomes_unknown_total")
            assert (unknown > 0) == (losses > 0)
        for service in services:
            await service.stop()


async def test_pending_messages_are_known_from_the_start(
    start_service: StartService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pool._FIRST_COUNT_S", 20.0)
    first = await start_service()
    for _ in range(3):
        await connect(first).post("bob", "x")
    await first.stop()
    assert await connect(await start_service()).metric("chat_messages_pending") == 3


@pytest.mark.parametrize(
    ("seconds", "pause"), [(0.01, 1), (0.5, 50), (5.5, 60), (60, 600)], ids=str
)
def test_a_slow_pending_count_is_repeated_less_often(seconds: float, pause: float) -> None:
    assert pause_after_count(seconds) == pytest.approx(pause)
