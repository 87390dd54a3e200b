"""Rules of `tests.faults.checker`: no message belongs to two readers at once."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from tests.faults.derived_facts import LeaseRecord, MessageRecord
from tests.faults.history import LeaseOperation, ReceiptQuery
from tests.faults.history_index import Acquisition, HistoryIndex, Violation


class ExclusivityRules(HistoryIndex):
    """Rules for everything that can take a message: reads, leases, keys, and revocations."""

    def _stored_twice(self) -> Iterator[Violation]:
        """Find keys under which more than one message was stored in an inbox."""
        by_key: dict[tuple[str, str], list[MessageRecord]] = defaultdict(list)
        for sent in self._messages.values():
            if len(sent.ids) > 1 + sent.recreated:
                yield Violation("duplicated", f"two ids: {sent}")
            if sent.key and (sent.outcome == "ok" or self._acquisitions.get(sent.text)):
                by_key[sent.key, sent.user].append(sent)
        for stored in by_key.values():
            if len(stored) > 1:
                yield Violation("duplicated", f"two messages with one key: {stored}")

    def _taken_twice(self) -> Iterator[Violation]:
        """Find messages that went to a second reader after they were read, leased or revoked."""
        for message_id, moment in self._leases.resumed():
            sent = self._by_id.get(message_id)
            for acquisition in self._acquisitions[sent.text] if sent is not None else ():
                # Before that, another reader may have had it, because the stream's lease had ended.
                if acquisition.began > moment:
                    yield Violation("duplicated", f"{sent} resumed at {moment}: {acquisition}")
        for text, acquisitions in self._acquisitions.items():
            for one, other in combinations(acquisitions, 2):
                if one.frees(other) <= other.taken_by + self._late_s:
                    continue
                if other.frees(one) <= one.taken_by + self._late_s:
                    continue
                if self._messages[text].recreated and self._is_dropped_between(one, other):
                    continue
                kind = "duplicated"
                if isinstance(one.what, ReceiptQuery) or isinstance(other.what, ReceiptQuery):
                    kind = "revoked"
                elif (
                    min(one.ends_from - other.taken_by, other.ends_from - one.taken_by)
                    <= self._late_s
                ):
                    # Nobody held it any more, but its delay was not over.
                    kind = "early"
                elif _is_leased_twice(one, other) or _is_leased_twice(other, one):
                    kind = "double lease"
                yield Violation(kind, f"{self._messages[text]}: {one} and {other}")

    def _repeated_keys(self) -> Iterator[Violation]:
        """Check that a keyed repeat has what remains of the first answer with messages."""
        for reads in self._keyed.values():
            answers = [read for read in reads if read.outcome == "ok" and read.messages]
            for first, again in combinations(sorted(answers, key=lambda read: read.ended), 2):
                self._counts["repeats"] += 1
                # If all of them may be gone, the key gets new messages.
                is_over = all(
                    self._may_have_expired(each, again.ended) for _, each in first.messages
                )
                for _, text in {*first.messages} - {*again.messages}:
                    if not self._may_have_expired(text, again.ended):
                        yield Violation("inconsistent", f"{text} of {first} not in {again}")
                for _, text in {*again.messages} - {*first.messages}:
                    if not is_over and not self._may_have_expired(text, first.ended):
                        yield Violation("inconsistent", f"{text} of {again} not in {first}")
            for first in answers:
                for again in reads:
                    if again.outcome != "ok" or again.messages or again.began < first.ended:
                        continue
                    for _, text in first.messages:
                        if not self._may_have_expired(text, again.ended):
                            yield Violation("inconsistent", f"{text} of {first} not in {again}")

    def _lease_answers(self) -> Iterator[Violation]:
        """Check the answers that consumers got about their leases."""
        for each in self._history.lease_operations:
            if each.outcome != "ok":
                continue
            affected = self._leases.affected(each)
            if each.what == "resume":
                if each.messages > len(affected):
                    yield Violation("excess", f"{each} of {affected}")
            elif each.what != "release":
                yield from self._hidden_losses(each, affected)
                leases = {
                    message_id: self._lease_records[each.lease, message_id][-1]
                    for message_id in affected
                    if (each.lease, message_id) in self._lease_records
                }
                yield from self._miscounted(each, leases)

    def _hidden_losses(self, operation: LeaseOperation, affected: set[str]) -> Iterator[Violation]:
        """Find successes for messages that were lost: the lease had ended before they were
        acknowledged.
        """
        if not operation.is_all:
            return
        excused = (
            self._leases.acknowledged_before(operation)
            | self._leases.maybe_resumed(operation)
            | self._leases.released_before(operation)
        )
        for message_id in affected - excused:
            leases = self._lease_records.get((operation.lease, message_id))
            if leases and leases[-1].ended_by + self._late_s < operation.began:
                yield Violation("hidden", f"{message_id} in {operation}: {leases}")

    def _miscounted(
        self, operation: LeaseOperation, leases: Mapping[str, LeaseRecord]
    ) -> Iterator[Violation]:
        """Check that an acknowledgement counts the messages it holds or has acknowledged, no
        others.
        """
        # A resumed stream may have acknowledged messages that others have leased since.
        before = self._leases.acknowledged_before(operation) | self._leases.maybe_resumed(operation)
        counts_before = operation.what == "acknowledge"
        most = sum(
            record.ended_by + self._late_s >= operation.began
            or (counts_before and message_id in before)
            for message_id, record in leases.items()
        )
        # An operation on a whole lease covers the messages that it still holds.
        gone = before if operation.ids is None else set()
        least = sum(
            record.held_until - self._late_s > operation.ended and message_id not in gone
            for message_id, record in leases.items()
        )
        if operation.messages > most:
            yield Violation("overtime", f"{operation}: {leases}")
        if counts_before and operation.messages < least:
            yield Violation("forgotten", f"{operation}: {leases}")


def _is_leased_twice(one: Acquisition, other: Acquisition) -> bool:
    """Return whether a message was delivered to another reader while `one` had it leased."""
    return one.free_from < math.inf and one.began < other.taken_by
