"""The end of messages in MongoDB: status for senders, revocation, expiry, and retirement.

Kept messages, those with a receipt or an idempotency key, outlive their end for their senders, but
without their text (see `retire`) and for a limited time.
"""

import hmac
import secrets
import time
from collections import Counter
from collections.abc import Mapping

import pymongo
import structlog
from bson.datetime_ms import DatetimeMS
from pymongo.errors import PyMongoError

from workers.commands import MessageStatus, Revoke, Track
from workers.errors import OutcomeUnknown, ServiceError, StoreUnavailable
from workers.store.base import CountedEvent
from workers.store.connection import Connection
from workers.store.driver import Document
from workers.store.driver_errors import read_errors, write_errors
from workers.store.schema import KEPT_INDEX, LEASE_END_INDEX, PURGE_INDEX

log = structlog.get_logger(__name__)

#: Sweeps ignore messages that expired less than this many ms ago: the clocks of nodes may differ.
EXPIRE_MARGIN_MS = 1000
#: The fields that tell the status of a message, and where it is.
_STATUS_FIELDS = (
    *("username", "receipts", "unread", "lease", "claim", "revoked", "dead", "expires_at"),
)
#: The statuses in which a sender can take a message back.
_REVOCABLE = ("pending", "scheduled")
#: Longest time for a count of the pending messages, in seconds.
_COUNT_S = 60.0


