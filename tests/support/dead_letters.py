"""Messages that become dead letters, and the steps of their moves, for tests of the store."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tests.support.stores import new_claim
from workers.commands import Claim, Post, Release, Unread, delivery
from workers.dead_letters import DeadLetters
from workers.errors import StoreUnavailable
from workers.store.mongo import MongoStore

#: How long a lease lasts, and a dead letter lives at least.
LEASE_MS = 10_000
HOUR_MS = 3_600_000
#: A message dies after its second lease.
TWICE = DeadLetters(max_deliveries=2)
#: The methods of the store that carry out the steps of a move.
STEPS = ("_mark", "_copy", "_end")


async def lease(store: MongoStore, posts: Sequence[Post], now_ms: int, name: str = "ours") -> Claim:
    """Lease messages under a lease of this name."""
    claim = new_claim(["bob"], [post.id for post in posts], now_ms, lease_ms=LEASE_MS)
    claim = replace(claim, token=delivery(name))
    assert (await store.claim(claim)).ids == {post.id for post in posts}
    return claim


async def exhaust(store: MongoStore, posts: Sequence[Post], now_ms: int) -> Claim:
    """Store messages and lease them twice. The second lease lasts."""
    await store.insert(posts)
    await lease(store, posts, now_ms, "first")
    assert (await store.release(Release("bob", "first"), now_ms)).messages == len(posts)
    return await lease(store, posts, now_ms)


async def letters(store: MongoStore, now_ms: int, username: str = "dead/bob") -> list[Unread]:
    """Return the unread messages of an inbox."""
    return list((await store.find_unread([username], 1000, now_ms)).messages.get(username, ()))


async def fails(*_: Any) -> Any:
    """Stand in for a step: the node dies before it."""
    raise StoreUnavailable("the node is killed here")
