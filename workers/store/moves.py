"""Dead letters in MongoDB: they move from their inbox to its dead-letter inbox, in three steps.

When the lease of an exhausted message ends (see `workers.dead_letters`), the leader

1. marks it with `dead: {at, id, inbox, deliveries}`, where `id` is that of its copy to be,
2. inserts the copy, and
3. ends the message: removes its text and `lease.until`, and counts it.

Each step waits for a majority before the next one begins, so this needs no transaction. If a node
dies in between, the next sweep goes on from what it finds:

- The mark is never replaced. So all leaders, and all late copies, insert a copy with the same id;
  one of them does, and the others find a duplicate.
- A marked message is over for everybody else. Its lease ends at a time that has passed on every
  clock, so no acknowledgement, extension or release changes it; other writes exclude `dead`. The
  TTL index leaves it alone.
- `lease.until` remains until the third step. So the sweep that looks for leases that are over finds
  the message again, and no index is needed for dead letters.
"""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import structlog
from bson.datetime_ms import DatetimeMS
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from workers.errors import OutcomeUnknown, ServiceError
from workers.routing import route_of
from workers.store.connection import Connection
from workers.store.driver import Document
from workers.store.driver_errors import read_errors, write_errors

log = structlog.get_logger(__name__)

#: The end of a lease that is over by every clock.
LONG_OVER = DatetimeMS(0)
#: The fields by which `_is_moving` judges a message.
MOVING_FIELDS = ("username", "deliveries", "dead", "origin", "expires_at")
#: A message that has less time left when its lease ends expires instead, in ms: the clocks of nodes
#: may differ, and none may call it expired that then moves.
_LIFE_LEFT_MIN_MS = 1000
#: The shortest lifetime of a dead letter, in ms.
_LIFETIME_MIN_MS = 3_600_000
#: How many messages move at a time. Their texts are in memory.
_AT_ONCE = 50
_DUPLICATE_KEY = 11000


class Moved(NamedTuple):
    """The dead-letter inboxes of a sweep, how many messages moved, and how many of them had not
    been released: their lease ran out.
    """

    inboxes: set[str]
    messages: int
    ran_out: int


