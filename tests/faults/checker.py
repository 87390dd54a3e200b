"""Judges a history: were the promises kept to those who asked?

Complete for what an inbox is: texts are unique and an inbox is a set, so that every broken
promise shows as one of the kinds below. Linear in the length of the history but for reads that
came to nothing, and for reads that wait.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

from tests.faults.facts import Loan, Loans, Sent, earliest, messages_of, name_of
from tests.faults.history import Got, History, Inquiry, Settlement

#: How long a read may go on waiting while a message is there, in seconds.
WAKE_S = 1.5


class Violation(NamedTuple):
    """A broken promise: its kind, and what happened."""

    kind: str
    what: str


class Verdict(NamedTuple):
    """The violations, and what became of every message."""

    violations: list[Violation]
    counts: Counter[str]

    @property
    def kinds(self) -> set[str]:
        """The kinds of promise that were broken."""
        return {violation.kind for violation in self.violations}


class _Taking(NamedTuple):
    """One way in which a message was taken: at some time from one moment up to another, and free
    for others no sooner than `free_from`.
    """

    began: float
    taken_upto: float
    free_from: float
    what: Got | Inquiry


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

    A message that was acknowledged and is in no read is `undelivered`, and not lost, where a
    read of its inbox got no answer, and may have taken it. An answer that says `unknown` is no
    excuse, unless its server was killed before it could give back what it took, or the read had a
    key, and was not repeated until it was answered.
    """
    return _Checker(history, late_s, longest_s, release_s).verdict()


