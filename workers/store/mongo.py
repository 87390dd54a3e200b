"""The store on MongoDB: a batch of posts is one insert, a batch of reads one search and one claim.

A claim has the guarantee of `findOneAndUpdate` for a whole batch. The filter of the update names
the field that the update removes, so if two nodes claim a message, only one gets it. Each claim has
a token of its own. If a reply is lost, the update is sent again. It claims what the first one did
not claim, and waits for a majority; all messages with the token then belong to this claim. An
update that still runs on a lost connection can only add the same token. If the claim was given up,
`void` closes its messages to that token, and then `unclaim` makes those unread again that it took:
so a late copy takes effect before that, and is undone, or never.

The modules beside this one have the other parts: inserts, leases, reads with a key, the lifecycle,
the change stream, the leader, and the confirmations of searches.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pymongo
from bson.datetime_ms import DatetimeMS
from pymongo.errors import (
    ConnectionFailure,
    NetworkTimeout,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from workers.commands import (
    COUNT_MAX,
    Claim,
    DiscardedClaims,
    KeyedClaim,
    LeaseClaim,
    Message,
    Origin,
    Unread,
)
from workers.errors import OutcomeUnknown
from workers.store.base import Claimed, Found, InboxSize
from workers.store.change_stream import ChangeStream
from workers.store.confirmations import Confirmations, Primary
from workers.store.connection import may_repeat
from workers.store.driver import Document, aggregate, pinned
from workers.store.driver_errors import Unsent, read_errors, write_errors, write_failure
from workers.store.fleet import Fleet
from workers.store.idempotent_reads import IdempotentReads
from workers.store.inserts import Inserts
from workers.store.layout import Layout
from workers.store.leases import FEWER_DELIVERIES, Leases
from workers.store.lifecycle import Lifecycle
from workers.store.raw_commands import find
from workers.store.schema import COLLECTION

#: A reply holds at most 16 MiB, and MongoDB cuts off a longer one silently. A search that returns
#: this many code points (at most 8 MiB of UTF-8) therefore counts as incomplete.
REPLY_CHARS_MAX = 2 << 20
#: Most expired leases that a message records.
_LOST_MAX = 64

#: What a search returns of a message.
_FOUND_FIELDS = dict.fromkeys(("username", "text", "expires_at", "deliveries", "origin"), 1)
_EMPTY = InboxSize(0, 0)


class MongoStore(Inserts, Leases, IdempotentReads, Lifecycle, ChangeStream, Fleet, Confirmations):
    """Messages in one collection: see `workers.store.base.Store`.

    The parts are base classes over one `Connection`, so that no method only delegates to a part.
    """

    async def find_unread(self, usernames: Sequence[str], limit: int, now_ms: int) -> Found:
        """See `workers.store.base.Store.find_unread`.

        If the result cannot be confirmed, and there are other members, the search is linearizable:
        a deposed primary must not answer that there is nothing.
        """
        layout = self._layout
        with self._observed("find") as deadline, read_errors():
            is_repeated = False
            while True:
                primary = self._primary()
                try:
                    documents = await self._search(usernames, limit, now_ms, primary, deadline)
                    break
                except NetworkTimeout:
                    raise
                except ServerSelectionTimeoutError:
                    # This was the primary a moment ago. Perhaps there is another one.
                    if primary is None or self._primary() in (None, primary):
                        raise
                except ConnectionFailure:
                    # Searches are repeated once, as the driver does it.
                    if is_repeated:
                        raise
                    is_repeated = True
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
        usernames: Sequence[str],
        limit: int,
        now_ms: int,
        primary: Primary | None,
        deadline: float,
    ) -> list[Document]:
        """Return the documents that this primary finds, or any primary."""
        layout = self._layout
        options: Document = {
            "filter": {
                **layout.inboxes(usernames),
                "unread": True,
                "expires_at": {"$gte": DatetimeMS(now_ms)},
            },
            "projection": _FOUND_FIELDS,
            # The order is that of the index, so nothing is sorted.
            "sort": dict(layout.sort),
            "limit": limit,
            # Otherwise the reply would end after 101 documents.
            "batchSize": limit,
            "hint": layout.inbox_index,
        }
        if primary is None and self._has_peers():
            options["readConcern"] = {"level": "linearizable"}
        if primary is None:
            return await find(self._database, COLLECTION, options, deadline)
        with pinned(primary.address):
            return await find(self._database, COLLECTION, options, deadline)

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
        with self._observed("claim") as deadline:
            while True:
                is_answered = False
                try:
                    claimed = await self._updates.of_inboxes(
                        {**selection, "unread": True, **free}, change, "_id_", deadline
                    )
                    is_answered = True
                    # Behind a mongos, the number says nothing: while a document moves to another
                    # database shard, an update may count it twice.
                    is_exact = not was_sent and not self._is_routed
                    if is_exact and claimed == len(claim.ids):
                        return Claimed(set(claim.ids), is_final=True)
                    was_sent = True
                    with pymongo.timeout(max(deadline - time.monotonic(), 0.001)):
                        owned = await self._claimed(selection, claim)
                    if not owned:
                        # Other readers were faster, or the claim was late by the database's clock.
                        self._clock.mark_suspect()
                    if not is_final:
                        self._metrics.claims_resolved.inc()
                        if isinstance(claim, KeyedClaim) and len(owned) < len(claim.ids):
                            # A late copy may take more of them, for repeats of the read.
                            rest = [each for each in claim.ids if each not in owned]
                            self.count_later(claim, rest)
                    return Claimed(owned, is_final)
                except PyMongoError as error:
                    failure = write_failure(error)
                    was_sent = was_sent or isinstance(failure, OutcomeUnknown)
                    is_over = not was_sent and not isinstance(failure, Unsent)
                    if is_over or not await may_repeat(deadline):
                        if not was_sent:
                            raise failure from error
                        if isinstance(claim, KeyedClaim):
                            # Not rolled back: a repeat of the read returns these messages.
                            self.count_later(claim, claim.ids)
                        raise OutcomeUnknown(f"the claim was not confirmed: {error}") from error
                    is_final = is_final and (is_answered or not was_sent)

    def count_later(self, claim: KeyedClaim, ids: Sequence[str]) -> None:
        """See `workers.store.base.Store.count_later`."""
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
            returned |= {"deliveries": FEWER_DELIVERIES}
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
            lease["returned"] = lease["delayed"] = "$$REMOVE"
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
