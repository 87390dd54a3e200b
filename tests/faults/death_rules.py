"""Rules of `tests.faults.checker`: deliveries are counted, and exhausted messages die once."""

import math
from collections.abc import Iterator

from tests.faults.derived_facts import LeaseRecord, MessageRecord, earliest
from tests.faults.history import ReadRecord
from tests.faults.history_index import HistoryIndex, Violation


class DeathRules(HistoryIndex):
    """Rules for the deliveries of each message, and for those that became dead letters."""

    def _miscounted_deliveries(self) -> Iterator[Violation]:
        """Find leases that report a false number of deliveries."""
        for text, leases in self._leased.items():
            sent = self._messages[text]
            for record in leases:
                number = _reported(record, sent)
                if number is None:
                    continue
                others = [each for each in leases if each is not record]
                # A search may not see a lease that others take meanwhile.
                began, ended = earliest(record.read, self._longest_s), record.read.ended
                least = 1 + sum(
                    other.read.ended < began and other.undone_from >= ended for other in others
                )
                most = 1 + sum(
                    other.read.began < ended and other.undone_by >= began for other in others
                )
                if not least <= number <= most + self._unseen(sent, ended):
                    what = f"{number} of {sent}, from {least} to {most}: {leases}"
                    yield Violation("miscounted", what)

    def _unseen(self, sent: MessageRecord, before: float) -> int:
        """Return how many deliveries to readers without an answer may have counted by then.

        A lease that is undone before it ran out or was released does not count.
        """
        return sum(
            bool(silent.lease)
            and silent.ended >= sent.began
            and (
                silent.began + silent.ttl_s - self._late_s <= before
                or self._leases.may_be_released(silent.lease, before)
            )
            for silent in self._silent[sent.user]
        )

    def _may_have_died(self, sent: MessageRecord, before: float) -> bool:
        """Return whether a message may have been delivered often enough by then."""
        # One that is undone is over before the next one begins.
        seen = sum(
            each.read.began < before and each.undone_by == math.inf
            for each in self._leased.get(sent.text, ())
        )
        most = self._history.dead_letters.max_deliveries
        return 0 < most <= seen + self._unseen(sent, before)

    def _deaths(self) -> Iterator[Violation]:
        """Find messages that were delivered too often, or died too soon."""
        most = self._history.dead_letters.max_deliveries
        copies = {death.copy.text for death in self._died.values()}
        for text, leases in self._leased.items():
            reads = sum(
                isinstance(each.what, ReadRecord) and not each.what.lease
                for each in self._acquisitions[text]
            )
            counted = sum(each.undone_from == math.inf for each in leases)
            if most and text not in copies and counted + reads > most:
                yield Violation("overdelivered", f"{self._messages[text]}: {leases}")
        for text, death in self._died.items():
            sent = self._messages[text]
            if not self._may_have_died(sent, death.seen.ended):
                yield Violation("premature", f"{sent}: {self._leased.get(text)}, {death}")

    def _reported_deaths(self) -> Iterator[Violation]:
        """Find messages that are dead by a receipt and in no read of their dead-letter inbox."""
        for query in self._history.receipt_queries:
            sent = self._by_id.get(query.id)
            if query.outcome != "ok" or query.status != "dead" or sent is None:
                continue
            if sent.text not in self._died and not self._may_have_lost_dead(sent):
                yield Violation("lost", f"{sent}: {query}, and in no dead-letter inbox")

    def _uncounted_deaths(self) -> Iterator[Violation]:
        """Find servers that counted more or fewer dead messages than there are."""
        sums, died = self._history.sums, len(self._died)
        if sums is None or "dead" not in sums:
            return
        is_sure = not any(self._may_have_lost_dead(sent) for sent in self._messages.values())
        if sums["dead"] < died or (is_sure and sums["dead"] > died):
            yield Violation("unaccounted", f"{died} messages died: {dict(sums)}")


def _reported(record: LeaseRecord, sent: MessageRecord) -> int | None:
    """Return the number of deliveries that a lease reports, if it does."""
    for (_, text), number in zip(record.read.messages, record.read.deliveries, strict=False):
        if text == sent.text:
            return number
    return None
