"""A write that was never sent is refused, at any timeout. One that may be sent is unknown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from tests.conftest import OpenStore
from tests.store.conftest import MakePost
from tests.support.proxy import MongoProxy
from tests.support.stores import new_batch, new_claim
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.commands import Acknowledge, Extend, Key, Release
from workers.errors import OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store import inserts, raw_commands
from workers.store.mongo import MongoStore

#: Less than the driver searches for a server, 2 s.
SHORT_S = 1.0
#: The connections that the driver opens at most.
CONNECTIONS = 16

BehindProxy: TypeAlias = Callable[[], AbstractAsyncContextManager[tuple[MongoStore, MongoProxy]]]
Attempt: TypeAlias = Callable[[MongoStore], Awaitable[Mapping[str, object]]]


@pytest.fixture
def behind_proxy(mongo_uri: str, tmp_path: Path, open_store: OpenStore) -> BehindProxy:
    """Opens a store with a short timeout, whose connections go through a proxy."""

    @asynccontextmanager
    async def make() -> AsyncIterator[tuple[MongoStore, MongoProxy]]:
        async with MongoProxy(mongo_uri, tmp_path) as proxy:
            store = await open_store(uri=proxy.uri)
            store._timeout_s = SHORT_S
            try:
                yield store, proxy
            finally:
                proxy.release()
                await store.close()

    return make


@pytest.fixture
def attempt(new_post: MakePost, clock: DatabaseClock) -> Attempt:
    """Carries out a write of each kind at once, and returns their errors or results."""

    async def post(store: MongoStore, key: Key | None = None) -> None:
        (outcome,) = await store.insert([new_post(key=key)])
        if isinstance(outcome, ServiceError):
            raise outcome

    async def make(store: MongoStore) -> Mapping[str, object]:
        now_ms = clock.now_ms()
        batch = new_batch("k", "a", ["1"], now_ms + 60_000)
        writes: dict[str, Awaitable[object]] = {
            "post": post(store),
            "post with a key": post(store, Key("k", "b")),
            "claim": store.claim(new_claim(["a"], ["1"], now_ms)),
            "lease": store.claim(new_claim(["a"], ["1"], now_ms, lease_ms=60_000)),
            "claim of a key": store.claim(new_claim(["a"], ["1"], now_ms, key="k")),
            "acknowledgement": store.acknowledge(Acknowledge("a", "1", ("1",)), now_ms),
            "release": store.release(Release("a", "1", ("1",)), now_ms),
            "extension": store.extend(Extend("a", "1", 60_000), now_ms),
            "batch of a key": store.record_batch([batch], now_ms),
            "delivery of a batch": store.mark_delivered(batch),
        }
        results = await asyncio.gather(*writes.values(), return_exceptions=True)
        return dict(zip(writes, results, strict=True))

    return make


async def notice(store: MongoStore) -> None:
    """Let the driver notice that its connections are closed."""
    with suppress(ServiceError):
        await store.count_unread(["bob"], 0)


async def test_writes_without_a_primary_are_refused(
    behind_proxy: BehindProxy, attempt: Attempt
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.leave()
        await notice(store)
        for write, error in (await attempt(store)).items():
            assert isinstance(error, StoreUnavailable), (write, error)
            assert error.is_unavailable, f"{write}: no other operation will find a primary either"


async def test_a_search_without_a_primary_opens_the_breaker(
    behind_proxy: BehindProxy, clock: DatabaseClock
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.leave()
        await notice(store)
        with pytest.raises(StoreUnavailable) as raised:
            await store.find_unread(["bob"], 10, clock.now_ms())
        assert raised.value.is_unavailable


async def test_writes_whose_connection_hangs_are_refused(
    behind_proxy: BehindProxy, attempt: Attempt
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.freeze_new()
        await notice(store)
        before = proxy.sent.copy()
        for write, error in (await attempt(store)).items():
            assert isinstance(error, StoreUnavailable), (write, error)
        assert all(proxy.sent[name] == before[name] for name in ("insert", "update"))


# Motor has fewer threads than connections.
@pytest.mark.parametrize("driver", ["pymongo"])
async def test_writes_without_a_free_connection_are_refused(
    behind_proxy: BehindProxy, attempt: Attempt, clock: DatabaseClock
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.hold["aggregate"] = b""
        store._timeout_s = 60
        counts = [
            asyncio.create_task(store.count_unread(["bob"], clock.now_ms()))
            for _ in range(CONNECTIONS)
        ]

        async def are_taken() -> bool:
            return proxy.holding == CONNECTIONS

        await eventually(are_taken)
        store._timeout_s = SHORT_S
        for write, error in (await attempt(store)).items():
            assert isinstance(error, StoreUnavailable), (write, error)
            assert not error.is_unavailable, f"{write}: the database may be well"
        proxy.release()
        await asyncio.gather(*counts)


@pytest.mark.parametrize("is_cut", [False, True], ids=["held", "cut off"])
async def test_writes_that_are_not_answered_are_unknown(
    behind_proxy: BehindProxy, attempt: Attempt, is_cut: bool
) -> None:
    async with behind_proxy() as (store, proxy):
        proxy.hold |= {"insert": b"", "update": b""}
        store._timeout_s = 3
        attempting = asyncio.ensure_future(attempt(store))
        kinds = 10

        async def are_held() -> bool:
            return proxy.holding == kinds

        await eventually(are_held)
        if is_cut:
            proxy.leave()
        results = await attempting
        assert len(results) == kinds
        for write, error in results.items():
            assert isinstance(error, OutcomeUnknown), (write, error)


async def test_a_post_waits_for_a_connection_until_its_deadline(
    behind_proxy: BehindProxy, new_post: MakePost
) -> None:
    async with behind_proxy() as (store, proxy):
        store._timeout_s = 20
        proxy.refuse_new(2)
        await notice(store)
        proxy.refuse_new(2)
        assert await store.insert([new_post(), new_post(key=Key("k", "b"))]) == [None, None]


async def test_a_lost_command_of_a_batch_makes_all_of_it_unknown(
    open_store: OpenStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(timeout_s=SHORT_S)
    monkeypatch.setattr(inserts, "_COMMAND_BYTES", 1)
    calls = 0

    async def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await raw_commands.insert(*arguments)
            raise AutoReconnect("the connection was lost")
        raise ServerSelectionTimeoutError("no primary")

    monkeypatch.setattr(inserts, "insert", fails)
    outcomes = await store.insert([new_post(), new_post()])
    assert [type(each) for each in outcomes] == [OutcomeUnknown, OutcomeUnknown]