class Lifecycle(Connection):
    """The part of `workers.store.base.Store` for the end of messages."""

    async def track(self, command: Track, now_ms: int) -> MessageStatus | None:
        """See `workers.store.base.Store.track`."""
        document = await self._find_sent(command)
        return None if document is None else _status_of(document, now_ms)

    async def _find_sent(self, command: Track) -> Document | None:
        """Return the fields of a message that tell its status, if the receipt belongs to it."""
        with self._operation("track"), read_errors():
            document = await self._majority.find_one(
                self._layout.message(command.id), projection=_STATUS_FIELDS
            )
        has_receipt = document is not None and _has_receipt(document, command.receipt)
        return document if has_receipt else None

    async def revoke(self, command: Revoke, now_ms: int) -> tuple[MessageStatus | None, int]:
        """See `workers.store.base.Store.revoke`."""
        document = await self._find_sent(command)
        if document is None:
            return None, 0
        status: MessageStatus | None = _status_of(document, now_ms)
        if status is None or status.status not in _REVOCABLE:
            return status, 0
        message = {"_id": command.id, **self._layout.inbox(document["username"])}
        token = secrets.token_hex(16)

        async def write() -> int:
            result = await self._messages.update_one(
                {
                    **message,
                    "receipts": command.receipt,
                    # Unread, scheduled, released with a delay, or leased with a lease that is over
                    # but has not been ended yet.
                    "$or": [
                        {"unread": True},
                        {"lease.until": {"$exists": True}, "lease.token": None},
                        {"lease.until": {"$exists": True}, "lease.returned": True},
                        {"lease.until": {"$lt": DatetimeMS(now_ms)}},
                    ],
                    "expires_at": {"$gte": DatetimeMS(now_ms)},
                    "dead": None,
                    "voided": {"$ne": token},
                },
                {
                    "$set": {
                        "revoked": DatetimeMS(now_ms),
                        "purge_at": DatetimeMS(now_ms + self._keep_ms),
                    },
                    "$unset": {"unread": "", "text": "", "kept": "", "lease.until": ""},
                },
            )
            return result.modified_count

        mine, closing = {**message, "revoked": DatetimeMS(now_ms)}, (message, token)
        try:
            changed, was_repeated = await self._confirmed("revoke", write)
        except OutcomeUnknown:
            self._record_unresolved("revoked", mine, closing=closing)
            raise
        if changed:
            return MessageStatus("revoked", now_ms), 1
        # Another request was faster, or an earlier attempt was applied or may still be.
        try:
            if was_repeated:
                # Otherwise a late copy could revoke a message that this answer calls leased.
                with self._operation("revoke"), read_errors():
                    await self._close(*closing)
            status = await self.track(command, now_ms)
        except StoreUnavailable as error:
            if not was_repeated:
                raise
            self._record_unresolved("revoked", mine, closing=closing)
            raise OutcomeUnknown(str(error)) from error
        if status is not None and status.status in _REVOCABLE:
            raise StoreUnavailable("another reader held the message for a moment; try again")
        return status, int(was_repeated and status == MessageStatus("revoked", now_ms))

    async def count_resolved(self) -> Mapping[CountedEvent, int]:
        """See `workers.store.base.Store.count_resolved`."""
        counts: Counter[CountedEvent] = Counter()
        now = time.monotonic()
        for unresolved in [each for each in self._unresolved if each.due <= now]:
            try:
                with self._operation("reckon"), read_errors():
                    if unresolved.closing is not None:
                        await self._close(*unresolved.closing, hint=unresolved.hint)
                    counts[unresolved.event] += await self._majority.count_documents(
                        unresolved.selection, hint=unresolved.hint
                    )
            except StoreUnavailable:
                # The others have been counted and are not counted again.
                break
            self._unresolved.remove(unresolved)
        return counts

    async def count_pending(self) -> int:
        """See `workers.store.base.Store.count_pending`."""
        with read_errors(), pymongo.timeout(_COUNT_S):
            # Counts all entries of two indexes, without reading a document.
            unread = await self._messages.count_documents({}, hint=self._layout.inbox_index)
            leased = await self._messages.count_documents({}, hint=LEASE_END_INDEX)
        return unread + leased

    async def expire(self, now_ms: int, *, leads: bool = True) -> int:
        """See `workers.store.base.Store.expire`.

        Scans the purge index. Unread messages are found there one grace period after their expiry,
        where no claimed message is. Kept messages have an index of their own.
        """
        search = self._unsearched.begin(leads=leads)
        if search is None:
            return 0
        upto_ms = now_ms - EXPIRE_MARGIN_MS
        expired, is_complete = await self._mark_expired_between(search.from_ms, upto_ms)
        if is_complete:
            self._unsearched.complete(search, upto_ms)
        return expired

    async def _mark_expired_between(self, from_ms: int, upto_ms: int) -> tuple[int, bool]:
        """Mark the unread messages that expired in this time.

        Returns how many it marked, and whether these are all.
        """
        grace_ms = self._unread_grace_ms
        purged = {
            "$gte": DatetimeMS(from_ms + grace_ms),
            "$lt": DatetimeMS(upto_ms + grace_ms),
        }
        kept = {"$gte": DatetimeMS(from_ms), "$lt": DatetimeMS(upto_ms)}
        expired = await self._mark_expired({"purge_at": purged}, PURGE_INDEX)
        try:
            expired += await self._mark_expired(
                {"kept": True, "claim.at": None, "expires_at": kept}, KEPT_INDEX
            )
        except ServiceError as error:
            # The next call repeats all of this; the messages marked so far are counted now.
            log.debug("a sweep of expired messages failed and will run again", reason=str(error))
            return expired, False
        return expired, True

    async def retire(self, now_ms: int) -> None:
        """See `workers.store.base.Store.retire`."""
        claimed_ms, expired_ms = now_ms - self._claimed_grace_ms, now_ms - self._unread_grace_ms
        with self._operation("retire"), write_errors():
            await self._updates.everywhere(
                # A range of times does not match null, the value of unclaimed messages.
                {"kept": True, "claim.at": {"$lt": DatetimeMS(claimed_ms)}},
                self._retirement("$claim.at"),
                hint=KEPT_INDEX,
            )
            await self._updates.everywhere(
                {
                    "kept": True,
                    "claim.at": None,
                    "expires_at": {"$lt": DatetimeMS(expired_ms)},
                    # Only messages that were counted as expired.
                    "expired": {"$exists": True},
                },
                self._retirement("$expires_at"),
                hint=KEPT_INDEX,
            )

    def _retirement(self, end: str) -> list[Document]:
        return [
            {"$set": {"purge_at": {"$add": [end, self._keep_ms]}}},
            {"$unset": ["text", "kept"]},
        ]

    async def _mark_expired(self, selection: Document, hint: str) -> int:
        mark = secrets.token_hex(4)
        with self._operation("expire"), write_errors():
            try:
                return await self._updates.everywhere(
                    {"unread": True, **selection},
                    {"$unset": {"unread": ""}, "$set": {"expired": mark}},
                    hint=hint,
                    mark={"expired": mark},
                )
            except PyMongoError:
                self._record_unresolved("expired", {**selection, "expired": mark}, hint)
                raise


def _has_receipt(document: Document, receipt: str) -> bool:
    """Return whether a document has this receipt. Compares all of them in constant time."""
    found = False
    for each in document.get("receipts", ()):
        found |= hmac.compare_digest(each, receipt)
    return found


def _status_of(document: Document, now_ms: int) -> MessageStatus:
    if "revoked" in document:
        return MessageStatus("revoked", int(document["revoked"]))
    if "claim" in document:
        return MessageStatus("read", int(document["claim"]["at"]))
    if "dead" in document:
        return MessageStatus("dead", int(document["dead"]["at"]))
    expires_ms = int(document["expires_at"])
    if expires_ms < now_ms:
        return MessageStatus("expired", expires_ms)
    lease = document.get("lease", {})
    until_ms = int(lease.get("until", 0))
    if until_ms < now_ms:
        return MessageStatus("pending", None)
    if "token" not in lease or "returned" in lease:
        return MessageStatus("scheduled", until_ms)
    return MessageStatus("leased", None)
