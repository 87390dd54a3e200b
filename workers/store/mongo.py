"""The store on MongoDB: a batch of posts is one insert, a batch of reads one find and one claim.

The only file that catches the driver's errors; it turns them into `workers.errors`. Every write
is acknowledged by a majority and journaled before a method returns.

A claim is `findOneAndUpdate`'s guarantee for a whole batch: the filter of the update names the
very field that the update removes, so that of two nodes one gets each message. It carries a
token of its own. A lost reply is resolved, not guessed: the update is sent again, which claims
what the first one did not and waits for a majority; what carries the token then is ours. An
update that still runs on a lost connection can only add the same token, and does so before the
claim's time is over, by the database's clock. After that `release` gives back what was claimed and
came to nobody.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import bson
import pymongo
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    BulkWriteError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern

from workers.clock import DatabaseClock
from workers.commands import Claim, Message, Post
from workers.errors import OutcomeUnknown, Rejected, ServiceError, StoreUnavailable
from workers.metrics import WorkerMetrics
from workers.store.base import Claimed, Found
from workers.store.driver import Client, Document, Driver, aggregate, close_client, open_client
from workers.store.schema import COLLECTION, INBOX_INDEX, PURGE_INDEX, ensure_indexes

#: A reply holds at most 16 MiB, and MongoDB cuts a longer one without a word. From so many code
#: points on (8 MiB of UTF-8 at most), a search counts as not complete.
REPLY_CHARS_MAX = 2 << 20
#: The largest document that MongoDB holds.
DOCUMENT_BYTES_MAX = 16 << 20
#: Pause before an operation whose reply was lost is repeated, in seconds.
REPEAT_AFTER_S = 0.05
#: Longest time for the answer to "are you there", in seconds.
PING_S = 1.0
#: Sweeps leave alone what expired less than this ago: clocks of nodes may differ a little.
EXPIRE_MARGIN_MS = 1000

_DUPLICATE_KEY = 11000
#: Write errors that say that the document itself is at fault; all others pass.
_UNSTORABLE = frozenset({2, 10334, 17280, 17419, 121})


class StoreMisconfigured(Exception):
    """Raised at start when the database cannot keep the promises."""


class MongoStore:
    """Messages in one collection. Safe for concurrent use within one loop."""

    def __init__(
        self,
        uri: str,
        *,
        driver: Driver,
        database: str,
        timeout_s: float,
        purge_grace_s: int,
        node: str,
        clock: DatabaseClock,
        metrics: WorkerMetrics,
    ) -> None:
        self._driver: Driver = driver
        self._uri = uri
        self._database = database
        self._timeout_s = timeout_s
        # Unread messages are kept a grace longer than they live, claimed ones half of it: no
        # claimed message then lies where `expire` looks for unread ones.
        self._unread_grace_ms = purge_grace_s * 1000
        self._claimed_grace_ms = purge_grace_s * 500
        self._node = node
        self._clock = clock
        self._metrics = metrics
        self._expired_upto_ms = 0
        self._client: Client | None = None
        self._messages: AsyncCollection[Document]
        self._linearizable: AsyncCollection[Document]
        self._inboxes: AsyncCollection[Document]

    async def open(self) -> None:
        """Connect, check the deployment and make the indexes.

        Raises `StoreUnavailable` where no primary answers in time, `StoreMisconfigured` or
        `IndexMismatch` where it does but will not do. Safe to repeat.
        """
        if self._client is None:
            self._client = open_client(self._driver, self._uri)
        self._messages = self._client[self._database][COLLECTION]
        with self._operation("open"), _read_errors():
            hello = await self._client.admin.command("hello")
            if "setName" not in hello and hello.get("msg") != "isdbgrid":
                raise StoreMisconfigured(
                    "the database is a single mongod without a replica set, which can neither "
                    "repeat a write safely nor confirm it on a majority; start it with "
                    "--replSet and run rs.initiate() once"
                )
            await ensure_indexes(self._messages)
        self._linearizable = self._messages.with_options(read_concern=ReadConcern("linearizable"))
        await self.measure_clock()

    async def close(self) -> None:
        """Close the connections. Safe twice."""
        if self._client is not None:
            await close_client(self._client)
            self._client = None

    async def insert(self, posts: Sequence[Post]) -> list[ServiceError | None]:
        """See `workers.store.base.Store.insert`."""
        outcomes: list[ServiceError | None] = [None] * len(posts)
        pending: dict[int, RawBSONDocument] = {}
        for position, post in enumerate(posts):
            try:
                # Encoded one by one: what BSON cannot hold fails alone, not with its batch.
                encoded = bson.encode(self._document(post))
            except (bson.errors.BSONError, ValueError, OverflowError) as error:
                outcomes[position] = Rejected(f"it cannot be stored: {error}")
                continue
            if len(encoded) > DOCUMENT_BYTES_MAX:
                outcomes[position] = Rejected("it cannot be stored: it is larger than a document")
                continue
            pending[position] = RawBSONDocument(encoded)
        sent_before = False
        with self._operation("insert") as deadline:
            while pending:
                failure = await self._insert_once(pending, outcomes)
                if failure is None:
                    break
                if sent_before and not isinstance(failure, OutcomeUnknown):
                    failure = OutcomeUnknown(str(failure))
                if not isinstance(failure, OutcomeUnknown) or not await _may_repeat(deadline):
                    for position in pending:
                        outcomes[position] = failure
                    break
                sent_before = True
        return outcomes

    async def _insert_once(
        self, pending: dict[int, RawBSONDocument], outcomes: list[ServiceError | None]
    ) -> ServiceError | None:
        """Try to insert what is pending; settles what it can, and says what the rest met."""
        positions = list(pending)
        try:
            await self._messages.insert_many(list(pending.values()), ordered=False)
        except BulkWriteError as error:
            details = error.details or {}
            failed: dict[int, Mapping[str, Any]] = {
                positions[entry["index"]]: entry for entry in details.get("writeErrors", ())
            }
            # Applied, but not confirmed by a majority: nothing of this try is known for good.
            unconfirmed = bool(details.get("writeConcernErrors"))
            for position in positions:
                entry = failed.get(position)
                if entry is not None and entry["code"] in _UNSTORABLE:
                    outcomes[position] = Rejected(f"it cannot be stored: {entry['errmsg']}")
                    del pending[position]
                elif not unconfirmed and (entry is None or entry["code"] == _DUPLICATE_KEY):
                    # Its id was made before the first try: a duplicate is this very message.
                    self._metrics.inserts_resolved.inc(entry is not None)
                    del pending[position]
            return OutcomeUnknown(f"the insert was interrupted: {error}") if pending else None
        except PyMongoError as error:
            return _write_failure(error)
        pending.clear()
        return None

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """See `workers.store.base.Store.find_unread`."""
        with self._operation("find"), _read_errors():
            # In the order of the index, so there is no sort. A negative limit asks for one reply
            # and an end, so that no cursor is left behind; without a batch size of its own that
            # reply would end after 101.
            # "Nothing there" is an answer too, and must not come from a primary that was deposed.
            documents = await self._inboxes.find(
                {
                    "username": _one_of(usernames),
                    "unread": True,
                    "expires_at": {"$gte": DatetimeMS(now_ms)},
                },
                projection={"username": 1, "text": 1},
                sort=[("username", 1), ("_id", 1)],
                limit=-limit,
                batch_size=limit,
                hint=INBOX_INDEX,
            ).to_list(None)
        messages: dict[str, list[Message]] = {}
        for document in documents:
            message = Message(document["text"], document["_id"])
            messages.setdefault(document["username"], []).append(message)
        chars = sum(len(document["text"]) for document in documents)
        if len(documents) < limit and chars < REPLY_CHARS_MAX:
            return Found(messages, set(usernames))
        # Cut off inside the last inbox that is here, or right behind it. Code points and
        # MongoDB's UTF-8 bytes sort alike.
        last = documents[-1]["username"]
        return Found(messages, {username for username in usernames if username < last})

    async def claim(self, claim: Claim) -> Claimed:
        """See `workers.store.base.Store.claim`."""
        selection = {"username": _one_of(claim.usernames), "_id": {"$in": claim.ids}}
        # By the database's own clock: a claim that lay in the buffers of a frozen mongod, or of
        # a cut connection, must not come into force after it was given up.
        in_time = {"$expr": {"$lt": ["$$NOW", DatetimeMS(claim.until_ms)]}}
        change = {
            "$unset": {"unread": ""},
            "$set": {
                "claim": {"token": claim.token, "at": DatetimeMS(claim.at_ms), "by": self._node}
            },
            "$min": {"purge_at": DatetimeMS(claim.at_ms + self._claimed_grace_ms)},
        }
        # Whether it may have taken effect, and whether a copy of it may still be on its way.
        was_sent, is_final = False, True
        with self._operation("claim") as deadline:
            while True:
                is_answered = False
                try:
                    result = await self._messages.update_many(
                        {**selection, "unread": True, **in_time}, change, hint="_id_"
                    )
                    is_answered = True
                    if not was_sent and result.modified_count == len(claim.ids):
                        return Claimed(set(claim.ids), is_final=True)
                    was_sent = True
                    owned = await self._claimed(selection, claim.token)
                    if not is_final:
                        self._metrics.claims_resolved.inc()
                    return Claimed(owned, is_final)
                except PyMongoError as error:
                    failure = _write_failure(error)
                    if not was_sent and isinstance(failure, StoreUnavailable):
                        raise failure from error
                    if not await _may_repeat(deadline):
                        raise OutcomeUnknown(f"the claim was not confirmed: {error}") from error
                    was_sent = True
                    is_final = is_final and is_answered

    async def release(self, claim: Claim, ids: Sequence[str]) -> int:
        """See `workers.store.base.Store.release`."""
        with self._operation("release"):
            try:
                result = await self._messages.update_many(
                    {
                        "username": _one_of(claim.usernames),
                        "_id": {"$in": list(ids)},
                        "claim.token": claim.token,
                    },
                    # A pipeline, since the purge time is that of an unread message again.
                    [
                        {
                            "$set": {
                                "unread": True,
                                "purge_at": {"$add": ["$expires_at", self._unread_grace_ms]},
                            }
                        },
                        {"$unset": "claim"},
                    ],
                    hint="_id_",
                )
            except PyMongoError as error:
                raise _write_failure(error) from error
        # They had not expired when they were claimed: `expire` looks again from there.
        self._expired_upto_ms = min(self._expired_upto_ms, claim.at_ms)
        return result.modified_count

    async def _claimed(self, selection: Document, token: str) -> set[str]:
        majority = self._messages.with_options(read_concern=ReadConcern("majority"))
        documents = await majority.find(
            {**selection, "claim.token": token}, projection={"_id": 1}, hint="_id_"
        ).to_list(None)
        return {document["_id"] for document in documents}

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        """See `workers.store.base.Store.count_unread`."""
        with self._operation("count"), _read_errors():
            groups = await aggregate(
                self._messages,
                [
                    {
                        "$match": {
                            "username": _one_of(usernames),
                            "unread": True,
                            "expires_at": {"$gte": DatetimeMS(now_ms)},
                        }
                    },
                    {"$group": {"_id": "$username", "unread": {"$sum": 1}}},
                ],
                hint=INBOX_INDEX,
            )
        return {group["_id"]: group["unread"] for group in groups}

    async def expire(self, now_ms: int) -> int:
        """See `workers.store.base.Store.expire`.

        Goes through the purge index, from where the last call ended: unread messages lie there
        a full grace behind their expiry, and claimed ones do not.
        """
        from_ms, upto_ms = self._expired_upto_ms, now_ms - EXPIRE_MARGIN_MS
        with self._operation("expire"):
            try:
                result = await self._messages.update_many(
                    {
                        "unread": True,
                        "purge_at": {
                            "$gte": DatetimeMS(from_ms + self._unread_grace_ms),
                            "$lt": DatetimeMS(upto_ms + self._unread_grace_ms),
                        },
                    },
                    {"$unset": {"unread": ""}, "$set": {"expired": True}},
                    hint=PURGE_INDEX,
                )
            except PyMongoError as error:
                raise _write_failure(error) from error
        # A release may have set it back meanwhile.
        if self._expired_upto_ms == from_ms:
            self._expired_upto_ms = upto_ms
        return result.modified_count

    async def measure_clock(self) -> None:
        """See `workers.store.base.Store.measure_clock`."""
        assert self._client is not None
        with self._operation("clock"), _read_errors():
            await self._client.admin.command("ping")
            sent_ms = self._clock.local_ms()
            hello = await self._client.admin.command("hello")
            received_ms = self._clock.local_ms()
        # Where another could have become primary without the one we ask knowing of it yet.
        has_peers = len(hello.get("hosts", ())) != 1
        self._inboxes = self._linearizable if has_peers else self._messages
        database_ms = hello["localTime"].timestamp() * 1000
        self._clock.observe(sent_ms, database_ms, received_ms)

    async def ping(self) -> None:
        """See `workers.store.base.Store.ping`.

        A linearizable read: the primary answers once a majority has confirmed that it is one.
        """
        with self._operation("ping"), _read_errors(), pymongo.timeout(PING_S):
            await self._linearizable.find_one({"_id": ""}, projection={"_id": 1})

    def _document(self, post: Post) -> Document:
        return {
            "_id": post.id,
            "username": post.username,
            "text": post.text,
            "created_at": DatetimeMS(post.created_ms),
            "expires_at": DatetimeMS(post.expires_ms),
            "purge_at": DatetimeMS(post.expires_ms + self._unread_grace_ms),
            "unread": True,
        }

    @contextmanager
    def _operation(self, name: str) -> Iterator[float]:
        """Bound an operation with all its repeats in time, and record how long it took.

        Gives the deadline, in `time.monotonic` seconds. The bound is passed on to the database
        (`maxTimeMS`), so that it does not go on with what nobody waits for.
        """
        began = time.monotonic()
        try:
            with pymongo.timeout(self._timeout_s):
                yield began + self._timeout_s
        finally:
            seconds = time.monotonic() - began
            self._metrics.store_seconds.labels(name).observe(seconds)


@contextmanager
def _read_errors() -> Iterator[None]:
    """Turn what a read meets into `StoreUnavailable`: a read changes nothing."""
    try:
        yield
    except OperationFailure as error:
        if error.code in (13, 18):  # Unauthorized, AuthenticationFailed
            raise StoreMisconfigured(f"the database refuses this user: {error}") from error
        raise StoreUnavailable(f"the database did not answer: {error}") from error
    except PyMongoError as error:
        is_away = isinstance(error, ServerSelectionTimeoutError)
        reason = f"the database did not answer: {error}"
        raise StoreUnavailable(reason, is_away=is_away) from error


def _write_failure(error: PyMongoError) -> ServiceError:
    """What a failed write means: not sent, or not known.

    A driver that repeats a write and finds no server raises what it met before. One that finds
    no free connection (WaitQueueTimeoutError) does not, and may have sent the write already.
    """
    if isinstance(error, ServerSelectionTimeoutError):
        return StoreUnavailable(f"the database was not reached: {error}", is_away=True)
    return OutcomeUnknown(f"the database's answer was lost: {error}")


async def _may_repeat(deadline: float) -> bool:
    """Pause before a repeat; False where no time is left for one."""
    if time.monotonic() + REPEAT_AFTER_S >= deadline:
        return False
    await asyncio.sleep(REPEAT_AFTER_S)
    return True


def _one_of(usernames: Sequence[str]) -> Any:
    return usernames[0] if len(usernames) == 1 else {"$in": list(usernames)}
