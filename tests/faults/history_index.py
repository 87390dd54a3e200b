"""An index of a history for the rules of `tests.faults.checker`: who took each message, and who may
have.
"""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import NamedTuple

from tests.faults.dead_letter_facts import Death, dead_letter_facts
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
    """A guarantee that was not kept: the kind of violation, and what happened."""

    kind: str
    what: str


class Acquisition(NamedTuple):
    """One way in which a message was taken. It happened between `began` and `taken_by`. The message
    is free for others at `free_from` at the earliest, and can be revoked or die from `ends_from`
    on.
    """

    began: float
    taken_by: float
    free_from: float
    what: ReadRecord | ReceiptQuery | Death
    ends_from: float = math.inf

    def frees(self, other: "Acquisition") -> float:
        """Return when the message is free for another acquisition, at the earliest."""
        return self.free_from if isinstance(other.what, ReadRecord) else self.ends_from


class Limits(NamedTuple):
    """The limits by which a history is judged; see `tests.faults.checker.check`."""

    late_s: float
    longest_s: float
    release_s: float
    due_s: float
    lead_s: float


class HistoryIndex:
    """A history, indexed once for all rules."""

    def __init__(self, history: History, limits: Limits) -> None:
        self._late_s, self._longest_s, self._release_s, due_s, lead_s = self._limits = limits
        longest_s = self._longest_s
        self._messages = messages_of(history.posts, history.drops, history.faults, due_s, lead_s)
        # Dead letters that somebody saw, by the texts of their originals.
        reads, self._died = dead_letter_facts(history, self._messages)
        self._messages |= {death.copy.text: death.copy for death in self._died.values()}
        self._history = history = replace(history, reads=reads)
        self._by_id = {each: sent for sent in self._messages.values() for each in sent.ids}
        self._leases = LeaseRecords(
            history.reads, history.lease_operations, longest_s, self._late_s
        )
        self._counts: Counter[str] = Counter()
        # Reads by key, and the latest time at which an answered one was sent.
        self._keyed: dict[str, list[ReadRecord]] = defaultdict(list)
        self._answered: dict[str, float] = {}
        for read in history.reads:
            if read.key:
                self._keyed[read.key].append(read)
                if read.outcome == "ok":
                    last = self._answered.get(read.key, -math.inf)
                    self._answered[read.key] = max(last, read.began)
        # Reads by inbox that may have taken messages that no client saw.
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

        for text, death in self._died.items():
            # It may have died long before, by deliveries that no client saw.
            silent = [each.began for each in self._silent[self._messages[text].user] if each.lease]
            began = min([death.seen.began, *silent])
            self._acquisitions[text].append(Acquisition(began, death.seen.ended, math.inf, death))

    def _take(self, read: ReadRecord, message_id: str, sent: MessageRecord) -> None:
        began = earliest(read, self._longest_s)
        if read.lease:
            record = self._leases.record(read, message_id, sent)
            self._leased[sent.text].append(record)
            self._lease_records[name_of(read.lease), message_id].append(record)
            self._acquisitions[sent.text].append(
                Acquisition(began, read.ended, record.free_from, read, record.ends_from)
            )
            return
        if read.key:
            for other in self._acquisitions[sent.text]:
                if isinstance(other.what, ReadRecord) and other.what.key == read.key:
                    return
            # The key may hold the message since its first attempt.
            began = min(each.began for each in self._keyed[read.key])
        self._acquisitions[sent.text].append(Acquisition(began, read.ended, math.inf, read))

    def _may_have_kept(self, read: ReadRecord) -> bool:
        """Return whether the messages taken by a read without an answer may be gone for good."""
        if read.lease:
            return False
        if read.key:
            # A repeat that was sent before this one ended may have been answered before this one
            # took any.
            return self._answered.get(read.key, -math.inf) < read.ended
        return read.outcome == "cut" or any(
            read.began <= killed <= read.ended + self._release_s for killed in self._history.kills
        )

    def _unread_until(self, sent: MessageRecord, except_for: ReadRecord | None = None) -> float:
        """Return the time until which a message is certainly unread, apart from this read."""
        taken = [
            each.began
            for each in self._acquisitions.get(sent.text, ())
            if each.what is not except_for
        ]
        for each in sent.ids:
            taken += [revocation.began for revocation in self._revocations.get(each, ())]
        return min([*taken, sent.earliest_expiry - self._late_s])

    def _may_have_lost_dead(self, sent: MessageRecord) -> bool:
        """Return whether a read without an answer may have taken the message's dead letter."""
        rules = self._history.dead_letters
        return bool(rules.max_deliveries) and any(
            silent.ended >= sent.began and self._may_have_kept(silent)
            for silent in self._silent.get(rules.inbox_of(sent.user), ())
        )

    def _is_dropped_between(self, one: Acquisition, other: Acquisition) -> bool:
        """Return whether the message may have been dropped in between, and stored again for its
        key.
        """
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
        """Return whether reads without an answer may have held a message in that period."""
        is_taken = bool(self._acquisitions.get(sent.text))
        return self._may_have_lost_dead(sent) or any(
            silent.began < ended
            and silent.ended >= sent.began
            and (
                (not is_taken and self._may_have_kept(silent))
                or began <= silent.ended + silent.ttl_s + self._release_s
            )
            for silent in self._silent[sent.user]
        )
