"""The database stops answering in the middle of an operation: the store never claims to know."""

from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from tests.conftest import OpenStore
from tests.store.conftest import MakePost, Messages
from tests.support.stores import new_batch, new_claim
from tests.support.waiting import eventually
from workers.clock import DatabaseClock
from workers.commands import Acknowledge, Key, KeyedBatch, MessageStatus, Revoke, Track
from workers.errors import OutcomeUnknown, Rejected, StoreUnavailable
from workers.store import idempotent_reads, inserts, raw_commands, targeted
from workers.store import mongo as mongo_store
from workers.store.base import Settled
from workers.store.confirmations import Primary
from workers.store.driver import note_sent
from workers.store.layout import NEWEST
from workers.store.mongo import MongoStore
from workers.store.schema import COLLECTION, OBSOLETE, describe_duplicates, drop_obsolete


class Silent:
    """A collection that answers no search and no count."""

    async def count_documents(self, *_: object, **__: object) -> int:
        raise AutoReconnect("the connection was reset")

    def aggregate(self, *_: object, **__: object) -> Any:
        raise AutoReconnect("the connection was reset")


async def leased(store: MongoStore, new_post: MakePost, clock: DatabaseClock) -> tuple[str, ...]:
    """Lease two messages as the lease `ours`. Return their ids."""
    posts = [new_post(), new_post()]
    await store.insert(posts)
    ids = tuple(post.id for post in posts)
    claim = new_claim(["bob"], ids, clock.now_ms(), lease_ms=60_000)
    await store.claim(claim)
    return claim.token.partition(".")[0], *ids