class Moves(Connection):
    """The moves of exhausted messages, which are a part of `workers.store.base.Store.end_leases`.

    Several nodes may call this at the same time.
    """

    def _unexhausted(self) -> Document:
        """Return the filter for messages that become unread again when their lease ends."""
        most = self._dead_letters.max_deliveries
        exhausted = {"deliveries": {"$gte": most}, "origin": None}
        return {"dead": None, "$nor": [exhausted]} if most else {"dead": None}

    def _is_moving(self, document: Document) -> bool:
        """Return whether a message, whose lease is over, does not become unread again."""
        return "dead" in document or self._dead_letters.is_exhausted(
            document.get("deliveries", 0), is_dead_letter="origin" in document
        )

    async def _move(self, documents: Sequence[Document], now_ms: int) -> Moved:
        """Move messages whose lease is over and that are exhausted or marked.

        They have `MOVING_FIELDS`. Expired ones stay. If the database does not answer, the rest
        stays for the next sweep.
        """
        inboxes: set[str] = set()
        messages = ran_out = 0
        # In the order of their inbox. The ids of the copies have the same order.
        documents = sorted(documents, key=lambda each: str(each["_id"]))
        for start in range(0, len(documents), _AT_ONCE):
            some = documents[start : start + _AT_ONCE]
            try:
                with self._operation("dead letter"):
                    await self._mark([each for each in some if "dead" not in each], now_ms)
                    marked = await self._find_marked(some)
                with self._operation("dead letter"):
                    copied = await self._copy(marked, now_ms)
                    ended = await self._end(copied, now_ms)
            except ServiceError as error:
                log.debug("dead letters were not moved and will be", reason=str(error))
                break
            inboxes.update(each["dead"]["inbox"] for each in copied)
            messages += ended
            ran_out += min(ended, sum("returned" not in each["lease"] for each in copied))
        return Moved(inboxes, messages, ran_out)

    async def _mark(self, documents: Sequence[Document], now_ms: int) -> None:
        """Step 1: mark exhausted messages, unless they are expired or another node was faster.

        A late copy marks only a message that is still exhausted, not expired, and in no lease.
        """
        life_min_ms = now_ms + _LIFE_LEFT_MIN_MS
        documents = [each for each in documents if int(each["expires_at"]) >= life_min_ms]
        if not documents:
            return
        in_time: Document = {}
        if not self._is_routed:
            until = DatetimeMS(now_ms + int(self._timeout_s * 1000))
            in_time = {"$expr": {"$lt": ["$$NOW", {"$min": [until, "$expires_at"]}]}}
        writes = []
        for each in documents:
            inbox = self._dead_letters.inbox_of(each["username"])
            dead: Document = {
                "at": DatetimeMS(now_ms),
                "id": self._copy_ids.next(now_ms, route_of(inbox)),
                "inbox": inbox,
                "deliveries": each["deliveries"],
            }
            selection = {
                "_id": each["_id"],
                **self._layout.inbox(each["username"]),
                "lease.until": {"$lt": DatetimeMS(now_ms)},
                "deliveries": each["deliveries"],
                "dead": None,
                "origin": None,
                "expires_at": {"$gte": DatetimeMS(life_min_ms)},
                **in_time,
            }
            change = {"$set": {"dead": dead, "lease.until": LONG_OVER, "purge_at": None}}
            writes.append(UpdateOne(selection, change, hint="_id_"))
        with write_errors():
            try:
                await self._messages.bulk_write(writes, ordered=False)
            except BulkWriteError as error:
                # The search that follows finds what is marked.
                log.debug("not all dead letters were marked", reason=str(error))

    async def _find_marked(self, documents: Sequence[Document]) -> list[Document]:
        """Return those of these messages that a majority has marked, and that are not ended."""
        inboxes = self._layout.inboxes(list({each["username"] for each in documents}))
        ids = [each["_id"] for each in documents]
        marked = {"dead.id": {"$exists": True}, "lease.until": {"$exists": True}}
        fields = {"username": 1, "text": 1, "expires_at": 1, "dead": 1, "lease": 1}
        with read_errors():
            return await self._majority.find(
                {**inboxes, "_id": {"$in": ids}, **marked},
                projection=fields,
                sort=[("_id", 1)],
                hint="_id_",
            ).to_list(None)

    async def _copy(self, marked: Sequence[Document], now_ms: int) -> list[Document]:
        """Step 2: insert the dead letters. Return the messages that have one now.

        A dead letter is purged long after it was read or expired, so a late copy of the insert
        finds it.
        """
        if not marked:
            return []
        copies = [self._copy_of(each, now_ms) for each in marked]
        failed: dict[int, Any] = {}
        with write_errors():
            try:
                await self._messages.insert_many(copies, ordered=False)
            except BulkWriteError as error:
                details = error.details or {}
                if details.get("writeConcernErrors"):
                    raise OutcomeUnknown(f"the insert was not confirmed: {error}") from error
                for entry in details.get("writeErrors", ()):
                    # The id was chosen before the first attempt: a duplicate is this dead letter.
                    if entry["code"] != _DUPLICATE_KEY:
                        failed[entry["index"]] = entry["errmsg"]
        if failed:
            log.error(
                "dead letters could not be stored; they stay in their inboxes, unreadable, and "
                "this is tried again",
                messages=len(failed),
                reason=str(next(iter(failed.values()))),
            )
        return [each for position, each in enumerate(marked) if position not in failed]

    def _copy_of(self, document: Document, now_ms: int) -> Document:
        dead = document["dead"]
        # Counted from now: the mark may be old, if no node ran meanwhile.
        expires_ms = max(int(document["expires_at"]), now_ms + _LIFETIME_MIN_MS)
        return {
            "_id": dead["id"],
            "route": route_of(dead["inbox"]),
            "username": dead["inbox"],
            "text": document["text"],
            "created_at": DatetimeMS(now_ms),
            "expires_at": DatetimeMS(expires_ms),
            "purge_at": DatetimeMS(expires_ms + self._unread_grace_ms),
            "unread": True,
            "origin": {
                "username": document["username"],
                "id": document["_id"],
                "deliveries": dead["deliveries"],
            },
        }

    async def _end(self, copied: Sequence[Document], now_ms: int) -> int:
        """Step 3: end messages that have a dead letter. Returns how many this call ended."""
        if not copied:
            return 0
        mark = secrets.token_hex(4)
        keep = DatetimeMS(now_ms + self._keep_ms)
        purge = DatetimeMS(now_ms + self._claimed_grace_ms)
        inboxes = self._layout.inboxes(list({each["username"] for each in copied}))
        mine = {**inboxes, "_id": {"$in": [each["_id"] for each in copied]}}
        try:
            return await self._updates.of_found(
                copied,
                {
                    "dead.id": {"$exists": True},
                    "lease.until": {"$exists": True},
                    "voided": {"$ne": mark},
                },
                [
                    {
                        "$set": {
                            "dead.sweep": mark,
                            "purge_at": {"$cond": [{"$ifNull": ["$kept", False]}, keep, purge]},
                        }
                    },
                    {"$unset": ["lease.until", "text", "kept"]},
                ],
                mark={"dead.sweep": mark},
            )
        except PyMongoError as error:
            self._record_unresolved("dead", {**mine, "dead.sweep": mark}, closing=(mine, mark))
            raise OutcomeUnknown(str(error)) from error
