"""MessageLimits of `tests.faults.checker`: senders are told what is so."""

import math
from collections import defaultdict
from collections.abc import Iterator

from tests.faults.derived_facts import Sent
from tests.faults.history import Got, Inquiry
from tests.faults.history_index import Evidence, Violation


class Told(Evidence):
    """What senders were told of their messages."""

    def _told(self) -> Iterator[Violation]:
        """What senders were told of their messages."""
        receipts: dict[str, set[str]] = defaultdict(set)
        known: dict[tuple[str, str], float] = {}
        for post in self._history.posts:
            if post.receipt:
                receipts[post.text].add(post.receipt)
                if post.outcome == "ok":
                    known[post.id, post.receipt] = post.ended
        for each in self._history.inquiries:
            if each.outcome != "ok":
                continue
            sent = self._by_id.get(each.id)
            if each.status is None:
                if known.get((each.id, each.receipt), math.inf) < each.began:
                    yield Violation("untrue", f"{each} of {sent}")
            elif sent is not None and (
                each.receipt not in receipts[sent.text] or not self._is_true(each, sent)
            ):
                yield Violation("untrue", f"{each} of {sent}, {self._takings[sent.text]}")

    def _is_true(self, inquiry: Inquiry, sent: Sent) -> bool:
        takings = self._takings[sent.text]
        final = [taking for taking in takings if taking.free_from == math.inf]
        was_dead = inquiry.began > sent.dies_upto + self._late_s
        was_taken = any(
            taking.taken_upto < inquiry.began
            for taking in final
            # One that is acknowledged was only lent at first.
            if not (isinstance(taking.what, Got) and taking.what.lease)
        )
        match inquiry.status:
            case "pending":
                # By the first end of its lease: by one clock it is over, by another acknowledged.
                is_lent = any(
                    loan.read.ended < inquiry.began
                    and min(loan.free_from, loan.read.began + loan.read.ttl_s) - self._late_s
                    > inquiry.ended
                    for loan in self._lent[sent.text]
                )
                return not was_dead and not was_taken and not is_lent
            case "leased":
                return not was_dead and not was_taken and self._may_have_had(inquiry, sent, True)
            case "expired":
                return not was_taken and inquiry.ended >= sent.dies_from - self._late_s
            case "revoked":
                return any(each.began < inquiry.ended for each in self._revocations[inquiry.id])
            case _:
                return self._may_have_had(inquiry, sent, False)

    def _may_have_had(self, inquiry: Inquiry, sent: Sent, leased: bool) -> bool:
        """Whether any read, or any read on loan, may have had it by then."""
        return any(
            read.user == sent.user
            and read.outcome != "refused"
            and read.began < inquiry.ended
            and (read.lease or not leased)
            for read in self._history.reads
        )