async def test_an_ack_reports_only_what_it_changed(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, *ids = await leased(store, new_post, clock)
    await store.acknowledge(Acknowledge("bob", lease, tuple(ids[:1])), clock.now_ms())
    monkeypatch.setattr(store, "_majority", Silent())
    both = Acknowledge("bob", lease, tuple(ids))
    assert await store.acknowledge(both, clock.now_ms()) == Settled(1, 1)
    with pytest.raises(StoreUnavailable):
        await store.acknowledge(both, clock.now_ms())


async def test_a_repeated_ack_without_a_count_is_unknown(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease, *ids = await leased(store, new_post, clock)
    confirmed = store._confirmed

    async def repeated(name: str, write: Any) -> tuple[Any, bool]:
        return (await confirmed(name, write))[0], True

    with monkeypatch.context() as patched:
        patched.setattr(store, "_confirmed", repeated)
        patched.setattr(store, "_majority", Silent())
        with pytest.raises(OutcomeUnknown):
            await store.acknowledge(Acknowledge("bob", lease, tuple(ids)), clock.now_ms())
    counts: dict[str, int] = {}

    async def are_counted() -> bool:
        for event, messages in (await store.count_resolved()).items():
            counts[event] = counts.get(event, 0) + messages
        return counts == {"read": 2}

    await eventually(are_counted)


@pytest.mark.parametrize("was_repeated", [False, True])
async def test_a_revocation_without_effect_is_no_success(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    was_repeated: bool,
) -> None:
    post, late = new_post(receipt="r"), []
    await store.insert([post])

    async def without_effect(name: str, write: Any) -> tuple[int, bool]:
        late.append(write)
        return 0, was_repeated

    with monkeypatch.context() as patched:
        patched.setattr(store, "_confirmed", without_effect)
        with pytest.raises(StoreUnavailable, match="try again"):
            await store.revoke(Revoke(post.id, "r"), clock.now_ms())
    assert await late[0]() == (not was_repeated), "a copy that arrives now would make it false"
    assert not store._unresolved


@pytest.mark.parametrize(
    ("was_repeated", "raised"), [(False, StoreUnavailable), (True, OutcomeUnknown)]
)
async def test_a_revocation_whose_status_is_lost_is_no_success(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    was_repeated: bool,
    raised: type[Exception],
) -> None:
    async def without_effect(name: str, write: Any) -> tuple[int, bool]:
        return 0, was_repeated

    async def is_lost(command: Track, now_ms: int) -> MessageStatus | None:
        raise StoreUnavailable("no primary")

    post = new_post(receipt="r")
    await store.insert([post])
    monkeypatch.setattr(store, "_confirmed", without_effect)
    monkeypatch.setattr(store, "track", is_lost)
    with pytest.raises(raised, match="no primary"):
        await store.revoke(Revoke(post.id, "r"), clock.now_ms())
    assert len(store._unresolved) == was_repeated


async def test_a_count_that_fails_is_repeated(
    store: MongoStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = new_post()
    await store.insert([post])
    store._record_unresolved("accepted", {"_id": post.id})
    store._unresolved[:] = [store._unresolved[0]._replace(due=0.0)]
    with monkeypatch.context() as patched:
        patched.setattr(store, "_majority", Silent())
        assert await store.count_resolved() == {}
    assert await store.count_resolved() == {"accepted": 1}
    assert await store.count_resolved() == {}


async def test_a_sweep_that_fails_in_the_middle_is_repeated(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, kept = new_post(timeout_s=1), new_post(timeout_s=1, receipt="r")
    await store.insert([plain, kept])
    mark, failing = store._mark_expired, [True]

    async def fails_for_kept(selection: dict[str, Any], hint: str) -> int:
        if "kept" in selection and failing:
            failing.clear()
            raise StoreUnavailable("no primary")
        return await mark(selection, hint)

    monkeypatch.setattr(store, "_mark_expired", fails_for_kept)
    later_ms = clock.now_ms() + 10_000
    assert [await store.expire(later_ms) for _ in range(3)] == [1, 1, 0]


async def test_a_failed_lease_sweep_is_counted_later(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await leased(store, new_post, clock)
    real = raw_commands.update

    async def fails_once(
        database: Any, collection: str, selections: Any, change: Any, *arguments: Any
    ) -> int:
        changed = await real(database, collection, selections, change, *arguments)
        if isinstance(change, dict) and "expired" in change["$set"]:
            raise AutoReconnect("the reply was lost")
        return changed

    later_ms = clock.now_ms() + 120_000
    with monkeypatch.context() as patched:
        patched.setattr(targeted, "update", fails_once)
        ended = await store.end_leases(later_ms)
    assert (ended.returned, ended.expired) == (0, 0)
    store._unresolved[:] = [each._replace(due=0.0) for each in store._unresolved]
    assert await store.count_resolved() == {"expired": 2}


async def test_batches_discarded_again_and_again_are_an_error(
    store: MongoStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = clock.now_ms()
    batch = new_batch("key", "bob", ("a",), now_ms + 60_000)
    await store.record_batch([batch], now_ms)

    async def discarded(keys: Any, now_ms: int) -> dict[str, KeyedBatch]:
        return {}

    monkeypatch.setattr(idempotent_reads, "_DECISIONS_MAX", 3)
    monkeypatch.setattr(store, "find_batches", discarded)
    with pytest.raises(StoreUnavailable, match="discarded repeatedly"):
        await store.record_batch([batch], now_ms)


async def test_duplicate_keys_are_reported_without_a_listing() -> None:
    reason = await describe_duplicates(Silent(), NEWEST)  # type: ignore[arg-type]
    assert reason.startswith("several messages have the same idempotency key; remove")


@pytest.mark.parametrize(("code", "is_raised"), [(27, False), (13, True)])
async def test_an_obsolete_index_may_be_gone_already(code: int, is_raised: bool) -> None:
    class Indexes:
        async def drop_index(self, name: str) -> None:
            raise OperationFailure("refused", code)

    (name,) = OBSOLETE[COLLECTION]
    database: Any = {COLLECTION: Indexes()}
    try:
        await drop_obsolete(database, [f"{COLLECTION}.{name}"])
    except PyMongoError:
        assert is_raised
    else:
        assert not is_raised


class Faulty:
    """A collection with one method replaced; all others are those of the real collection."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def fails_first(real: Any, *errors: PyMongoError, applies: bool = False) -> Any:
    """Return a method that raises these errors, one per call, and then works.

    Calls that fail count as sent. With `applies`, the failing calls take effect before they raise.
    """
    remaining = list(errors)

    async def method(*arguments: Any, **options: Any) -> Any:
        if not remaining:
            return await real(*arguments, **options)
        if applies:
            await real(*arguments, **options)
        note_sent()
        raise remaining.pop(0)

    return method


def write_error(code: int) -> BulkWriteError:
    """Return the error of a bulk write whose first write failed with this code."""
    return BulkWriteError({"writeErrors": [{"index": 0, "code": code, "errmsg": "refused"}]})


async def test_an_insert_that_may_have_arrived_stays_unknown(
    open_store: OpenStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(timeout_s=1.0)
    lost, gone = AutoReconnect("reset"), ServerSelectionTimeoutError("no primary")
    insert = fails_first(raw_commands.insert, lost, *[gone] * 1000)
    monkeypatch.setattr(inserts, "insert", insert)
    (outcome,) = await store.insert([new_post()])
    assert isinstance(outcome, OutcomeUnknown), "the first attempt may have stored it"


async def test_a_claim_that_was_never_sent_is_a_refusal(
    store: MongoStore, new_post: MakePost, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = new_post()
    await store.insert([post])
    update = fails_first(raw_commands.update, ServerSelectionTimeoutError("no primary"))
    monkeypatch.setattr(targeted, "update", update)
    claim = new_claim(["bob"], [post.id], clock.now_ms())
    with pytest.raises(StoreUnavailable):
        await store.claim(claim)
    assert (await store.claim(claim)).ids == {post.id}


async def test_a_keyed_post_that_cannot_be_stored_is_rejected(
    store: MongoStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store._messages
    # 10334: the document is larger than the database allows.
    bulk_write = fails_first(real.bulk_write, write_error(10334))
    monkeypatch.setattr(store, "_messages", Faulty(real, bulk_write=bulk_write))
    (outcome,) = await store.insert([new_post(key=Key("k", "b"))])
    assert isinstance(outcome, Rejected)


async def test_a_key_whose_message_was_just_deleted_is_stored(
    store: MongoStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch, mongo: Messages
) -> None:
    real = store._messages
    bulk_write = fails_first(real.bulk_write, write_error(11000))
    monkeypatch.setattr(store, "_messages", Faulty(real, bulk_write=bulk_write))
    assert await store.insert([new_post(key=Key("k", "b"))]) == [None]
    assert mongo.count_documents({}) == 1


async def test_an_unconfirmed_keyed_post_is_confirmed_by_its_key(
    store: MongoStore, new_post: MakePost, monkeypatch: pytest.MonkeyPatch, mongo: Messages
) -> None:
    real = store._messages
    unconfirmed = BulkWriteError(
        {
            "upserted": [{"index": 0, "_id": "x"}],
            "writeConcernErrors": [{"code": 64, "errmsg": "waiting for replication timed out"}],
        }
    )
    bulk_write = fails_first(real.bulk_write, unconfirmed, applies=True)
    monkeypatch.setattr(store, "_messages", Faulty(real, bulk_write=bulk_write))
    assert await store.insert([new_post(key=Key("k", "b"))]) == [None]
    assert mongo.count_documents({}) == 1


@pytest.mark.parametrize(("failures", "is_found"), [(1, True), (2, False)])
async def test_a_search_is_repeated_once_if_its_connection_fails(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
    is_found: bool,
) -> None:
    await store.insert([new_post()])
    find = fails_first(raw_commands.find, *[AutoReconnect("reset")] * failures)
    monkeypatch.setattr(mongo_store, "find", find)
    if is_found:
        assert (await store.find_unread(["bob"], 10, clock.now_ms())).messages
    else:
        with pytest.raises(StoreUnavailable):
            await store.find_unread(["bob"], 10, clock.now_ms())


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_search_asks_the_next_primary_if_its_own_is_gone(
    store: MongoStore,
    new_post: MakePost,
    clock: DatabaseClock,
    monkeypatch: pytest.MonkeyPatch,
    is_replaced: bool,
) -> None:
    await store.insert([new_post()])
    (address,) = store._client.topology_description.server_descriptions()  # type: ignore[union-attr]
    gone = Primary(("gone.invalid", 1), "1")
    primaries = iter([gone, Primary(address, "2"), Primary(address, "2")] if is_replaced else [])
    monkeypatch.setattr(store, "_primary", lambda: next(primaries, gone))
    find = fails_first(raw_commands.find, ServerSelectionTimeoutError("gone"))
    monkeypatch.setattr(mongo_store, "find", find)
    if is_replaced:
        found = await store.find_unread(["bob"], 10, clock.now_ms())
        assert (len(found.messages), found.term) == (1, "2")
    else:
        with pytest.raises(StoreUnavailable):
            await store.find_unread(["bob"], 10, clock.now_ms())
