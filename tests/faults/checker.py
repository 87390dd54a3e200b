"""Judge a history: did the service keep its guarantees to every client?

The checker is complete for an inbox: texts are unique and an inbox is a set, so every violation
shows as one of the kinds below. It takes linear time, except for reads without an answer and for
long polls.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.client_rules import ClientRules
from tests.faults.derived_facts import MessageRecord, earliest, readable_by
from tests.faults.exclusivity_rules import ExclusivityRules
from tests.faults.history import History, ReadRecord, ReceiptQuery
from tests.faults.history_index import Limits
from tests.faults.history_index import Violation as Violation
from tests.faults.receipt_rules import ReceiptRules

#: Seconds for which a long poll may go on waiting while a message is available and nothing is
#: broken.
WAKE_S = 0.8


class Verdict(NamedTuple):
    """The violations, and the fate of every message."""

    violations: list[Violation]
    counts: Counter[str]

    @property
    def kinds(self) -> set[str]:
        """The kinds of violation that occurred."""
        return {violation.kind for violation in self.violations}


def check(
    history: History,
    *,
    late_s: float,
    longest_s: float,
    release_s: float,
    due_s: float = 1.5,
    lead_s: float = 12.0,
) -> Verdict:
    """Judge a whole run.

    `late_s` is the tolerance for clocks and measurements. `longest_s` is the longest time that a
    request without a wait may take. `release_s` is the time within which the messages claimed by a
    read that was answered `unknown` become unread again. A scheduled message, or one that was
    released with a delay, can be read within `due_s` of its due time, unless a fault ended less
    than `lead_s` before: the time until a node leads. Seconds. The kinds of violation:

    unexpected: read but never posted, or altered   duplicated: in two reads, or stored twice
    crossed: in another inbox                       lost: accepted, not expired, in no read
    late: read after its lifetime                   missed: absent from a read that had to hold it
    disordered: not in the order of its sender      phantom: refused, and read all the same
    endless: a request exceeded its time            unaccounted: the counters do not add up
    double lease: leased by two readers at once     inconsistent: a keyed repeat has other messages
    overtime: acknowledged after its lease ended    forgotten: an acknowledgement in time failed
    excess: a stream acknowledged too many          impatient: a long poll ended too early
    revoked: revoked, and read                      untrue: a receipt reported a false status
    starved: made to wait by another client         overfull: an inbox exceeded its quota too far
    ahead: a read overtook its client's post        foreign key: refused for another identity's key
    early: read before its time or delay is over    premature: died after too few deliveries
    overdelivered: not moved to its dead-letter inbox, but delivered again
    miscounted: a lease has a false number of deliveries
    hidden: an acknowledgement succeeded although one of its messages was lost

    A dead letter is a message of its own, with a lifetime of an hour at least. Its original ends
    when it appears: it is `duplicated` if it was in a read, too.

    A message that an operator may have dropped with the collection counts as `dropped`, not as
    lost, if it was sent before the drop ended.

    An accepted message that is in no read counts as `undelivered`, not as lost, if a read of its
    inbox got no answer and may have taken it. An answer that says `unknown` is no excuse, with two
    exceptions: its server was killed before it could make the messages unread again, or the read
    had a key and was not repeated until it was answered.
    """
    limits = Limits(late_s, longest_s, release_s, due_s, lead_s)
    return _Checker(history, limits).verdict()


class _Checker(ExclusivityRules, ReceiptRules, ClientRules):
    def verdict(self) -> Verdict:
        violations = [
            *self._reads(),
            *self._stored_twice(),
            *self._taken_twice(),
            *self._repeated_keys(),
            *self._lease_answers(),
            *self._receipt_answers(),
            *self._miscounted_deliveries(),
            *self._deaths(),
            *self._reported_deaths(),
            *self._uncounted_deaths(),
            *self._fates(),
            *self._missed(),
            *self._long_polls(),
            *self._endless(),
            *self._foreign_keys(),
            *self._overfull(),
            *self._starved(),
            *self._ahead(),
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
        fates = (
            "read",
            "expired",
            "dropped",
            "revoked",
            "dead",
            "scheduled",
            "undelivered",
            "lost",
        )
        if stored != sum(counts[fate] for fate in fates):
            violations.append(Violation("unaccounted", str(dict(counts))))
        if (sums := self._history.sums) is not None:
            ended = ("read", "expired", "revoked", "dead", "pending")
            if sums["accepted"] != sum(sums.get(fate, 0) for fate in ended):
                violations.append(Violation("unaccounted", str(dict(sums))))
        return Verdict(violations, counts)

    def _reads(self) -> Iterator[Violation]:
        """Check the messages that each read returned."""
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
                if read.ended < sent.earliest_due - self._late_s:
                    yield Violation("early", f"{sent} in {read}")
                before = newest.get(sent.sender)
                if before is not None and before.began > sent.began:
                    yield Violation("disordered", f"{before.text} before {text} in {read.user}")
                newest[sent.sender] = sent

    def _fates(self) -> Iterator[Violation]:
        """Find out what became of each accepted message."""
        last_read = {read.user: read.began for read in self._history.reads if read.outcome == "ok"}
        for text, sent in self._messages.items():
            if sent.outcome != "ok":
                continue
            acquisitions = self._acquisitions.get(text, ())
            leases = self._leased.get(text, ())
            self._counts["leased"] += bool(leases)
            if text in self._died:
                self._counts["dead"] += 1
            elif any(
                isinstance(each.what, ReadRecord) and not each.what.lease for each in acquisitions
            ):
                self._counts["redelivered"] += bool(leases)
                self._counts["read"] += 1
            elif any(record.may_be_read for record in leases):
                self._counts["read"] += 1
            elif any(isinstance(each.what, ReceiptQuery) for each in acquisitions):
                self._counts["revoked"] += 1
            elif last_read.get(sent.user, 0.0) > sent.earliest_expiry - self._late_s:
                self._counts[
                    "dropped" if sent.dropped_from <= sent.earliest_expiry else "expired"
                ] += 1
            elif (
                any(
                    read.ended >= sent.began and self._may_have_kept(read)
                    for read in self._silent[sent.user]
                )
                or self._may_have_lost_dead(sent)
                or any(self._revocations[each] for each in sent.ids)
            ):
                self._counts["undelivered"] += 1
            elif last_read.get(sent.user, 0.0) < self._late_s + max(
                [sent.latest_due if sent.is_delayed else -math.inf]
                + [record.scheduled_until for record in leases]
            ):
                # Its time had not come when the run ended.
                self._counts["scheduled"] += 1
            else:
                self._counts["lost"] += 1
                yield Violation("lost", f"{sent}, leases: {leases}")

    def _missed(self) -> Iterator[Violation]:
        """Find reads that lack a message that was certainly unread for their whole duration."""
        stored = self._stored()
        for reads in self._complete_reads():
            ends = [read.ended for read in reads]
            for sent in stored[reads[0].user]:
                for after, before in self._unread_spans(sent):
                    missed = _first_between(reads, ends, after, before)
                    if missed is not None and not self._may_be_held(
                        sent, missed.began, missed.ended
                    ):
                        yield Violation("missed", f"{sent}: not in {missed}")

    def _unread_spans(
        self, sent: MessageRecord, except_for: ReadRecord | None = None
    ) -> Iterator[tuple[float, float]]:
        """Yield the times in which a message is certainly unread, apart from this read: at first,
        and after each release with a delay.
        """
        yield sent.readable, self._unread_until(sent, except_for)
        for record in self._leased.get(sent.text, ()):
            if record.due_by == math.inf or record.may_be_read:
                continue
            taken = [
                each.began
                for each in self._acquisitions[sent.text]
                if each.what is not except_for
                and each.what is not record.read
                and each.taken_by > record.delayed_by
            ]
            for each in sent.ids:
                taken += [revocation.began for revocation in self._revocations.get(each, ())]
            until = min([*taken, sent.earliest_expiry - self._late_s])
            if not self._may_have_died(sent, until):
                due_s, lead_s = self._limits.due_s, self._limits.lead_s
                yield readable_by(record.due_by, self._history.faults, due_s, lead_s), until

    def _complete_reads(self) -> Iterator[list[ReadRecord]]:
        by_user: dict[str, list[ReadRecord]] = defaultdict(list)
        for read in self._history.reads:
            if read.outcome == "ok" and read.is_all:
                by_user[read.user].append(read)
        for reads in by_user.values():
            yield sorted(reads, key=lambda read: read.ended)

    def _long_polls(self) -> Iterator[Violation]:
        """Find long polls that waited on while a message was available, or that ended early."""
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
                for after, before in self._unread_spans(sent, read):
                    there, until = max(read.began, after), min(before, read.ended)
                    if until > there + WAKE_S and not self._may_be_held(sent, there, read.ended):
                        yield Violation("missed", f"{sent}: {read} kept waiting")

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
    """Return the first read that began after `after` and ended before `before`."""
    position = bisect_right(ends, after)
    while position < len(reads) and reads[position].ended < before:
        if reads[position].began > after:
            return reads[position]
        position += 1
    return None
