"""What the rules of `tests.faults.checker` stand on: who took each message, and who may have."""

import math
from collections import Counter, defaultdict
from typing import NamedTuple

from tests.faults.derived_facts import (
    LeaseRecord,
    LeaseRecords,
    MessageRecord,
    earliest,
    messages_of,
    name_of,
)
from tests.faults.history import History, ReadRecord, ReceiptQuery


class Violation(NamedTuple):
    """A broken promise: its kind, and what happened."""

    kind: str
    what: str


class Acquisition(NamedTuple):
    """One way in which a message was taken: at some time from one moment up to another, and free
    for others no sooner than `free_from`.
    """

    began: float
    taken_by: float
    free_from: float
    what: ReadRecord | ReceiptQuery


class HistoryIndex:
    """A history, looked through once."""

    def __init__(self, history: History, late_s: float, longest_s: float, release_s: float) -> None:
        self._history = history
        self._late_s = late_s
        self._longest_s = longest_s
        self._release_s = release_s
        self._messages = messages_of(history.posts, history.drops)
        self._by_id = {each: sent for sent in self._messages.values() for each in sent.ids}
        self._leases = LeaseRecords(history.reads, history.lease_operations, longest_s)
        self._counts: Counter[str] = Counter()
        # Reads with a key, and when the last of them was sent that was answered.
        self._keyed: dict[str, list[ReadRecord]] = defaultdict(list)
        self._answered: dict[str, float] = {}
        for read in history.reads:
            if read.key:
                self._keyed[read.key].append(read)
                if read.outcome == "ok":
                    last = self._answered.get(read.key, -math.inf)
                    self._answered[read.key] = max(last, read.began)
        # Reads of an inbox that may have taken something that nobody saw.
        self._silent: dict[str, list[ReadRecord]] = defaultdict(list)
        for read in history.reads:
            if read.outcome in ("unknown", "cut"):
                self._silent[read.user].append(read)
        self._revocations: dict[str, list[ReceiptQuery]] = defaultdict(list)
        for query in history.receipt_queries:
            if query.what == "revoke" and query.outcome != "refused":
                self._revocations[query.id].append(query)
        # By text.
        self._acquisitions: dict[str, list[Acquisition]] = defaultdict(list)
        self._leased: dict[str, list[LeaseRecord]] = defaultdict(list)
        # By the lease's name and the message's id.
        self._lease_records: dict[tuple[str, str], list[LeaseRecord]] = defaultdict(list)
        for read in history.reads:
            for message_id, text in read.messages:
                sent = self._messages.get(text)
                if sent is not None and (sent.recreated or not sent.ids or message_id in sent.ids):
                    self._by_id.setdefault(message_id, sent)
                    self._take(read, message_id, sent)
        for message_id, revocations in self._revocations.items():
            done = [each for each in revocations if each.status == "revoked"]
            sent = self._by_id.get(message_id)
            if done and sent is not None:
                first = min(done, key=lambda each: each.ended)
                began = min(each.began for each in revocations)
                acquisition = Acquisition(began, first.ended, math.inf, first)
                self._acquisitions[sent.text].append(acquisition)

    def _take(self, read: ReadRecord, message_id: str, sent: MessageRecord) -> None:
        began = earliest(read, self._longest_s)
        if read.lease:
            loan = self._leases.record(read, message_id, sent)
            self._leased[sent.text].append(loan)
            self._lease_records[name_of(read.lease), message_id].append(loan)
            self._acquisitions[sent.text].append(
                Acquisition(began, read.ended, loan.free_from, read)
            )
            return
        if read.key:
            for other in self._acquisitions[sent.text]:
                if isinstance(other.what, ReadRecord) and other.what.key == read.key:
                    return
            # From the first try on it may have been kept for the key.
            began = min(each.began for each in self._keyed[read.key])
        self._acquisitions[sent.text].append(Acquisition(began, read.ended, math.inf, read))

    def _may_have_kept(self, read: ReadRecord) -> bool:
        """Whether what a read without messages took may be gone for good."""
        if read.lease:
            return False
        if read.key:
            # A twin that was sent before this one ended may have been answered before it took any.
            return self._answered.get(read.key, -math.inf) < read.ended
        return read.outcome == "cut" or any(
            read.began <= killed <= read.ended + self._release_s for killed in self._history.kills
        )

    def _unread_until(self, sent: MessageRecord, except_for: ReadRecord | None = None) -> float:
        """Up to when a message is unread for certain, if it is not for this read."""
        taken = [
            each.began
            for each in self._acquisitions.get(sent.text, ())
            if each.what is not except_for
        ]
        for each in sent.ids:
            taken += [revocation.began for revocation in self._revocations.get(each, ())]
        return min([*taken, sent.earliest_expiry - self._late_s])

    def _is_dropped_between(self, one: Acquisition, other: Acquisition) -> bool:
        """Whether a message that was taken may have been dropped, and stored anew for its key."""
        first, last = sorted((one, other), key=lambda each: each.began)
        return any(
            first.began < drop.ended and last.taken_by > drop.began for drop in self._history.drops
        )

    def _stored(self) -> dict[str, list[MessageRecord]]:
        stored: dict[str, list[MessageRecord]] = defaultdict(list)
        for sent in self._messages.values():
            if sent.outcome == "ok":
                stored[sent.user].append(sent)
        return stored

    def _may_have_expired(self, text: str, moment: float) -> bool:
        sent = self._messages.get(text)
        return sent is None or moment > sent.earliest_expiry - self._late_s

    def _may_be_held(self, sent: MessageRecord, began: float, ended: float) -> bool:
        """Whether reads without messages may have kept it from one that took that time."""
        is_taken = bool(self._acquisitions.get(sent.text))
        return any(
            silent.began < ended
            and silent.ended >= sent.began
            and (
                (not is_taken and self._may_have_kept(silent))
                or began <= silent.ended + silent.ttl_s + self._release_s
            )
            for silent in self._silent[sent.user]
        )
