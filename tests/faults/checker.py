"""Judges a history: were the promises kept to those who asked?

Complete for what an inbox is: texts are unique and an inbox is a set, so that every broken
promise shows as one of the kinds below. Linear in the length of the history but for reads that
came to nothing, and for reads that wait.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.derived_facts import MessageRecord, earliest
from tests.faults.exclusivity_rules import ExclusivityRules
from tests.faults.history import History, ReadRecord, ReceiptQuery
from tests.faults.history_index import Violation as Violation
from tests.faults.receipt_rules import ReceiptRules

#: How long a read may go on waiting while a message is there and nothing is broken, in seconds.
WAKE_S = 0.8


class Verdict(NamedTuple):
    """The violations, and what became of every message."""

    violations: list[Violation]
    counts: Counter[str]

    @property
    def kinds(self) -> set[str]:
        """The kinds of promise that were broken."""
        return {violation.kind for violation in self.violations}


def check(history: History, *, late_s: float, longest_s: float, release_s: float) -> Verdict:
    """Judge a whole run.

    `late_s` is how far clocks and measurements may be apart, `longest_s` the longest that any
    request may take that does not wait, `release_s` the time in which a read that was answered
    `unknown` has given back what it took.

    unexpected: read, never posted, or altered      duplicated: in two reads, or stored twice
    crossed: in another inbox                       lost: acknowledged, alive, in no read
    late: read after its lifetime                   missed: not in a read that had to hold it
    disordered: not in the order it was sent        phantom: refused, and yet read
    endless: a request past its time                unaccounted: the sums do not add up
    on loan: given to two at once                   inconsistent: a repeat with other messages
    overtime: acknowledged when its lease was over  forgotten: not acknowledged in time
    excess: a stream acknowledged what it had not   impatient: it did not wait to the end
    revoked: taken back, and read                   untrue: what a sender was told was not so
    hidden: an acknowledgement of all, though a part was lost

    What an operator's drop of the collection may have taken with it is `dropped`, and not lost:
    what was sent before the drop was over, and nothing later.

    A message that was acknowledged and is in no read is `undelivered`, and not lost, where a
    read of its inbox got no answer, and may have taken it. An answer that says `unknown` is no
    excuse, unless its server was killed before it could give back what it took, or the read had a
    key, and was not repeated until it was answered.
    """
    return _Checker(history, late_s, longest_s, release_s).verdict()


class _Checker(ExclusivityRules, ReceiptRules):
    def verdict(self) -> Verdict:
        violations = [
            *self._reads(),
            *self._stored_twice(),
            *self._taken_twice(),
            *self._repeated_keys(),
            *self._lease_answers(),
            *self._receipt_answers(),
            *self._fates(),
            *self._missed(),
            *self._long_polls(),
            *self._endless(),
        ]
        counts = self._counts
        for post in self._history.posts:
            counts[f"posts {post.outcome}"] += 1
        for read in self._history.reads:
            counts[f"reads {read.outcome}"] += 1
        for operation in self._history.lease_operations:
            counts[f"{operation.what} {operation.outcome}"] += 1
        for query in self._history.receipt_queries:
            counts[f"{query.what} {query.status or query.outcome}"] += 1
        stored = sum(sent.outcome == "ok" for sent in self._messages.values())
        fates = ("read", "expired", "dropped", "revoked", "undelivered", "lost")
        if stored != sum(counts[fate] for fate in fates):
            violations.append(Violation("unaccounted", str(dict(counts))))
        if (sums := self._history.sums) is not None:
            ended = ("read", "expired", "revoked", "pending")
            if sums["accepted"] != sum(sums[fate] for fate in ended):
                violations.append(Violation("unaccounted", str(dict(sums))))
        return Verdict(violations, counts)

    def _reads(self) -> Iterator[Violation]:
        """What each read returned, one by one."""
        for read in self._history.reads:
            newest: dict[str, MessageRecord] = {}
            for message_id, text in read.messages:
                sent = self._messages.get(text)
                if sent is None or (not sent.recreated and sent.ids and message_id not in sent.ids):
                    yield Violation("unexpected", f"{text} {message_id} in {read.user}: {sent}")
                    continue
                if sent.user != read.user:
                    yield Violation("crossed", f"{sent} in {read.user}")
                if sent.outcome == "refused":
                    yield Violation("phantom", f"{sent} in {read}")
                if sent.outcome != "ok":
                    self._counts["recovered"] += 1
                if earliest(read, self._longest_s) > sent.latest_expiry + self._late_s:
                    yield Violation("late", f"{sent} at {read.began}")
                before = newest.get(sent.sender)
                if before is not None and before.began > sent.began:
                    yield Violation("disordered", f"{before.text} before {text} in {read.user}")
                newest[sent.sender] = sent

    def _fates(self) -> Iterator[Violation]:
        """What became of each acknowledged message."""
        last_read = {read.user: read.began for read in self._history.reads if read.outcome == "ok"}
        for text, sent in self._messages.items():
            if sent.outcome != "ok":
                continue
            acquisitions = self._acquisitions.get(text, ())
            loans = self._leased.get(text, ())
            self._counts["leased"] += bool(loans)
            if any(
                isinstance(each.what, ReadRecord) and not each.what.lease for each in acquisitions
            ):
                self._counts["redelivered"] += bool(loans)
                self._counts["read"] += 1
            elif any(loan.may_be_read for loan in loans):
                self._counts["read"] += 1
            elif any(isinstance(each.what, ReceiptQuery) for each in acquisitions):
                self._counts["revoked"] += 1
            elif last_read.get(sent.user, 0.0) > sent.earliest_expiry - self._late_s:
                self._counts[
                    "dropped" if sent.dropped_from <= sent.earliest_expiry else "expired"
                ] += 1
            elif any(
                read.ended >= sent.began and self._may_have_kept(read)
                for read in self._silent[sent.user]
            ) or any(self._revocations[each] for each in sent.ids):
                self._counts["undelivered"] += 1
            else:
                self._counts["lost"] += 1
                yield Violation("lost", f"{sent}, on loan: {loans}")

    def _missed(self) -> Iterator[Violation]:
        """Reads that did not hold what was certainly unread all the time that they took."""
        stored = self._stored()
        for reads in self._complete_reads():
            ends = [read.ended for read in reads]
            for sent in stored[reads[0].user]:
                missed = _first_between(reads, ends, sent.stored, self._unread_until(sent))
                if missed is not None and not self._may_be_held(sent, missed.began, missed.ended):
                    yield Violation("missed", f"{sent}: not in {missed}")

    def _complete_reads(self) -> Iterator[list[ReadRecord]]:
        by_user: dict[str, list[ReadRecord]] = defaultdict(list)
        for read in self._history.reads:
            if read.outcome == "ok" and read.is_all:
                by_user[read.user].append(read)
        for reads in by_user.values():
            yield sorted(reads, key=lambda read: read.ended)

    def _long_polls(self) -> Iterator[Violation]:
        """Reads that went on waiting though a message was there, or that did not wait."""
        stored = self._stored()
        for read in self._history.reads:
            if not read.wait_s or read.outcome != "ok":
                continue
            is_early = read.ended < read.began + read.wait_s - self._late_s
            if is_early and not read.messages and not self._may_repeat_nothing(read):
                yield Violation("impatient", str(read))
            faults = self._history.faults
            if any(began < read.ended and read.began < ended for began, ended in faults):
                continue
            for sent in stored[read.user]:
                there = max(read.began, sent.stored)
                until = min(self._unread_until(sent, read), read.ended)
                if until > there + WAKE_S and not self._may_be_held(sent, there, read.ended):
                    yield Violation("missed", f"{sent}: {read} waited on")

    def _may_repeat_nothing(self, read: ReadRecord) -> bool:
        """Return whether all messages of an earlier read with the same key may have expired.

        Such a repeat is answered at once, without messages: its key has had its batch.
        """
        for earlier in self._keyed.get(read.key, ()):
            if earlier is read or earlier.began >= read.ended or earlier.outcome == "refused":
                continue
            texts = [text for _, text in earlier.messages]
            if not texts and earlier.outcome != "ok":
                # The client does not know its messages: any one of the inbox may be the batch.
                texts = [
                    text
                    for text, sent in self._messages.items()
                    if sent.user == read.user
                    and sent.outcome != "refused"
                    and self._may_have_expired(text, read.ended)
                ]
            if texts and all(self._may_have_expired(text, read.ended) for text in texts):
                return True
        return False

    def _endless(self) -> Iterator[Violation]:
        for read in self._history.reads:
            if read.ended - read.began > read.wait_s + self._longest_s:
                yield Violation("endless", str(read)[:300])
        for requests in (
            self._history.posts,
            self._history.lease_operations,
            self._history.receipt_queries,
        ):
            for request in requests:
                if request.ended - request.began > self._longest_s:
                    yield Violation("endless", str(request)[:300])


def _first_between(
    reads: list[ReadRecord], ends: list[float], after: float, before: float
) -> ReadRecord | None:
    """The first read that began after one moment and ended before another."""
    position = bisect_right(ends, after)
    while position < len(reads) and reads[position].ended < before:
        if reads[position].began > after:
            return reads[position]
        position += 1
    return None