class _Checker:
    def __init__(self, history: History, late_s: float, longest_s: float, release_s: float) -> None:
        self._history = history
        self._late_s = late_s
        self._longest_s = longest_s
        self._release_s = release_s
        self._messages = messages_of(history.posts)
        self._by_id = {each: sent for sent in self._messages.values() for each in sent.ids}
        self._loans = Loans(history.reads, history.settlements, longest_s)
        self._counts: Counter[str] = Counter()
        # Reads with a key, and when the last of them was sent that was answered.
        self._keyed: dict[str, list[Got]] = defaultdict(list)
        self._answered: dict[str, float] = {}
        for read in history.reads:
            if read.key:
                self._keyed[read.key].append(read)
                if read.outcome == "ok":
                    last = self._answered.get(read.key, -math.inf)
                    self._answered[read.key] = max(last, read.began)
        # Reads of an inbox that may have taken something that nobody saw.
        self._silent: dict[str, list[Got]] = defaultdict(list)
        for read in history.reads:
            if read.outcome in ("unknown", "cut"):
                self._silent[read.user].append(read)
        self._revocations: dict[str, list[Inquiry]] = defaultdict(list)
        for inquiry in history.inquiries:
            if inquiry.what == "revoke" and inquiry.outcome != "refused":
                self._revocations[inquiry.id].append(inquiry)
        # By text.
        self._takings: dict[str, list[_Taking]] = defaultdict(list)
        self._lent: dict[str, list[Loan]] = defaultdict(list)
        # By the lease's name and the message's id.
        self._borrowed: dict[tuple[str, str], list[Loan]] = defaultdict(list)

    def verdict(self) -> Verdict:
        violations = [
            *self._returned(),
            *self._posted_twice(),
            *self._taken_twice(),
            *self._repeated(),
            *self._settled(),
            *self._told(),
            *self._missing(),
            *self._missed(),
            *self._waited(),
            *self._endless(),
        ]
        counts = self._counts
        for post in self._history.posts:
            counts[f"posts {post.outcome}"] += 1
        for read in self._history.reads:
            counts[f"reads {read.outcome}"] += 1
        for settlement in self._history.settlements:
            counts[f"{settlement.what} {settlement.outcome}"] += 1
        for inquiry in self._history.inquiries:
            counts[f"{inquiry.what} {inquiry.status or inquiry.outcome}"] += 1
        stored = sum(sent.outcome == "ok" for sent in self._messages.values())
        fates = ("read", "expired", "revoked", "undelivered", "lost")
        if stored != sum(counts[fate] for fate in fates):
            violations.append(Violation("unaccounted", str(dict(counts))))
        if (sums := self._history.sums) is not None:
            ended = ("read", "expired", "revoked", "pending")
            if sums["accepted"] != sum(sums[fate] for fate in ended):
                violations.append(Violation("unaccounted", str(dict(sums))))
        return Verdict(violations, counts)

    def _returned(self) -> Iterator[Violation]:
        """What each read returned, one by one."""
        for read in self._history.reads:
            newest: dict[str, Sent] = {}
            for message_id, text in read.messages:
                sent = self._messages.get(text)
                if sent is None or (sent.ids and message_id not in sent.ids):
                    yield Violation("unexpected", f"{text} {message_id} in {read.user}: {sent}")
                    continue
                self._by_id.setdefault(message_id, sent)
                self._take(read, message_id, sent)
                if sent.user != read.user:
                    yield Violation("crossed", f"{sent} in {read.user}")
                if sent.outcome == "refused":
                    yield Violation("phantom", f"{sent} in {read}")
                if sent.outcome != "ok":
                    self._counts["recovered"] += 1
                if earliest(read, self._longest_s) > sent.dies_upto + self._late_s:
                    yield Violation("late", f"{sent} at {read.began}")
                before = newest.get(sent.sender)
                if before is not None and before.began > sent.began:
                    yield Violation("disordered", f"{before.text} before {text} in {read.user}")
                newest[sent.sender] = sent

    def _take(self, read: Got, message_id: str, sent: Sent) -> None:
        began = earliest(read, self._longest_s)
        if read.lease:
            loan = self._loans.loan(read, message_id, sent)
            self._lent[sent.text].append(loan)
            self._borrowed[name_of(read.lease), message_id].append(loan)
            self._takings[sent.text].append(_Taking(began, read.ended, loan.free_from, read))
            return
        if read.key:
            for other in self._takings[sent.text]:
                if isinstance(other.what, Got) and other.what.key == read.key:
                    return
            # From the first try on it may have been kept for the key.
            began = min(each.began for each in self._keyed[read.key])
        self._takings[sent.text].append(_Taking(began, read.ended, math.inf, read))

    def _posted_twice(self) -> Iterator[Violation]:
        """Of all posts with one key, one message is stored."""
        by_key: dict[str, list[Sent]] = defaultdict(list)
        for sent in self._messages.values():
            if len(sent.ids) > 1:
                yield Violation("duplicated", f"two ids: {sent}")
            if sent.key and (sent.outcome == "ok" or sent.text in self._takings):
                by_key[sent.key].append(sent)
        for stored in by_key.values():
            if len(stored) > 1:
                yield Violation("duplicated", f"two messages with one key: {stored}")

    def _taken_twice(self) -> Iterator[Violation]:
        """Nobody gets what another has: not what is read, on loan, or taken back."""
        for message_id, revocations in self._revocations.items():
            done = [each for each in revocations if each.status == "revoked"]
            sent = self._by_id.get(message_id)
            if done and sent is not None:
                first = min(done, key=lambda each: each.ended)
                began = min(each.began for each in revocations)
                taking = _Taking(began, first.ended, math.inf, first)
                self._takings[sent.text].append(taking)
        for message_id, moment in self._loans.resumed():
            sent = self._by_id[message_id]
            for taking in self._takings[sent.text]:
                # Until then another may have had it, since the stream's lease was over.
                if taking.began > moment:
                    yield Violation("duplicated", f"{sent} resumed at {moment}: {taking}")
        for text, takings in self._takings.items():
            for one, other in combinations(takings, 2):
                if one.free_from <= other.taken_upto + self._late_s:
                    continue
                if other.free_from <= one.taken_upto + self._late_s:
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

    def _may_be_dead(self, text: str, moment: float) -> bool:
        sent = self._messages.get(text)
        return sent is None or moment > sent.dies_from - self._late_s

    def _settled(self) -> Iterator[Violation]:
        """What consumers were told of what they had on loan."""
        for each in self._history.settlements:
            if each.outcome != "ok":
                continue
            concerned = self._loans.concerned(each)
            if each.what == "resume":
                if each.count > len(concerned):
                    yield Violation("excess", f"{each} of {concerned}")
            elif each.what != "release":
                loans = {
                    message_id: self._borrowed[each.lease, message_id][-1]
                    for message_id in concerned
                    if (each.lease, message_id) in self._borrowed
                }
                yield from self._counted(each, loans)

    def _counted(
        self, settlement: Settlement, loans: Mapping[str, Loan]
    ) -> Iterator[Violation]:
        """An acknowledgement counts what it holds or has acknowledged, and nothing else."""
        # A stream that comes again may have acknowledged what others had on loan since.
        before = self._loans.settled_before(settlement) | self._loans.maybe_resumed(settlement)
        counts_before = settlement.what == "acknowledge"
        most = sum(
            loan.over_upto + self._late_s >= settlement.began
            or (counts_before and message_id in before)
            for message_id, loan in loans.items()
        )
        least = sum(loan.held_upto - self._late_s > settlement.ended for loan in loans.values())
        if settlement.count > most:
            yield Violation("overtime", f"{settlement}: {loans}")
        if counts_before and settlement.count < least:
            yield Violation("forgotten", f"{settlement}: {loans}")

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
                is_lent = any(
                    loan.read.ended < inquiry.began
                    and loan.free_from - self._late_s > inquiry.ended
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

    def _missing(self) -> Iterator[Violation]:
        """What became of each acknowledged message."""
        last_read = {read.user: read.began for read in self._history.reads if read.outcome == "ok"}
        for text, sent in self._messages.items():
            if sent.outcome != "ok":
                continue
            takings = self._takings.get(text, ())
            loans = self._lent.get(text, ())
            self._counts["lent"] += bool(loans)
            if any(isinstance(each.what, Got) and not each.what.lease for each in takings):
                self._counts["given again"] += bool(loans)
                self._counts["read"] += 1
            elif any(loan.may_be_read for loan in loans):
                self._counts["read"] += 1
            elif any(isinstance(each.what, Inquiry) for each in takings):
                self._counts["revoked"] += 1
            elif last_read.get(sent.user, 0.0) > sent.dies_from - self._late_s:
                self._counts["expired"] += 1
            elif any(
                read.ended >= sent.began and self._may_have_kept(read)
                for read in self._silent[sent.user]
            ) or any(self._revocations[each] for each in sent.ids):
                self._counts["undelivered"] += 1
            else:
                self._counts["lost"] += 1
                yield Violation("lost", f"{sent}, on loan: {loans}")

    def _may_have_kept(self, read: Got) -> bool:
        """Whether what a read without messages took may be gone for good."""
        if read.lease:
            return False
        if read.key:
            return self._answered.get(read.key, -math.inf) < read.began
        return read.outcome == "cut" or any(
            read.began <= killed <= read.ended + self._release_s for killed in self._history.kills
        )

    def _unread_until(self, sent: Sent, but: Got | None = None) -> float:
        """Up to when a message is unread for certain, if it is not for this read."""
        taken = [each.began for each in self._takings.get(sent.text, ()) if each.what is not but]
        for each in sent.ids:
            taken += [revocation.began for revocation in self._revocations.get(each, ())]
        return min([*taken, sent.dies_from - self._late_s])

    def _stored(self) -> dict[str, list[Sent]]:
        stored: dict[str, list[Sent]] = defaultdict(list)
        for sent in self._messages.values():
            if sent.outcome == "ok":
                stored[sent.user].append(sent)
        return stored

    def _missed(self) -> Iterator[Violation]:
        """Reads that did not hold what was certainly unread all the time that they took."""
        stored = self._stored()
        for reads in self._complete_reads():
            ends = [read.ended for read in reads]
            for sent in stored[reads[0].user]:
                missed = _first_between(reads, ends, sent.stored, self._unread_until(sent))
                if missed is not None and not self._may_be_held(sent, missed.began, missed.ended):
                    yield Violation("missed", f"{sent}: not in {missed}")

    def _may_be_held(self, sent: Sent, began: float, ended: float) -> bool:
        """Whether reads without messages may have kept it from one that took that time."""
        is_taken = sent.text in self._takings
        return any(
            silent.began < ended
            and silent.ended >= sent.began
            and (
                (not is_taken and self._may_have_kept(silent))
                or began <= silent.ended + silent.ttl_s + self._release_s
            )
            for silent in self._silent[sent.user]
        )

    def _complete_reads(self) -> Iterator[list[Got]]:
        by_user: dict[str, list[Got]] = defaultdict(list)
        for read in self._history.reads:
            if read.outcome == "ok" and read.is_all:
                by_user[read.user].append(read)
        for reads in by_user.values():
            yield sorted(reads, key=lambda read: read.ended)

    def _waited(self) -> Iterator[Violation]:
        """Reads that went on waiting though a message was there, or that did not wait."""
        stored = self._stored()
        for read in self._history.reads:
            if not read.wait_s or read.outcome != "ok":
                continue
            if not read.messages and read.ended < read.began + read.wait_s - self._late_s:
                yield Violation("impatient", str(read))
            faults = self._history.faults
            if any(began < read.ended and read.began < ended for began, ended in faults):
                continue
            for sent in stored[read.user]:
                there = max(read.began, sent.stored)
                until = min(self._unread_until(sent, read), read.ended)
                if until > there + WAKE_S and not self._may_be_held(sent, there, read.ended):
                    yield Violation("missed", f"{sent}: {read} waited on")

    def _endless(self) -> Iterator[Violation]:
        for read in self._history.reads:
            if read.ended - read.began > read.wait_s + self._longest_s:
                yield Violation("endless", str(read)[:300])
        for requests in (
            self._history.posts,
            self._history.settlements,
            self._history.inquiries,
        ):
            for request in requests:
                if request.ended - request.began > self._longest_s:
                    yield Violation("endless", str(request)[:300])


def _is_lent_to_both(one: _Taking, other: _Taking) -> bool:
    """Whether a message was given to another while one had it on loan."""
    return one.free_from < math.inf and one.began < other.taken_upto


def _first_between(reads: list[Got], ends: list[float], after: float, before: float) -> Got | None:
    """The first read that began after one moment and ended before another."""
    position = bisect_right(ends, after)
    while position < len(reads) and reads[position].ended < before:
        if reads[position].began > after:
            return reads[position]
        position += 1
    return None
