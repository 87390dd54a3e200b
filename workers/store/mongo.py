"""The store on MongoDB: a batch of posts is one insert, a batch of reads one find and one claim.

A claim has the guarantee of `findOneAndUpdate` for a whole batch. The filter of the update names
the field that the update removes, so if two nodes claim a message, only one gets it. Each claim has
a token of its own. If a reply is lost, the update is sent again. It claims what the first one did
not claim, and waits for a majority; all messages with the token then belong to this claim. An
update that still runs on a lost connection can only add the same token. If the claim was given up,
`void` closes its messages to that token, and then `unclaim` makes those unread again that it took:
so a late copy takes effect before that, and is undone, or never.

The modules beside this one have the other parts: leases, reads with a key, the lifecycle, the
change stream, the leader, and the confirmations of searches.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import bson
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from workers.commands import (
    COUNT_MAX,
    Claim,
    DiscardedClaims,
    KeyedClaim,
    LeaseClaim,
    Message,
    Origin,
    Post,
    Unread,
)
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
from workers.store.base import Claimed, Found, InboxSize, Insertion
from workers.store.change_stream import ChangeStream
from workers.store.confirmations import Confirmations, Primary
from workers.store.connection import (
    MISSING,
    SETTLED_AFTER_S,
    may_repeat,
    misses_index,
    read_errors,
    write_errors,
    write_failure,
)
from workers.store.driver import Document, aggregate
from workers.store.fleet import Fleet
from workers.store.idempotent_reads import IdempotentReads
from workers.store.layout import Layout
from workers.store.leases import Leases
from workers.store.lifecycle import Lifecycle

#: A reply holds at most 16 MiB, and MongoDB cuts off a longer one silently. A search that returns
#: this many code points (at most 8 MiB of UTF-8) therefore counts as incomplete.
REPLY_CHARS_MAX = 2 << 20
#: The largest document that MongoDB can store.
DOCUMENT_BYTES_MAX = 16 << 20
#: A repeated post may request a new receipt each time. This many of them are valid.
RECEIPTS_MAX = 8
#: Most expired leases that a message records.
_LOST_MAX = 64

#: What a search returns of a message.
_FOUND_FIELDS = ("username", "text", "expires_at", "deliveries", "origin")
_EMPTY = InboxSize(0, 0)
_DUPLICATE_KEY = 11000
#: Write errors that are caused by the document itself. All other errors are temporary.
_UNSTORABLE = frozenset({2, 10334, 17280, 17419, 121})

#: Documents that are not stored yet, by the index of their posts in the batch.
_Pending: TypeAlias = dict[int, RawBSONDocument]
_InsertOnce: TypeAlias = Callable[
    [Sequence[Post], _Pending, list[Insertion]], Awaitable[ServiceError | None]
]


class MongoStore(Leases, IdempotentReads, Lifecycle, ChangeStream, Fleet, Confirmations):
    """Messages in one collection: see `workers.store.base.Store`.

    The parts are base classes over one `Connection`, so that no method only delegates to a part.
    """

    async def insert(self, posts: Sequence[Post]) -> list[Insertion]:
        """See `workers.store.base.Store.insert`."""
        outcomes: list[Insertion] = [None] * len(posts)
        plain: _Pending = {}
        keyed: _Pending = {}
        repeats: _Pending = {}
        for position, post in enumerate(posts):
            try:
                # Encoded one by one, so that a text that BSON cannot hold fails alone.
                encoded = bson.encode(self._document(post))
            except (bson.errors.BSONError, ValueError, OverflowError) as error:
                outcomes[position] = Rejected(f"the message cannot be stored: {error}")
                continue
            if len(encoded) > DOCUMENT_BYTES_MAX:
                outcomes[position] = Rejected(
                    "the message cannot be stored: it is larger than a document can be"
                )
                continue
            pending = plain if post.key is None else keyed
            if post.is_for_full_inbox:
                pending = repeats
            pending[position] = RawBSONDocument(encoded)
        with self._operation("insert") as deadline:
            if not keyed and not repeats:
                await self._insert_all(self._insert_plain, deadline, posts, plain, outcomes)
            else:
                await asyncio.gather(
                    self._insert_all(self._insert_plain, deadline, posts, plain, outcomes),
                    self._insert_all(self._insert_keyed, deadline, posts, keyed, outcomes),
                    self._insert_all(self._find_repeated, deadline, posts, repeats, outcomes),
                )
        first_ms = min([post.expires_ms for post in posts])
        if first_ms < self._clock.now_ms():
            # Expired on their way: the search of that time may be over.
            self._unsearched.add(first_ms)
        return outcomes

    async def _insert_all(
        self,
        insert_once: _InsertOnce,
        deadline: float,
        posts: Sequence[Post],
        pending: _Pending,
        outcomes: list[Insertion],
    ) -> None:
        """Repeat an insert until nothing is pending or the time is over."""
        sent_before = False
        while pending:
            failure = await insert_once(posts, pending, outcomes)
            if failure is None:
                return
            if sent_before and not isinstance(failure, OutcomeUnknown):
                failure = OutcomeUnknown(str(failure))
            if not isinstance(failure, OutcomeUnknown) or not await may_repeat(deadline):
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
            sent_before = True

    async def _insert_plain(
        self, posts: Sequence[Post], pending: _Pending, outcomes: list[Insertion]
    ) -> ServiceError | None:
        """Try to insert posts without a key.

        Removes finished posts from `pending`, and returns the error of the others.
        """
        positions = list(pending)
        try:
            await self._messages.insert_many(list(pending.values()), ordered=False)
        except BulkWriteError as error:
            details = error.details or {}
            failed = _write_errors(details, positions)
            # Applied, but not confirmed by a majority: this attempt guarantees nothing.
            unconfirmed = bool(details.get("writeConcernErrors"))
            for position in positions:
                entry = failed.get(position)
                if entry is not None and entry["code"] in _UNSTORABLE:
                    outcomes[position] = Rejected(
                        f"the message cannot be stored: {entry['errmsg']}"
                    )
                    del pending[position]
                elif not unconfirmed and (entry is None or entry["code"] == _DUPLICATE_KEY):
                    # Ids are created before the first attempt: a duplicate is this same message.
                    self._metrics.inserts_resolved.inc(entry is not None)
                    del pending[position]
            return OutcomeUnknown(f"the insert was interrupted: {error}") if pending else None
        except PyMongoError as error:
            return write_failure(error)
        pending.clear()
        return None

    async def _insert_keyed(
        self, posts: Sequence[Post], pending: _Pending, outcomes: list[Insertion]
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
        self, posts: Sequence[Post], pending: _Pending, outcomes: list[Insertion]
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

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """See `workers.store.base.Store.find_unread`.

        If the result cannot be confirmed, and there are other members, the search is linearizable:
        a deposed primary must not answer that there is nothing.
        """
        layout = self._layout
        with self._operation("find"), read_errors():
            while True:
                primary = self._primary()
                documents, address = await self._search(layout, usernames, limit, now_ms, primary)
                if primary is None or address == primary.address:
                    break
        term = None if primary is None else primary.term
        messages: dict[str, list[Unread]] = {}
        for document in documents:
            message = Message(document["text"], document["_id"])
            origin = document.get("origin")
            unread = Unread(
                message,
                int(document["expires_at"]),
                document.get("deliveries", 0),
                origin and Origin(**origin),
            )
            messages.setdefault(document["username"], []).append(unread)
        chars = sum(len(document["text"]) for document in documents)
        if len(documents) < limit and chars < REPLY_CHARS_MAX:
            return Found(messages, set(usernames), term)
        # The result is cut off inside its last inbox, or right after it.
        last = layout.rank(documents[-1]["username"])
        complete = {username for username in usernames if layout.rank(username) < last}
        return Found(messages, complete, term)

    async def _search(
        self,
        layout: Layout,
        usernames: Sequence[str],
        limit: int,
        now_ms: int,
        primary: Primary | None,
    ) -> tuple[list[Document], tuple[str, int | None] | None]:
        """Search once. Returns the documents, and the address of the member that answered."""
        is_local = primary is not None or not self._has_peers()
        # The order is that of the index, so nothing is sorted. A negative limit requests a single
        # reply and leaves no cursor open; without a batch size, that reply would end after 101
        # documents.
        cursor = (self._messages if is_local else self._linearizable).find(
            {
                **layout.inboxes(usernames),
                "unread": True,
                "expires_at": {"$gte": DatetimeMS(now_ms)},
            },
            projection=_FOUND_FIELDS,
            sort=layout.sort,
            limit=-limit,
            batch_size=limit,
            hint=layout.inbox_index,
        )
        return await cursor.to_list(None), cursor.address

    async def claim(self, claim: Claim) -> Claimed:
        """See `workers.store.base.Store.claim`."""
        selection = {**self._layout.inboxes(claim.usernames), "_id": {"$in": claim.ids}}
        # No rollback depends on its time. But nobody rolls back the claim of a process that was
        # killed: if it lies in the buffers of a frozen mongod, it must not take messages from
        # readers that come later.
        free: Document = {"voided": {"$nin": list(claim.fences)}, **self._before(claim.until_ms)}
        if isinstance(claim, KeyedClaim):
            # The batch may be older: messages that have expired since must not be claimed.
            free["expires_at"] = {"$gte": DatetimeMS(claim.at_ms)}
        if isinstance(claim, LeaseClaim):
            # A copy that arrives after the lease has ended is no second delivery.
            free["lease.token"] = {"$ne": claim.token}
        change = self._change_of(claim)
        # Whether the claim may have taken effect, and whether no copy of it is still on its way.
        was_sent, is_final = False, True
        with self._operation("claim") as deadline:
            while True:
                is_answered = False
                try:
                    claimed = await self._updates.of_inboxes(
                        {**selection, "unread": True, **free}, change, hint="_id_"
                    )
                    is_answered = True
                    # Behind a mongos, the number says nothing: while a document moves to another
                    # database shard, an update may count it twice.
                    is_exact = not was_sent and not self._is_routed
                    if is_exact and claimed == len(claim.ids):
                        return Claimed(set(claim.ids), is_final=True)
                    was_sent = True
                    owned = await self._claimed(selection, claim)
                    if not owned:
                        # Other readers were faster, or the claim was late by the database's clock.
                        self._clock.mark_suspect()
                    if not is_final:
                        self._metrics.claims_resolved.inc()
                        if isinstance(claim, KeyedClaim) and len(owned) < len(claim.ids):
                            # A late copy may take more of them, for repeats of the read.
                            rest = [each for each in claim.ids if each not in owned]
                            self._count_later(claim, rest)
                    return Claimed(owned, is_final)
                except PyMongoError as error:
                    failure = write_failure(error)
                    if not was_sent and isinstance(failure, StoreUnavailable):
                        raise failure from error
                    if not await may_repeat(deadline):
                        if isinstance(claim, KeyedClaim):
                            # Not rolled back: a repeat of the read returns these messages.
                            self._count_later(claim, claim.ids)
                        raise OutcomeUnknown(f"the claim was not confirmed: {error}") from error
                    was_sent = True
                    is_final = is_final and is_answered

    def _count_later(self, claim: KeyedClaim, ids: Sequence[str]) -> None:
        """Count later which of these messages the claim has taken, when it takes no more."""
        selection = {**self._layout.inboxes(claim.usernames), "_id": {"$in": list(ids)}}
        mine = {**selection, "claim.token": claim.token}
        self._record_unresolved("read", mine, closing=(selection, claim.token))

    async def void(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> None:
        """See `workers.store.base.Store.void`."""
        selection = {**self._layout.inboxes(claim.usernames), "_id": {"$in": list(ids)}}
        with self._operation("void"), write_errors():
            await self._close(selection, claim.token)

    async def unclaim(self, claim: Claim | DiscardedClaims, ids: Sequence[str]) -> int:
        """See `workers.store.base.Store.unclaim`."""
        selection = {**self._layout.inboxes(claim.usernames), "_id": {"$in": list(ids)}}
        change = self._unclaim()
        if isinstance(claim, LeaseClaim):
            selection |= {"lease.token": claim.token, "lease.until": {"$exists": True}}
            # As for any lease that ends; if this fails, the sweep does the same.
            selection["dead"] = None
            # The lease has not lost messages that nobody received, and has not delivered them.
            returned = {"unread": True, "lease.returned": True, "returned_to": "$username"}
            returned |= {"deliveries": {"$max": [{"$subtract": ["$deliveries", 1]}, 0]}}
            change = [{"$set": returned}, {"$unset": "lease.until"}]
        else:
            # Without its text, which `retire` removes long after a claim, a message is gone.
            selection["text"] = {"$exists": True}
            if isinstance(claim, Claim):
                selection["claim.token"] = claim.token
            else:
                selection |= {"claim.key": claim.batch.key, "claim.batch": claim.token}
        # They had not expired when they were claimed.
        with self._may_return(claim.at_ms), self._operation("release"), write_errors():
            return await self._updates.of_inboxes(selection, change, hint="_id_")

    def _unclaim(self) -> list[Document]:
        """Return a pipeline that makes messages unread, and restores their purge time."""
        purge_at = {"$add": ["$expires_at", self._unread_grace_ms]}
        return [
            {
                "$set": {
                    "unread": True,
                    "returned_to": "$username",
                    "purge_at": {"$cond": ["$kept", None, purge_at]},
                }
            },
            {"$unset": "claim"},
        ]

    def _change_of(self, claim: Claim) -> Any:
        """Return the update of a claim."""
        at_ms = DatetimeMS(claim.at_ms)
        if isinstance(claim, LeaseClaim):
            # A pipeline, since a lease ends no later than its message expires.
            end = {"$min": [DatetimeMS(claim.at_ms + claim.lease_ms), "$expires_at"]}
            # Earlier versions leave the lease of a scheduled message, which has no token.
            again = {"$ne": [{"$type": "$lease.token"}, "missing"]}
            lease = {"token": claim.token, "at": at_ms, "by": self._node, "until": end}
            lease["again"] = again
            # A pipeline merges the fields of a document into what there is.
            lease["returned"] = "$$REMOVE"
            # Record the previous lease if it ran out.
            before = {"$ifNull": ["$lost_by", []]}
            has_run_out = {"$and": [again, {"$ne": ["$lease.returned", True]}]}
            lost_by = {
                "$cond": [
                    has_run_out,
                    {"$slice": [{"$concatArrays": [before, ["$lease.token"]]}, -_LOST_MAX]},
                    {"$ifNull": ["$lost_by", "$$REMOVE"]},
                ]
            }
            deliveries = {"$add": [{"$ifNull": ["$deliveries", 0]}, 1]}
            return [
                {"$set": {"lease": lease, "lost_by": lost_by, "deliveries": deliveries}},
                {"$unset": ["unread", "returned_to"]},
            ]
        claimed = {"token": claim.token, "at": at_ms, "by": self._node}
        if isinstance(claim, KeyedClaim):
            claimed |= {"key": claim.key, "batch": claim.batch}
        return {
            "$unset": {"unread": "", "returned_to": ""},
            "$set": {"claim": claimed},
            # A kept message has null here, which is less than any time and stays.
            "$min": {"purge_at": DatetimeMS(claim.at_ms + self._claimed_grace_ms)},
        }

    async def _claimed(self, selection: Document, claim: Claim) -> set[str]:
        field = "lease.token" if isinstance(claim, LeaseClaim) else "claim.token"
        documents = await self._majority.find(
            {**selection, field: claim.token}, projection={"_id": 1}, hint="_id_"
        ).to_list(None)
        return {document["_id"] for document in documents}

    async def count_unread(self, usernames: Sequence[str], now_ms: int) -> Mapping[str, int]:
        """See `workers.store.base.Store.count_unread`.

        Reads only the index. Each query counts at most `COUNT_MAX` + 1 entries in the order of the
        inboxes, so a full inbox costs no more than that, however many are counted with it.
        """
        counts: dict[str, int] = {}
        layout = self._layout
        left = sorted(set(usernames), key=layout.rank)
        while left:
            found = await self._count_some(layout, left, now_ms)
            if sum(found.values()) <= COUNT_MAX:
                return counts | found
            # The result is cut off inside its last inbox, or right after it.
            last = max(found, key=layout.rank)
            is_counted = len(found) == 1
            counts |= {name: found[name] for name in found if name != last or is_counted}
            left = left[left.index(last) + is_counted :]
        return counts

    async def _count_some(
        self, layout: Layout, usernames: Sequence[str], now_ms: int
    ) -> dict[str, int]:
        """Count at most `COUNT_MAX` + 1 unread messages of these inboxes, in their order."""
        with self._operation("count"), read_errors():
            groups = await aggregate(
                self._messages,
                [
                    {
                        "$match": {
                            **layout.inboxes(usernames),
                            "unread": True,
                            "expires_at": {"$gte": DatetimeMS(now_ms)},
                        }
                    },
                    # This is the order of the index, so nothing is sorted.
                    {"$sort": dict(layout.sort)},
                    {"$limit": COUNT_MAX + 1},
                    {"$group": {"_id": "$username", "unread": {"$sum": 1}}},
                ],
                hint=layout.inbox_index,
            )
        return {group["_id"]: group["unread"] for group in groups}

    async def measure_inbox(
        self, username: str, messages_max: int, has_bytes: bool, now_ms: int
    ) -> InboxSize:
        """See `workers.store.base.Store.measure_inbox`. Without bytes, it reads only the index."""
        group: Document = {"_id": None, "messages": {"$sum": 1}}
        if has_bytes:
            group["bytes"] = {"$sum": {"$strLenBytes": "$text"}}
        layout = self._layout
        unread = {
            **layout.inbox(username),
            "unread": True,
            "expires_at": {"$gte": DatetimeMS(now_ms)},
        }
        with self._operation("measure"), read_errors():
            groups = await aggregate(
                self._messages,
                [{"$match": unread}, {"$limit": messages_max}, {"$group": group}],
                hint=layout.inbox_index,
            )
        return InboxSize(groups[0]["messages"], groups[0].get("bytes", 0)) if groups else _EMPTY

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
