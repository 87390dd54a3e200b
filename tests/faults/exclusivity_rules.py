"""MessageLimits of `tests.faults.checker`: nobody gets what another has."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from tests.faults.derived_facts import Loan, Sent
from tests.faults.history import Inquiry, Settlement
from tests.faults.history_index import Evidence, Taking, Violation


class Taken(Evidence):
    """Messages and their takers: reads, leases, keys, senders that take them back."""

    def _posted_twice(self) -> Iterator[Violation]:
        """Of all posts with one key, one message is stored."""
        by_key: dict[str, list[Sent]] = defaultdict(list)
        for sent in self._messages.values():
            if len(sent.ids) > 1 + sent.remade:
                yield Violation("duplicated", f"two ids: {sent}")
            if sent.key and (sent.outcome == "ok" or self._takings.get(sent.text)):
                by_key[sent.key].append(sent)
        for stored in by_key.values():
            if len(stored) > 1:
                yield Violation("duplicated", f"two messages with one key: {stored}")

    def _taken_twice(self) -> Iterator[Violation]:
        """Nobody gets what another has: not what is read, on loan, or taken back."""
        for message_id, moment in self._loans.resumed():
            sent = self._by_id.get(message_id)
            for taking in self._takings[sent.text] if sent is not None else ():
                # Until then another may have had it, since the stream's lease was over.
                if taking.began > moment:
                    yield Violation("duplicated", f"{sent} resumed at {moment}: {taking}")
        for text, takings in self._takings.items():
            for one, other in combinations(takings, 2):
                if one.free_from <= other.taken_upto + self._late_s:
                    continue
                if other.free_from <= one.taken_upto + self._late_s:
                    continue
                if self._messages[text].remade and self._is_dropped_between(one, other):
                    continue
                kind = "duplicated"
                if isinstance(one.what, Inquiry) or isinstance(other.what, Inquiry):
                    kind = "revoked"
                elif _is_lent_to_both(one, other) or _is_lent_to_both(other, one):
                    kind = "on loan"
                yield Violation(kind, f"{self._messages[text]}: {one} and {other}")

    def _repeated(self) -> Iterator[Violation]:
        """A repeat with a key gets what is left of the first answer that was not empty."""
        for reads in self._keyed.values():
            answers = [read for read in reads if read.outcome == "ok" and read.messages]
            for first, again in combinations(sorted(answers, key=lambda read: read.ended), 2):
                self._counts["repeats"] += 1
                # All of it may be gone: then the key gets something new.
                is_over = all(self._may_be_dead(each, again.ended) for _, each in first.messages)
                for _, text in {*first.messages} - {*again.messages}:
                    if not self._may_be_dead(text, again.ended):
                        yield Violation("inconsistent", f"{text} of {first} not in {again}")
                for _, text in {*again.messages} - {*first.messages}:
                    if not is_over and not self._may_be_dead(text, first.ended):
                        yield Violation("inconsistent", f"{text} of {again} not in {first}")
            for first in answers:
                for again in reads:
                    if again.outcome != "ok" or again.messages or again.began < first.ended:
                        continue
                    for _, text in first.messages:
                        if not self._may_be_dead(text, again.ended):
                            yield Violation("inconsistent", f"{text} of {first} not in {again}")

    def _acked(self) -> Iterator[Violation]:
        """What consumers were told of what they had on loan."""
        for each in self._history.settlements:
            if each.outcome != "ok":
                continue
            concerned = self._loans.concerned(each)
            if each.what == "resume":
                if each.messages > len(concerned):
                    yield Violation("excess", f"{each} of {concerned}")
            elif each.what != "release":
                yield from self._hidden(each, concerned)
                loans = {
                    message_id: self._borrowed[each.lease, message_id][-1]
                    for message_id in concerned
                    if (each.lease, message_id) in self._borrowed
                }
                yield from self._counted(each, loans)

    def _hidden(self, settlement: Settlement, concerned: set[str]) -> Iterator[Violation]:
        """A success never hides a loss: what was over, and not acknowledged before, is named."""
        if not settlement.is_all:
            return
        excused = (
            self._loans.settled_before(settlement)
            | self._loans.maybe_resumed(settlement)
            | self._loans.returned_before(settlement)
        )
        for message_id in concerned - excused:
            loans = self._borrowed.get((settlement.lease, message_id))
            if loans and loans[-1].over_upto + self._late_s < settlement.began:
                yield Violation("hidden", f"{message_id} in {settlement}: {loans}")

    def _counted(self, settlement: Settlement, loans: Mapping[str, Loan]) -> Iterator[Violation]:
        """An acknowledgement counts what it holds or has acknowledged, and nothing else."""
        # A stream that comes again may have acknowledged what others had on loan since.
        before = self._loans.settled_before(settlement) | self._loans.maybe_resumed(settlement)
        counts_before = settlement.what == "acknowledge"
        most = sum(
            loan.over_upto + self._late_s >= settlement.began
            or (counts_before and message_id in before)
            for message_id, loan in loans.items()
        )
        # All of a lease is what it still holds.
        gone = before if settlement.ids is None else set()
        least = sum(
            loan.held_upto - self._late_s > settlement.ended and message_id not in gone
            for message_id, loan in loans.items()
        )
        if settlement.messages > most:
            yield Violation("overtime", f"{settlement}: {loans}")
        if counts_before and settlement.messages < least:
            yield Violation("forgotten", f"{settlement}: {loans}")


def _is_lent_to_both(one: Taking, other: Taking) -> bool:
    """Whether a message was given to another while one had it on loan."""
    return one.free_from < math.inf and one.began < other.taken_upto
