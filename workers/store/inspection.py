"""What a database knows of one inbox, for `chat inspect`: numbers and times, but never a text.

It works beside a running service and without one, and changes nothing. Its cost is bounded. It
counts an inbox by its index, up to `COUNT_MAX` messages. No index finds the leased, scheduled and
claimed messages of one inbox, so it looks through those of all inboxes, up to `LOOKED_MAX`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pymongo
from bson.datetime_ms import DatetimeMS
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure, PyMongoError

from workers.commands import COUNT_MAX
from workers.store.driver import TIMES_IN_MS, Client, Document, aggregate, hello
from workers.store.driver_errors import NOT_ALLOWED, read_errors
from workers.store.layout import Layout
from workers.store.schema import (
    COLLECTION,
    FLEET,
    KEPT_INDEX,
    LEASE_END_INDEX,
    LOG_KEY,
    PURGE_INDEX,
)
from workers.store.schema_version import find_layout

#: Most messages of all inboxes that a search looks through for those of one inbox.
LOOKED_MAX = 20_000
#: Most messages whose texts are measured.
_MEASURED_MAX = 100_000


class Inspected(NamedTuple):
    """One inbox. Times are in ms since 1970 by the database's clock, or None if there is none.

    `unread` counts up to `COUNT_MAX`, and one more if there are more; `next_expiry_ms` is that of
    the oldest messages then. `bytes` is None unless it was asked for. `dead_letters` is the number
    of unread messages in the dead-letter inbox. `bytes` and `others` are None if they took too
    long.
    """

    now_ms: int
    schema: int
    unread: int
    oldest_ms: int | None
    next_expiry_ms: int | None
    bytes: int | None
    dead_letters: int
    others: "Others | None"
    reads: "Reads | None"


class Others(NamedTuple):
    """The messages of an inbox that are leased or scheduled, with the time of the first and last.

    A message that was released with a delay is scheduled. `overdue` of them should have become
    unread more than some seconds ago: nobody leads. `is_whole` is false if there were too many
    messages of other inboxes.
    """

    leased: int
    first_end_ms: int | None
    last_end_ms: int | None
    scheduled: int
    next_due_ms: int | None
    overdue: int
    is_whole: bool


class Reads(NamedTuple):
    """The messages of an inbox that were read lately, and by which nodes (`host/pid`)."""

    messages: int
    last_ms: int | None
    nodes: Mapping[str, int]
    since_ms: int


#: A lease that ended this long ago should have been ended by the leader, in ms.
OVERDUE_MS = 15_000


async def inspect_inbox(
    client: Client,
    database_name: str,
    username: str,
    dead_letter_inbox: str,
    *,
    has_bytes: bool,
    kept_s: int,
    within_s: float,
) -> Inspected | None:
    """Look at one inbox. Returns None if no service has used the database yet.

    A claimed message is kept for `kept_s` seconds. Each step takes at most `within_s` seconds.
    Raises `StoreUnavailable`, `UnknownSchema`, or `IndexMissing` if an index is not there: without
    it, this would read everything.
    """
    database = client[database_name]
    with read_errors():
        with pymongo.timeout(within_s):
            server = await hello(client)
            layout = await find_layout(database)
            if layout is None:
                return None
        inbox = _Inbox(database, layout, username, int(server["localTime"]), within_s)
        unread, oldest, expiry = await inbox.unread()
        return Inspected(
            now_ms=inbox.now_ms,
            schema=layout.version,
            unread=unread,
            oldest_ms=oldest,
            next_expiry_ms=expiry,
            bytes=await inbox.size() if has_bytes else None,
            dead_letters=(
                await _Inbox(database, layout, dead_letter_inbox, inbox.now_ms, within_s).unread()
            )[0],
            others=await inbox.others(),
            reads=await inbox.reads(kept_s * 1000),
        )


async def read_log_key(client: Client, database_name: str, within_s: float) -> str | None:
    """Return the key by which the nodes hash names in their logs, or None if it is not known."""
    fleet = client[database_name][FLEET]
    with read_errors(), pymongo.timeout(within_s):
        try:
            document = await fleet.find_one({"_id": LOG_KEY}, {"key": 1})
        except OperationFailure as error:
            if error.code not in NOT_ALLOWED:
                raise
            return None
    return None if document is None else str(document["key"])


class _Inbox:
    """The searches for one inbox."""

    def __init__(
        self,
        database: AsyncDatabase[Document],
        layout: Layout,
        username: str,
        now_ms: int,
        within_s: float,
    ) -> None:
        self._messages: AsyncCollection[Document] = database.get_collection(
            COLLECTION, codec_options=TIMES_IN_MS
        )
        self._layout = layout
        self._username = username
        self._within_s = within_s
        self.now_ms = now_ms

    async def unread(self) -> tuple[int, int | None, int | None]:
        """Return the number of unread messages, when the oldest came, and when one expires."""
        layout = self._layout
        found = await self._group(
            [
                {"$match": self._unread()},
                {"$limit": COUNT_MAX + 1},
                {"$project": {"_id": 1, "expires_at": 1}},
                {
                    "$group": {
                        "_id": None,
                        "messages": {"$sum": 1},
                        "oldest": {"$min": "$_id"},
                        "expiry": {"$min": "$expires_at"},
                    }
                },
            ],
            layout.inbox_index,
        )
        if not found:
            return 0, None, None
        with pymongo.timeout(self._within_s):
            oldest = await self._messages.find_one(
                {**layout.inbox(self._username), "_id": found["oldest"]},
                {"created_at": 1},
                hint="_id_",
            )
        # It may have been read since.
        came_ms = None if oldest is None else int(oldest["created_at"])
        return int(found["messages"]), came_ms, int(found["expiry"])

    async def size(self) -> int | None:
        """Return the bytes of the unread messages, of the oldest ones if there are very many.

        None if that takes too long: it reads them all.
        """
        try:
            found = await self._group(
                [
                    {"$match": self._unread()},
                    {"$limit": _MEASURED_MAX},
                    {"$group": {"_id": None, "bytes": {"$sum": {"$strLenBytes": "$text"}}}},
                ],
                self._layout.inbox_index,
            )
        except PyMongoError as error:
            if not error.timeout:
                raise
            return None
        return int(found["bytes"]) if found else 0

    async def others(self) -> Others | None:
        """Return the leased and scheduled messages, or None if that takes too long."""
        late = {"$lt": ["$lease.until", DatetimeMS(self.now_ms - OVERDUE_MS)]}
        has_token = {"$ne": [{"$type": "$lease.token"}, "missing"]}
        is_leased = {"$and": [has_token, {"$ne": ["$lease.returned", True]}]}
        is_alive = {"$gte": ["$expires_at", DatetimeMS(self.now_ms)]}
        leased, scheduled = [
            {"$and": [self._is_mine(), is_alive, each]} for each in (is_leased, {"$not": is_leased})
        ]
        found = await self._look(
            {"lease.until": {"$exists": True}},
            {"lease.until": 1},
            LEASE_END_INDEX,
            {
                "leased": _count(leased),
                "first_end": {"$min": _only(leased, "$lease.until")},
                "last_end": {"$max": _only(leased, "$lease.until")},
                "scheduled": _count(scheduled),
                "next_due": {"$min": _only(scheduled, "$lease.until")},
                "overdue": _count({"$and": [self._is_mine(), late]}),
            },
        )
        if found is None:
            return None
        return Others(
            leased=int(found.get("leased", 0)),
            first_end_ms=_ms(found.get("first_end")),
            last_end_ms=_ms(found.get("last_end")),
            scheduled=int(found.get("scheduled", 0)),
            next_due_ms=_ms(found.get("next_due")),
            overdue=int(found.get("overdue", 0)),
            is_whole=int(found.get("looked", 0)) < LOOKED_MAX,
        )

    async def reads(self, kept_ms: int) -> Reads | None:
        """Return what was read in the last `kept_ms`, or None if that takes too long."""
        since_ms = self.now_ms - kept_ms
        is_recent = {"$gte": ["$claim.at", DatetimeMS(since_ms)]}
        messages, last_ms, nodes = 0, None, dict[str, int]()
        for selection, order, hint in (
            (
                {
                    "purge_at": {
                        "$gt": DatetimeMS(self.now_ms),
                        "$lte": DatetimeMS(self.now_ms + kept_ms),
                    }
                },
                {"purge_at": -1},
                PURGE_INDEX,
            ),
            # Messages with a receipt or a key stay longer, and have an index of their own.
            (
                {"kept": True, "claim.at": {"$gte": DatetimeMS(since_ms)}},
                {"claim.at": -1},
                KEPT_INDEX,
            ),
        ):
            with pymongo.timeout(self._within_s):
                try:
                    found = await aggregate(
                        self._messages,
                        [
                            {"$match": selection},
                            {"$sort": order},
                            {"$limit": LOOKED_MAX},
                            {"$match": {"$expr": {"$and": [self._is_mine(), is_recent]}}},
                            {
                                "$group": {
                                    "_id": "$claim.by",
                                    "messages": {"$sum": 1},
                                    "last": {"$max": "$claim.at"},
                                }
                            },
                        ],
                        hint=hint,
                    )
                except PyMongoError as error:
                    if not error.timeout:
                        raise
                    return None
            for each in found:
                messages += each["messages"]
                last_ms = max(last_ms or 0, int(each["last"]))
                node = str(each["_id"])
                nodes[node] = nodes.get(node, 0) + each["messages"]
        return Reads(messages, last_ms, nodes, since_ms)

    def _unread(self) -> Document:
        return {
            **self._layout.inbox(self._username),
            "unread": True,
            "expires_at": {"$gte": DatetimeMS(self.now_ms)},
        }

    def _is_mine(self) -> Document:
        return {"$eq": ["$username", {"$literal": self._username}]}

    async def _look(
        self, selection: Document, order: Document, hint: str, fields: Document
    ) -> Document | None:
        """Group messages of all inboxes, the first `LOOKED_MAX` in this order.

        Returns None if that takes too long, and nothing but `looked` if there are none.
        """
        try:
            return await self._group(
                [
                    {"$match": selection},
                    {"$sort": order},
                    {"$limit": LOOKED_MAX},
                    {"$group": {"_id": None, "looked": {"$sum": 1}, **fields}},
                ],
                hint,
            )
        except PyMongoError as error:
            if not error.timeout:
                raise
            return None

    async def _group(self, pipeline: list[Document], hint: str) -> Document:
        with pymongo.timeout(self._within_s):
            groups = await aggregate(self._messages, pipeline, hint=hint)
        return groups[0] if groups else {}


def _count(condition: Document) -> Document:
    return {"$sum": {"$cond": [condition, 1, 0]}}


def _only(condition: Document, value: str) -> Document:
    """Return the value if the condition holds, and else null, which `$min` and `$max` ignore."""
    return {"$cond": [condition, value, None]}


def _ms(value: Any) -> int | None:
    return None if value is None else int(value)
