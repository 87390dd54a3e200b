"""MessageLimits of `tests.faults.checker`: nobody gets what another has."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from tests.faults.derived_facts import LeaseRecord, MessageRecord
from tests.faults.history import LeaseOperation, ReceiptQuery
from tests.faults.history_index import Acquisition, HistoryIndex, Violation


class ExclusivityRules(HistoryIndex):
    """Messages and their takers: reads, leases, keys, senders that take them back."""

    def _stored_twice(self) -> Iterator[Violation]:
        """Of all posts with one key, one message is stored."""
        by_key: dict[str, list[MessageRecord]] = defaultdict(list)
        for sent in self._messages.values():
            if len(sent.ids) > 1 + sent.recreated:
                yield Violation("duplicated", f"two ids: {sent}")
            if sent.key and (sent.outcome == "ok" or self._acquisitions.get(sent.text)):
                by_key[sent.key].append(sent)
        for stored in by_key.values():
            if len(stored) > 1:
                yield Violation("duplicated", f"two messages with one key: {stored}")

    def _taken_twice(self) -> Iterator[Violation]:
        """Nobody gets what another has: not what is read, on loan, or taken back."""
        for message_id, moment in self._leases.resumed():
            sent = self._by_id.get(message_id)
            for acquisition in self._acquisitions[sent.text] if sent is not None else ():
                # Until then another may have had it, since the stream's lease was over.
                if acquisition.began > moment:
                    yield Violation("duplicated", f"{sent} resumed at {moment}: {acquisition}")
        for text, acquisitions in self._acquisitions.items():
            for one, other in combinations(acquisitions, 2):
                if one.free_from <= other.taken_by + self._late_s:
                    continue
                if other.free_from <= one.taken_by + self._late_s:
                    continue
                if self._messages[text].recreated and self._is_dropped_between(one, other):
                    continue
                kind = "duplicated"
                if isinstance(one.what, ReceiptQuery) or isinstance(other.what, ReceiptQuery):
                    kind = "revoked"
                elif _is_leased_twice(one, other) or _is_leased_twice(other, one):
                    kind = "double lease"
                yield Violation(kind, f"{self._messages[text]}: {one} and {other}")

    def _repeated_keys(self) -> Iterator[Violation]:
        """A repeat with a key gets what is left of the first answer that was not empty."""
        for reads in self._keyed.values():
            answers = [read for read in reads if read.outcome == "ok" and read.messages]
            for first, again in combinations(sorted(answers, key=lambda read: read.ended), 2):
                self._counts["repeats"] += 1
                # All of it may be gone: then the key gets something new.
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
        """What consumers were told of what they had on loan."""
        for each in self._history.lease_operations:
            if each.outcome != "ok":
                continue
            affected = self._leases.affected(each)
            if each.what == "resume":
                if each.messages > len(affected):
                    yield Violation("excess", f"{each} of {affected}")
            elif each.what != "release":
                yield from self._hidden_losses(each, affected)
                loans = {
                    message_id: self._lease_records[each.lease, message_id][-1]
                    for message_id in affected
                    if (each.lease, message_id) in self._lease_records
                }
                yield from self._miscounted(each, loans)

    def _hidden_losses(self, operation: LeaseOperation, affected: set[str]) -> Iterator[Violation]:
        """A success never hides a loss: what was over, and not acknowledged before, is named."""
        if not operation.is_all:
            return
        excused = (
            self._leases.acknowledged_before(operation)
            | self._leases.maybe_resumed(operation)
            | self._leases.released_before(operation)
        )
        for message_id in affected - excused:
            loans = self._lease_records.get((operation.lease, message_id))
            if loans and loans[-1].ended_by + self._late_s < operation.began:
                yield Violation("hidden", f"{message_id} in {operation}: {loans}")

    def _miscounted(
        self, operation: LeaseOperation, loans: Mapping[str, LeaseRecord]
    ) -> Iterator[Violation]:
        """An acknowledgement counts what it holds or has acknowledged, and nothing else."""
        # A stream that comes again may have acknowledged what others had on loan since.
        before = self._leases.acknowledged_before(operation) | self._leases.maybe_resumed(operation)
        counts_before = operation.what == "acknowledge"
        most = sum(
            loan.ended_by + self._late_s >= operation.began
            or (counts_before and message_id in before)
            for message_id, loan in loans.items()
        )
        # All of a lease is what it still holds.
        gone = before if operation.ids is None else set()
        least = sum(
            loan.held_until - self._late_s > operation.ended and message_id not in gone
            for message_id, loan in loans.items()
        )
        if operation.messages > most:
            yield Violation("overtime", f"{operation}: {loans}")
        if counts_before and operation.messages < least:
            yield Violation("forgotten", f"{operation}: {loans}")


def _is_leased_twice(one: Acquisition, other: Acquisition) -> bool:
    """Whether a message was given to another while one had it on loan."""
    return one.free_from < math.inf and one.began < other.taken_by
