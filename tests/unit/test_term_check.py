"""Searches that a deposed primary may have answered: no read is answered before that is known."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.support.pools import post, texts
from tests.support.stores import GateStore
from tests.support.waiting import eventually
from tests.unit.conftest import MakePool
from workers.commands import Lease, Slice, delivery
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.pool import WorkerPool
from workers.store.base import Found, Term
from workers.term_check import TermCheck

KEY = "k" * 64


@dataclass
class TermStore(GateStore):
    """Each search and each confirmation takes the next term of its list; the last one stays."""

    found_in: list[Term | None] = field(default_factory=lambda: ["1"])
    confirmed_in: list[Term | StoreUnavailable | Exception] = field(default_factory=lambda: ["1"])

    @property
    def has_terms(self) -> bool:
        return True

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        term = self.found_in[0] if len(self.found_in) == 1 else self.found_in.pop(0)
        found = await super().find_unread(usernames, limit, now_ms)
        return found._replace(term=term)

    async def confirm(self) -> Term | None:
        await self._pass("confirm")
        await self._call("confirm")
        confirmed = self.confirmed_in[0]
        if len(self.confirmed_in) > 1:
            del self.confirmed_in[0]
        if isinstance(confirmed, Exception):
            raise confirmed
        return confirmed


async def until_unread(pool: WorkerPool, username: str) -> None:
    """Wait until a rollback has made the messages of an inbox unread again."""

    async def is_unread() -> bool:
        return await pool.count(username) > 0

    await eventually(is_unread)


async def test_a_read_is_answered_once_it_is_confirmed(make_pool: MakePool) -> None:
    store = TermStore(shut={"confirm"})
    pool = await make_pool(store)
    await post(pool, "bob")
    read, empty = pool.read("bob"), pool.read("eve")
    await store.reached()

    async def is_claimed() -> bool:
        return store.calls["claim"] == 1

    await eventually(is_claimed)
    await asyncio.sleep(0)
    assert not read.done(), "the messages may not be all"
    assert not empty.done(), "the inbox may not be empty"
    store.open()
    assert texts(await read) == ["x"]
    assert await empty == Slice((), False)
    assert store.calls["confirm"] == 1, "one for the whole batch"


async def test_an_empty_read_waits_for_no_claim(make_pool: MakePool) -> None:
    store = TermStore(shut={"claim"})
    pool = await make_pool(store)
    await post(pool, "bob")
    read, empty = pool.read("bob"), pool.read("eve")
    assert await empty == Slice((), False)
    assert not read.done()
    store.open()
    assert texts(await read) == ["x"]


async def test_a_search_without_a_term_needs_no_confirmation(make_pool: MakePool) -> None:
    store = TermStore(found_in=[None], confirmed_in=[StoreUnavailable("no majority")])
    pool = await make_pool(store)
    await post(pool, "bob")
    assert texts(await pool.read("bob")) == ["x"]
    assert await pool.read("bob") == Slice((), False)


async def test_an_empty_read_of_an_old_term_searches_again(make_pool: MakePool) -> None:
    store = TermStore(found_in=["1", "2"], confirmed_in=["2"])
    pool = await make_pool(store)
    assert await pool.read("bob") == Slice((), False)
    assert store.calls["find"] == 2
    assert store.calls["confirm"] == 2, "a confirmation proves nothing about a later search"


async def test_an_unconfirmed_empty_read_is_refused(make_pool: MakePool) -> None:
    store = TermStore(confirmed_in=[StoreUnavailable("no majority"), "1"])
    pool = await make_pool(store)
    with pytest.raises(StoreUnavailable, match="no majority"):
        await pool.read("bob")
    assert await pool.read("bob") == Slice((), False)


async def test_reads_without_a_majority_open_the_breaker(make_pool: MakePool) -> None:
    reason = StoreUnavailable("no primary", is_unavailable=True)
    pool = await make_pool(TermStore(away=True, confirmed_in=[reason]))
    with pytest.raises(StoreUnavailable, match="no primary"):
        await pool.read("bob")

    async def is_refused() -> bool:
        return pool._breaker.is_open

    await eventually(is_refused)


async def test_a_bug_in_a_confirmation_fails_one_batch(make_pool: MakePool) -> None:
    pool = await make_pool(TermStore(confirmed_in=[ZeroDivisionError("a bug"), "1"]))
    with pytest.raises(StoreUnavailable, match="internal error: ZeroDivisionError"):
        await pool.read("bob")
    assert await pool.read("bob") == Slice((), False)


@pytest.mark.parametrize("lease", [None, Lease(delivery("lease"), 30_000)], ids=["plain", "lease"])
@pytest.mark.parametrize("confirmed", ["2", StoreUnavailable("no majority")], ids=["later", "none"])
async def test_claims_of_an_old_term_are_rolled_back(
    make_pool: MakePool, lease: Lease | None, confirmed: Term | StoreUnavailable
) -> None:
    store = TermStore(confirmed_in=[confirmed, "1"])
    pool = await make_pool(store)
    await post(pool, "bob")
    with pytest.raises(OutcomeUnknown):
        await pool.read("bob", lease=lease)
    await until_unread(pool, "bob")
    assert texts(await pool.read("bob")) == ["x"]


@pytest.mark.parametrize("confirmed", ["2", StoreUnavailable("no majority")], ids=["later", "none"])
async def test_a_key_gets_no_messages_of_an_old_term(
    make_pool: MakePool, confirmed: Term | StoreUnavailable
) -> None:
    store = TermStore(confirmed_in=[confirmed, "1"], shut={"confirm"})
    pool, other = await make_pool(store), await make_pool(store)
    await post(pool, "bob", "old")
    read = pool.read_keyed("bob", KEY)
    await store.reached()
    # What a deposed primary would not have found.
    await post(other, "bob", "new")
    store.open()
    if isinstance(confirmed, StoreUnavailable):
        with pytest.raises(StoreUnavailable):
            await read
        read = pool.read_keyed("bob", KEY)
    assert sorted(texts(await read)) == ["new", "old"]
    assert store.calls["record_batch"] == 1


async def test_the_twin_of_a_key_gets_no_empty_answer_early(make_pool: MakePool) -> None:
    store = TermStore(confirmed_in=["2", "1"])
    pool = await make_pool(store)
    await post(pool, "bob")
    reads = await asyncio.gather(pool.read_keyed("bob", KEY), pool.read("bob"))
    assert sorted(map(texts, reads)) == [[], ["x"]]
    assert store.calls["confirm"] == store.calls["find"] > 1, "no answer came of the old term"


async def test_a_round_that_is_cancelled_leaves_no_task() -> None:
    """Not even if nothing but the confirmation is left of it."""
    store = TermStore(shut={"confirm"})

    async def serve() -> None:
        async with TermCheck(store):
            pass

    serving = asyncio.create_task(serve())
    await store.reached()
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait((serving,))
    assert serving.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
