"""The part of `workers.store.base.Store` that stores posts: a batch is one insert.

Ids are made before the first attempt, so an insert can be repeated until it is answered: a message
that an earlier attempt has stored is a duplicate. A post with a key is an upsert of its own, which
stores nothing if there is a message with the key.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import bson
import pymongo
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from workers.commands import Post
from workers.errors import (
    InboxFull,
    IndexMissing,
    KeyReused,
    OutcomeUnknown,
    Rejected,
    ServiceError,
    StoreUnavailable,
)
from workers.routing import route_of
from workers.store.base import Insertion
from workers.store.connection import SETTLED_AFTER_S, Connection, may_repeat
from workers.store.driver import Document, tracked
from workers.store.driver_errors import MISSING, Unsent, misses_index, write_failure
from workers.store.raw_commands import insert
from workers.store.schema import COLLECTION

#: The largest document that MongoDB can store.
DOCUMENT_BYTES_MAX = 16 << 20
#: A command has at most this much text. It can be as large as a document.
_COMMAND_BYTES = 8 << 20
#: A repeated post may request a new receipt each time. This many of them are valid.
RECEIPTS_MAX = 8

_DUPLICATE_KEY = 11000
#: Write errors that are caused by the document itself. All other errors are temporary.
_UNSTORABLE = frozenset({2, 10334, 17280, 17419, 121})
#: What the driver raises for a document that BSON cannot hold.
_UNENCODABLE = (bson.errors.BSONError, ValueError, OverflowError)

#: Documents that are not stored yet, by the index of their posts in the batch.
_Pending: TypeAlias = dict[int, Document]
_InsertOnce: TypeAlias = Callable[
    [Sequence[Post], _Pending, list[Insertion], float], Awaitable[ServiceError | None]
]


class Inserts(Connection):
    """Stores posts."""

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        """See `workers.store.base.Store.insert`."""
        outcomes: list[Insertion] = [None] * len(posts)
        plain: _Pending = {}
        keyed: _Pending = {}
        repeats: _Pending = {}
        for position, post in enumerate(posts):
            pending = plain if post.key is None else keyed
            if post.is_for_full_inbox:
                pending = repeats
            pending[position] = self._document(post)
        with self._observed("insert") as deadline:
            if not keyed and not repeats:
                await self._insert_all(self._insert_plain, deadline, posts, plain, outcomes)
            else:
                for pending in (keyed, repeats):
                    _reject_unencodable(list(pending), pending, outcomes)
                with pymongo.timeout(self._timeout_s):
                    await asyncio.gather(
                        self._track_all(self._insert_plain, deadline, posts, plain, outcomes),
                        self._track_all(self._insert_keyed, deadline, posts, keyed, outcomes),
                        self._track_all(self._find_repeated, deadline, posts, repeats, outcomes),
                    )
        first_ms = min([post.expires_ms for post in posts])
        if first_ms < self._clock.now_ms():
            # Expired on their way: the search of that time may be over.
            self._unsearched.add(first_ms)
        return outcomes

    async def _track_all(
        self,
        insert_once: _InsertOnce,
        deadline: float,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
    ) -> None:
        """Do the same as `_insert_all`, at the same time as other inserts of the operation."""
        with tracked():
            await self._insert_all(insert_once, deadline, posts, pending, outcomes)

    async def _insert_all(
        self,
        insert_once: _InsertOnce,
        deadline: float,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
    ) -> None:
        """Repeat an insert until nothing is pending or the time is over."""
        was_sent = False
        while pending:
            failure = await insert_once(posts, pending, outcomes, deadline)
            if failure is None:
                return
            was_sent = was_sent or isinstance(failure, OutcomeUnknown)
            is_final = not was_sent and not isinstance(failure, Unsent)
            if is_final or not await may_repeat(deadline):
                if was_sent and not isinstance(failure, OutcomeUnknown):
                    failure = OutcomeUnknown(str(failure))
                for position in pending:
                    outcomes[position] = failure
                if isinstance(failure, OutcomeUnknown):
                    ids = [posts[position].id for position in pending]
                    inboxes = self._layout.inboxes(
                        [posts[position].username for position in pending]
                    )
                    self._record_unresolved("accepted", {**inboxes, "_id": {"$in": ids}})
                    first_ms = min(posts[position].expires_ms for position in pending)
                    self._unsearched.add(first_ms, self._timeout_s + SETTLED_AFTER_S)
                return

    async def _insert_plain(
        self,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
        deadline: float,
    ) -> ServiceError | None:
        """Try to insert posts without a key.

        Removes finished posts from `pending`, and returns the error of the others.
        """
        failure: ServiceError | None = None
        if large := [each for each in pending if posts[each].size > _COMMAND_BYTES]:
            _reject_unencodable(large, pending, outcomes)
        for positions in _commands(posts, pending):
            try:
                inserted = await insert(
                    self._database, COLLECTION, [pending[each] for each in positions], deadline
                )
            except PyMongoError as error:
                if not isinstance(failure, OutcomeUnknown):
                    failure = write_failure(error)
                continue
            except _UNENCODABLE:
                # Nothing was sent. The next attempt is without those that cannot be encoded.
                _reject_unencodable(positions, pending, outcomes)
                failure = failure or Unsent("the insert was interrupted")
                continue
            if not inserted.errors and inserted.is_confirmed:
                for position in positions:
                    del pending[position]
                continue
            errors = {positions[index]: entry for index, entry in inserted.errors.items()}
            for position in positions:
                entry = errors.get(position)
                if entry is not None and entry["code"] in _UNSTORABLE:
                    outcomes[position] = Rejected(
                        f"the message cannot be stored: {entry['errmsg']}"
                    )
                    del pending[position]
                elif inserted.is_confirmed and (entry is None or entry["code"] == _DUPLICATE_KEY):
                    # Ids are created before the first attempt: a duplicate is this same message.
                    self._metrics.inserts_resolved.inc(entry is not None)
                    del pending[position]
            failure = OutcomeUnknown("the insert was interrupted")
        return failure if pending else None

    async def _insert_keyed(
        self,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
        deadline: float,
    ) -> ServiceError | None:
        """Try to insert posts with a key; otherwise like `_insert_plain`.

        A post is stored unless there is a message with its key. The search for that names the
        unique index. If the index is missing, the database refuses the whole step instead of
        storing a second message.
        """
        if self.indexes.fault is not None:
            return IndexMissing(self.indexes.fault)
        layout = self._layout
        positions = list(pending)
        writes = [
            UpdateOne(
                layout.key(posts[position].username, _key_of(posts[position])),
                {"$setOnInsert": pending[position]},
                upsert=True,
                hint=layout.key_index,
            )
            for position in positions
        ]
        try:
            result = await self._messages.bulk_write(writes, ordered=False)
            details: Mapping[str, Any] = result.bulk_api_result
        except BulkWriteError as error:
            details = error.details or {}
        except PyMongoError as error:
            return write_failure(error)
        failed = _write_errors(details, positions)
        missing = [position for position, entry in failed.items() if misses_index(entry)]
        if missing:
            self.indexes.report(MISSING)
        stored = {positions[entry["index"]] for entry in details.get("upserted", ())}
        unconfirmed = bool(details.get("writeConcernErrors"))
        repeated: list[int] = []
        for position in positions:
            entry = failed.get(position)
            if entry is None and position in stored:
                # If a majority has not confirmed it, the next attempt finds it by its key.
                if not unconfirmed:
                    del pending[position]
            elif entry is None or entry["code"] == _DUPLICATE_KEY:
                repeated.append(position)
            elif entry["code"] in _UNSTORABLE and position not in missing:
                outcomes[position] = Rejected(f"the message cannot be stored: {entry['errmsg']}")
                del pending[position]
        if repeated:
            await self._find_first(posts, repeated, pending, outcomes)
        if not pending:
            return None
        if set(pending) <= set(missing):
            return IndexMissing(MISSING)
        return OutcomeUnknown("the insert was interrupted")

    async def _find_repeated(
        self,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
        deadline: float,
    ) -> ServiceError | None:
        """Answer posts to full inboxes: with the first message of their key, or `InboxFull`."""
        if not await self._find_first(posts, list(pending), pending, outcomes):
            return StoreUnavailable("the database did not say whether the post is a repeat")
        for position in pending:
            outcomes[position] = InboxFull()
        pending.clear()
        return None

    async def _find_first(
        self,
        posts: Sequence[Post],
        positions: Sequence[int],
        pending: _Pending,
        outcomes: list[Insertion],
    ) -> bool:
        """Set the outcome of posts whose key exists: the id of the first message, or `KeyReused`.

        A post stays pending if no majority has the first message yet, or if it was just deleted.
        Returns False if the database did not answer.
        """
        layout = self._layout
        keyed = [post for post in map(posts.__getitem__, positions) if post.key is not None]
        try:
            documents = await self._majority.find(
                layout.keys([(post.username, _key_of(post)) for post in keyed]),
                projection={"key": 1, "username": 1},
                hint=layout.key_index,
            ).to_list(None)
            first = {
                layout.key_of(document["username"], document["key"]["hash"]): document
                for document in documents
            }
            for position in positions:
                post = posts[position]
                key, receipt = post.key, post.receipt
                document = (
                    None if key is None else first.get(layout.key_of(post.username, key.hash))
                )
                if document is None:
                    continue
                if key is not None and document["key"]["body"] != key.body:
                    outcomes[position] = KeyReused(
                        "the key was used for a different message before"
                    )
                else:
                    is_ours = document["_id"] == post.id
                    if receipt and not is_ours and key is not None and key.gets_receipt:
                        added = {"$each": [receipt], "$slice": -RECEIPTS_MAX}
                        await self._messages.update_one(
                            {"_id": document["_id"], **layout.inbox(document["username"])},
                            {"$push": {"receipts": added}},
                        )
                    # This also finds a message that an earlier attempt inserted.
                    outcomes[position] = None if is_ours else document["_id"]
                del pending[position]
        except PyMongoError:
            # The next attempt asks again.
            return False
        return True

    def _document(self, post: Post) -> Document:
        document: Document = {
            "_id": post.id,
            # Also in schema 1, where only other nodes may know no routes.
            "route": route_of(post.username),
            "username": post.username,
            "text": post.text,
            "created_at": DatetimeMS(post.created_ms),
            "expires_at": DatetimeMS(post.expires_ms),
            "purge_at": DatetimeMS(post.expires_ms + self._unread_grace_ms),
            "unread": True,
        }
        if post.due_ms:
            # Like a lease that nobody holds: the sweep that ends leases makes it unread.
            del document["unread"]
            due_at = DatetimeMS(post.due_ms)
            document |= {"due_at": due_at, "lease": {"until": due_at}}
        if post.key is not None or post.receipt:
            document |= {"purge_at": None, "kept": True}
        if post.key is not None:
            document["key"] = {"hash": post.key.hash, "body": post.key.body}
        if post.receipt:
            document["receipts"] = [post.receipt]
        return document


def _write_errors(
    details: Mapping[str, Any], positions: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    """Return the errors of a bulk write by the index of their posts in the batch."""
    return {positions[entry["index"]]: entry for entry in details.get("writeErrors", ())}


def _key_of(post: Post) -> str:
    assert post.key is not None
    return post.key.hash


def _commands(posts: Sequence[Post], pending: _Pending) -> list[list[int]]:
    """Divide what is pending into commands that are not too large. There usually is one."""
    commands: list[list[int]] = []
    left = 0
    for position in pending:
        size = posts[position].size
        if size > left or not commands:
            commands.append([])
            left = _COMMAND_BYTES
        commands[-1].append(position)
        left -= size
    return commands


def _reject_unencodable(
    positions: Sequence[int], pending: _Pending, outcomes: list[Insertion]
) -> None:
    """Reject the posts that BSON cannot hold, and those that are too large."""
    for position in positions:
        try:
            size = len(bson.encode(pending[position]))
        except _UNENCODABLE as error:
            outcomes[position] = Rejected(f"the message cannot be stored: {error}")
            del pending[position]
            continue
        if size > DOCUMENT_BYTES_MAX:
            outcomes[position] = Rejected(
                "the message cannot be stored: it is larger than a document can be"
            )
            del pending[position]
