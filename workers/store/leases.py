"""Leases in MongoDB: acknowledged, released, extended, resumed by a stream, and expired.

A leased message has `lease: {token, at, by, until}` and no `unread`. Without `until` the lease is
over. Its token remains and identifies the last lease, so that a repeated acknowledgement and a
resumed stream are recognized. `lease.returned` is set if the lease was released. If it ran out, the
next lease moves its token to `lost_by`; from that, an acknowledgement of the whole lease learns
that it comes too late for this message.

A scheduled message has `lease: {until}`, which nobody holds, since it has no token. So the sweep
that ends leases finds the message at its time, without an index of its own.

A message that was released with a delay is scheduled, too: its lease is `returned`, `delayed`, and
`until` is the end of the delay. Nobody holds it, but the token is still there for a repeat of the
release. `delayed` remains when the delay ends: no stream that resumes acknowledges the message.

If a message is exhausted when its lease ends, it does not become unread, but moves to a dead-letter
inbox: see `workers.store.moves`. A release then only ends the lease, and the next sweep moves it.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from bson.datetime_ms import DatetimeMS
from pymongo.errors import PyMongoError

from workers.commands import Acknowledge, Audit, Extend, Held, Release, Resume
from workers.errors import OutcomeUnknown, StoreUnavailable
from workers.store.base import Ended, Settled
from workers.store.driver import Document
from workers.store.driver_errors import read_errors, write_errors
from workers.store.moves import LONG_OVER, MOVING_FIELDS, Moves
from workers.store.raw_commands import find
from workers.store.schema import COLLECTION, LEASE_END_INDEX, LEASE_INDEX, LOST_INDEX

#: Most messages that one sweep handles, and that move to dead-letter inboxes, which takes much
#: longer: others wait for the next sweep. It follows at once.
_SWEEP_MAX, _MOVES_MAX = 5000, 200
#: What a sweep has to know of a message.
_SWEPT_FIELDS = (
    *MOVING_FIELDS,
    *("lease.until", "lease.token", "lease.returned", "lease.delayed"),
)
#: The number of deliveries of a message without its last lease.
FEWER_DELIVERIES: Document = {"$max": [{"$subtract": ["$deliveries", 1]}, 0]}
#: A message that expired less than this many ms ago becomes unread, and `expire` finds it: the
#: clocks of nodes may differ a little.
_MARGIN_MS = 1000
#: The conditions that select the same messages after a change of their state.
_SAME_MESSAGES = ("route", "username", "lease.token", "_id")
#: Most messages that an audit reports.
_AUDIT_MAX = 5000


class Leases(Moves):
    """The part of `workers.store.base.Store` for leases."""

    async def acknowledge(self, command: Acknowledge, now_ms: int) -> Settled:
        """See `workers.store.base.Store.acknowledge`."""
        selection, hint = self._select(command)
        changed = await self._mark_read({**selection, **_is_held(now_ms)}, hint, now_ms)
        if changed and (command.ids is None or changed == len(command.ids)):
            return Settled(changed, changed)
        # Add the messages that an earlier call has acknowledged.
        return await self._with_earlier({**selection, "claim.acknowledged": True}, hint, changed)

    async def audit(self, command: Acknowledge, now_ms: int) -> Audit:
        """See `workers.store.base.Store.audit`."""
        selection, hint = self._select(command)
        acknowledged = {**selection, "claim.acknowledged": True}
        with self._operation("lease"), read_errors():
            if command.ids is not None:
                found = await self._ids(acknowledged, hint)
                mine = set(found)
                return Audit(found, tuple(each for each in command.ids if each not in mine))
            over: Document = {
                "claim.acknowledged": {"$ne": True},
                "lease.returned": {"$ne": True},
                # A message that the stream received again meanwhile is not lost.
                "$nor": [_is_held(now_ms)],
            }
            lost = await self._ids({**selection, **over}, hint)
            numbers = _tokens(command)
            since = {
                **self._layout.inbox(command.username),
                "lost_by": {"$elemMatch": numbers},
                # The stream itself may have received it again.
                "lease.token": {"$not": numbers},
            }
            lost = (*lost, *await self._ids(since, LOST_INDEX))
            return Audit(await self._ids(acknowledged, hint) if lost else (), lost)

    async def _ids(self, selection: Document, hint: str) -> tuple[str, ...]:
        documents = await self._majority.find(
            selection, projection={"_id": 1}, hint=hint, limit=_AUDIT_MAX
        ).to_list(None)
        return tuple(document["_id"] for document in documents)

    async def release(self, command: Release, now_ms: int) -> Settled:
        """See `workers.store.base.Store.release`.

        A late copy can only release what is still held under the same lease. The clock limits how
        late: the reader may have extended the lease meanwhile, and `expire` has to find the message
        if it has expired.
        """
        selection, hint = self._select(command)

        change = self._release_change(command, now_ms)

        async def write() -> int:
            result = await self._messages.update_many(
                {**selection, **_is_held(now_ms), **self._in_time(now_ms)}, change, hint=hint
            )
            return result.modified_count

        with self._may_return(now_ms - _MARGIN_MS):
            changed, was_repeated = await self._confirmed("lease", write)
        if changed and not was_repeated:
            return Settled(changed, changed)
        # Unread, or on its way to a dead-letter inbox.
        moving = [{"lease.until": LONG_OVER}, {"dead": {"$exists": True}}]
        states: list[Document] = [{"unread": True}, {"lease.returned": True, "$or": moving}]
        if command.delay_ms:
            states.append({"lease.delayed": True, "lease.until": {"$exists": True}})
        mine = {"$or": states}
        returned = await self._with_earlier({**selection, **mine}, hint, changed)
        return Settled(returned.messages, returned.messages) if was_repeated else returned

    def _release_change(self, command: Release, now_ms: int) -> Any:
        """Return the update of a release."""
        most, is_delivered = self._dead_letters.max_deliveries, command.is_delivered
        unread = {"unread": True, "lease.returned": True, "returned_to": command.username}
        if not most and is_delivered and not command.delay_ms:
            return {"$set": unread, "$unset": {"lease.until": ""}}
        counted: Document = {"$ifNull": ["$deliveries", 0]}
        fewer = [] if is_delivered else [{"$set": {"deliveries": FEWER_DELIVERIES}}]
        # Over by every clock, so that no late extension revives it.
        exhausted = {
            "$and": [
                most > 0,
                {"$gte": [counted, most]},
                {"$eq": [{"$type": "$origin"}, "missing"]},
            ]
        }
        if command.delay_ms:
            # As for a lease: no later than the message expires.
            due = {"$min": [DatetimeMS(now_ms + command.delay_ms), "$expires_at"]}
            return [
                *fewer,
                {
                    "$set": {
                        "lease.returned": True,
                        "lease.delayed": {"$cond": [exhausted, "$$REMOVE", True]},
                        "lease.until": {"$cond": [exhausted, LONG_OVER, due]},
                    }
                },
            ]
        return [
            *fewer,
            {
                "$set": {
                    "unread": {"$cond": [exhausted, "$$REMOVE", True]},
                    "returned_to": {
                        "$cond": [exhausted, "$$REMOVE", {"$literal": command.username}]
                    },
                    "lease.returned": True,
                    "lease.until": {"$cond": [exhausted, LONG_OVER, "$$REMOVE"]},
                }
            },
        ]

    async def extend(self, command: Extend, now_ms: int) -> int:
        """See `workers.store.base.Store.extend`."""
        selection, hint = self._select(command)
        # Never earlier: a late copy must not shorten the lease of a later delivery. It revives no
        # lease either: one that has ended has no `until` or was returned, and the next reader's has
        # another token.
        longer = {"$max": ["$lease.until", DatetimeMS(now_ms + command.ttl_ms)]}
        end = {"$min": [longer, "$expires_at"]}

        async def write() -> int:
            result = await self._messages.update_many(
                {**selection, **_is_held(now_ms)},
                [{"$set": {"lease.until": end}}],
                hint=hint,
            )
            return result.matched_count

        return (await self._confirmed("lease", write))[0]

    async def held(self, command: Held, now_ms: int) -> frozenset[str]:
        """See `workers.store.base.Store.held`."""
        selection, hint = self._select(command)
        with self._operation("lease"), read_errors():
            documents = await self._messages.find(
                {**selection, **_is_held(now_ms)}, projection={"_id": 1}, hint=hint
            ).to_list(None)
        return frozenset([document["_id"] for document in documents])

    async def resume(self, command: Resume, now_ms: int) -> Settled:
        """See `workers.store.base.Store.resume`.

        A message that was delivered twice went to two streams, and it is unknown which of them
        resumes. In that case only the named message is marked.
        """
        with self._operation("lease"), read_errors():
            last = await self._messages.find_one(
                {"_id": command.last, **self._layout.inbox(command.username)},
                projection={"lease": 1},
            )
        if last is None or "token" not in last.get("lease", {}):
            return Settled(0, 0)
        selection: Document = {
            **self._layout.inbox(command.username),
            "$or": [{"unread": True}, {"lease.until": {"$exists": True}}],
            # The consumer has asked for these again.
            "lease.delayed": None,
            "expires_at": {"$gte": DatetimeMS(now_ms)},
            "dead": None,
        }
        token = last["lease"]["token"]
        if last["lease"]["again"]:
            selection |= {"_id": command.last, "lease.token": token}
            hint = "_id_"
        else:
            first = token.partition(".")[0] + "."
            # By order of delivery, which differs from the order of ids.
            upto = [{"lease.token": {"$lt": token}}, {"_id": {"$lte": command.last}}]
            selection |= {"lease.token": {"$gte": first, "$lte": token}, "$and": [{"$or": upto}]}
            hint = LEASE_INDEX
        changed = await self._mark_read(selection, hint, now_ms)
        return Settled(changed, changed)

    async def end_leases(self, now_ms: int) -> Ended:
        """See `workers.store.base.Store.end_leases`."""
        over: Document = {"lease.until": {"$lt": DatetimeMS(now_ms)}}
        first_ms = await self._first_end()
        if first_ms is None or first_ms >= now_ms:
            return Ended((), 0, 0, first_ms)
        with self._operation("lease end"), read_errors():
            documents = await self._over(over, _SWEEP_MAX)
            moving = [each for each in documents if self._is_moving(each)]
            others = [each for each in documents if not self._is_moving(each)]
            if moving and len(documents) == _SWEEP_MAX:
                # Moves that take long, or fail, hold up no other messages.
                others = await self._over({**over, **self._unexhausted()}, _SWEEP_MAX)
                documents = [*moving, *others]
        expired_ms = now_ms - _MARGIN_MS
        expired = [each for each in documents if int(each["expires_at"]) < expired_ms]
        live = [each for each in others if int(each["expires_at"]) >= expired_ms]
        due = [each for each in live if _is_scheduled(each["lease"])]
        leased = [each for each in live if not _is_scheduled(each["lease"])]
        with self._operation("lease end"):
            with self._may_return(expired_ms), write_errors():
                released = await self._release_due(due, now_ms)
                returned = await self._return(leased, now_ms)
            marked = await self._expire_over(expired, now_ms)
        moved = await self._move(moving[:_MOVES_MAX], now_ms)
        usernames = {document["username"] for document in documents} | moved.inboxes
        return Ended(
            usernames,
            returned,
            marked,
            first_ms,
            due_ms=tuple(sorted(int(each["lease"]["until"]) for each in due)[:released]),
            # If nothing could be ended, another sweep at once would do no better.
            more=(len(documents) >= _SWEEP_MAX or len(moving) > _MOVES_MAX)
            and released + returned + marked + moved.messages > 0,
            dead=moved.messages,
            dead_ran_out=moved.ran_out,
        )

    async def _first_end(self) -> int | None:
        """Return the end of the first lease or delay, or None.

        Reads one key of the index and no document, since usually no lease is over.
        """
        with self._observed("lease end") as deadline, read_errors():
            first = await find(
                self._database,
                COLLECTION,
                {
                    "filter": {"lease.until": {"$exists": True}},
                    "projection": {"_id": 0, "lease.until": 1},
                    "sort": {"lease.until": 1},
                    "limit": 1,
                    "hint": LEASE_END_INDEX,
                },
                deadline,
            )
        return int(first[0]["lease"]["until"]) if first else None

    async def _over(self, selection: Document, limit: int) -> list[Document]:
        """Return messages whose lease or delay is over, those first that ended first."""
        return await self._messages.find(
            selection, projection=_SWEPT_FIELDS, limit=limit, hint=LEASE_END_INDEX
        ).to_list(None)

    async def _release_due(self, documents: Sequence[Document], now_ms: int) -> int:
        """Make scheduled messages unread whose time has come. Returns how many.

        By the database's own clock, so that nobody gets them early from a node whose clock is
        ahead. A late copy finds them no longer: they are without `lease`, or in a reader's lease,
        which has a token and was not returned, or wait for the end of a later delay.
        """
        until = DatetimeMS(now_ms + int(self._timeout_s * 1000))
        in_time: Document = {
            "$expr": {"$and": [{"$lt": ["$lease.until", "$$NOW"]}, {"$lt": ["$$NOW", until]}]}
        }
        released = await self._updates.of_found(
            documents,
            {
                "lease.until": {"$lt": DatetimeMS(now_ms)},
                "$or": [{"lease.token": None}, {"lease.returned": True}],
                "expires_at": {"$gte": DatetimeMS(now_ms - _MARGIN_MS)},
                **self._unexhausted(),
                **({} if self._is_routed else in_time),
            },
            [
                {
                    "$set": {
                        "unread": True,
                        "returned_to": "$username",
                        # What remains of a lease is for repeats of its release.
                        "lease": {
                            "$cond": [
                                {"$eq": [{"$type": "$lease.token"}, "missing"]},
                                "$$REMOVE",
                                "$lease",
                            ]
                        },
                    }
                },
                {"$unset": "lease.until"},
            ],
        )
        if released < len(documents):
            # Perhaps they are not due by the database's clock.
            self._clock.mark_suspect()
        return released

    async def _return(self, documents: Sequence[Document], now_ms: int) -> int:
        """Make messages unread again whose lease is over. Returns how many.

        A later lease ends later, so a late copy ends no other. Its time is limited so that `expire`
        finds the messages that expire meanwhile.
        """
        return await self._updates.of_found(
            documents,
            {
                "lease.until": {"$lt": DatetimeMS(now_ms)},
                "expires_at": {"$gte": DatetimeMS(now_ms - _MARGIN_MS)},
                **self._unexhausted(),
                **self._in_time(now_ms),
            },
            [{"$set": {"unread": True, "returned_to": "$username"}}, {"$unset": "lease.until"}],
        )

    async def _expire_over(self, documents: Sequence[Document], now_ms: int) -> int:
        """Mark expired messages whose lease or delay is over. Returns how many.

        If the database does not answer, they are counted later.
        """
        mark = secrets.token_hex(4)
        try:
            return await self._updates.of_found(
                documents,
                {
                    "lease.until": {"$lt": DatetimeMS(now_ms)},
                    "expires_at": {"$lt": DatetimeMS(now_ms - _MARGIN_MS)},
                    "dead": None,
                },
                {"$set": {"expired": mark}, "$unset": {"lease.until": ""}},
                mark={"expired": mark},
            )
        except PyMongoError:
            ids = [document["_id"] for document in documents]
            self._record_unresolved("expired", {"_id": {"$in": ids}, "expired": mark})
            return 0

    async def _mark_read(self, selection: Document, hint: str, now_ms: int) -> int:
        """Mark messages as read under a new token. Returns exactly how many this call marked.

        A late copy can only mark messages that are still held under the same lease. It is what the
        reader asked for, and it changes nothing once the messages are closed to it.
        """
        token = secrets.token_hex(16)
        claim = {"token": token, "at": DatetimeMS(now_ms), "by": self._node, "acknowledged": True}
        change: Document = {
            "$set": {"claim": claim},
            "$unset": {"unread": "", "lease.until": ""},
            "$min": {"purge_at": DatetimeMS(now_ms + self._claimed_grace_ms)},
        }

        async def write() -> int:
            result = await self._messages.update_many(
                {**selection, "voided": {"$ne": token}}, change, hint=hint
            )
            return result.modified_count

        messages = {field: selection[field] for field in _SAME_MESSAGES if field in selection}
        mine, closing = {"claim.token": token, **messages}, (messages, token)
        try:
            changed, was_repeated = await self._confirmed("lease", write)
        except OutcomeUnknown:
            self._record_unresolved("read", mine, hint, closing)
            raise
        if not was_repeated and not self._is_routed:
            return changed
        # A mongos, too, repeats a statement.
        try:
            with self._operation("lease"), read_errors():
                await self._close(*closing, hint=hint)
                return await self._majority.count_documents(mine, hint=hint)
        except StoreUnavailable as error:
            self._record_unresolved("read", mine, hint, closing)
            raise OutcomeUnknown(str(error)) from error

    def _select(self, command: Acknowledge | Release | Extend | Held) -> tuple[Document, str]:
        """Return the filter for a command's messages, and the index to use."""
        selection = {**self._layout.inbox(command.username), "lease.token": _tokens(command)}
        if isinstance(command, Extend | Held) or command.ids is None:
            return selection, LEASE_INDEX
        selection["_id"] = {"$in": list(command.ids)}
        return selection, "_id_"

    async def _with_earlier(self, selection: Document, hint: str, changed: int) -> Settled:
        """Add the messages that were in the state before. If the database does not answer, report
        those that this call changed.
        """
        try:
            with self._operation("lease"), read_errors():
                messages = await self._majority.count_documents(selection, hint=hint)
        except StoreUnavailable:
            if not changed:
                raise
            messages = changed
        return Settled(messages, changed)


def _tokens(command: Acknowledge | Release | Extend | Held) -> dict[str, str]:
    """Return the range of a lease's tokens; in ASCII, the slash follows the dot."""
    return {"$gte": f"{command.lease}.", "$lt": f"{command.lease}/"}


def _is_scheduled(lease: Document) -> bool:
    """Return whether a message with this `lease` waits for its time, and no reader has it."""
    # Earlier versions leave `delayed` in the lease of the next reader.
    return "token" not in lease or ("returned" in lease and "delayed" in lease)


def _is_held(now_ms: int) -> dict[str, Any]:
    """Return the condition that the lease is not over, and thus the message not expired."""
    return {"lease.until": {"$gte": DatetimeMS(now_ms)}, "lease.returned": None}
