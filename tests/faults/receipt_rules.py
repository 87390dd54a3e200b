"""Rules of `tests.faults.checker`: a receipt never reports a false status."""

import math
from collections import defaultdict
from collections.abc import Iterator

from tests.faults.death_rules import DeathRules
from tests.faults.derived_facts import MessageRecord
from tests.faults.history import ReadRecord, ReceiptQuery
from tests.faults.history_index import Violation


class ReceiptRules(DeathRules):
    """Rules for the answers that senders got about their messages."""

    def _receipt_answers(self) -> Iterator[Violation]:
        """Check the answers that senders got about their messages."""
        receipts: dict[str, set[str]] = defaultdict(set)
        known: dict[tuple[str, str], float] = {}
        for post in self._history.posts:
            if post.receipt:
                receipts[post.text].add(post.receipt)
                if post.outcome == "ok":
                    known[post.id, post.receipt] = post.ended
        for each in self._history.receipt_queries:
            if each.outcome != "ok":
                continue
            sent = self._by_id.get(each.id)
            if each.status is None:
                if known.get((each.id, each.receipt), math.inf) < each.began:
                    yield Violation("untrue", f"{each} of {sent}")
            elif sent is not None and (
                each.receipt not in receipts[sent.text] or not self._is_true(each, sent)
            ):
                yield Violation("untrue", f"{each} of {sent}, {self._acquisitions[sent.text]}")

    def _is_true(self, query: ReceiptQuery, sent: MessageRecord) -> bool:
        acquisitions = self._acquisitions[sent.text]
        final = [acquisition for acquisition in acquisitions if acquisition.free_from == math.inf]
        had_expired = query.began > sent.latest_expiry + self._late_s
        was_taken = any(
            acquisition.taken_by < query.began
            for acquisition in final
            # An acknowledged message was only leased at first.
            if not (isinstance(acquisition.what, ReadRecord) and acquisition.what.lease)
        )
        was_taken_alive = was_taken and sent.text not in self._died
        match query.status:
            case "pending":
                # Use the first end of its lease: by one clock it has ended, by another it is
                # acknowledged.
                is_leased = any(
                    record.read.ended < query.began
                    and min(record.ends_from, record.read.began + record.read.ttl_s) - self._late_s
                    > query.ended
                    for record in self._leased[sent.text]
                )
                was_due = query.ended >= sent.earliest_due - self._late_s
                return was_due and not had_expired and not was_taken and not is_leased
            case "scheduled":
                is_put_off = any(
                    record.held_until <= query.ended + self._late_s
                    and query.began <= record.scheduled_until + self._late_s
                    for record in self._leased[sent.text]
                )
                is_due = not sent.is_delayed or query.began > sent.latest_due + self._late_s
                return (is_put_off or not is_due) and not was_taken
            case "dead":
                return not was_taken_alive and self._may_have_died(sent, query.ended)
            case "leased":
                return not had_expired and not was_taken and self._may_have_had(query, sent, True)
            case "expired":
                return not was_taken and query.ended >= sent.earliest_expiry - self._late_s
            case "revoked":
                return any(each.began < query.ended for each in self._revocations[query.id])
            case _:
                return self._may_have_had(query, sent, False)

    def _may_have_had(self, query: ReceiptQuery, sent: MessageRecord, leased: bool) -> bool:
        """Return whether any read, or any lease if `leased`, may have had the message by then."""
        return any(
            read.user == sent.user
            and read.outcome != "refused"
            and read.began < query.ended
            and (read.lease or not leased)
            for read in self._history.reads
        )
