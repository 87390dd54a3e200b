"""What the rules of `tests.faults.checker` stand on: who took each message, and who may have."""

import math
from collections import Counter, defaultdict
from typing import NamedTuple

from tests.faults.derived_facts import Loan, Loans, Sent, earliest, messages_of, name_of
from tests.faults.history import Got, History, Inquiry


class Violation(NamedTuple):
    """A broken promise: its kind, and what happened."""

    kind: str
    what: str


class Taking(NamedTuple):
    """One way in which a message was taken: at some time from one moment up to another, and free
    for others no sooner than `free_from`.
    """

    began: float
    taken_upto: float
    free_from: float
    what: Got | Inquiry


class Evidence:
    """A history, looked through once."""

    def __init__(self, history: History, late_s: float, longest_s: float, release_s: float) -> None:
        self._history = history
        self._late_s = late_s
        self._longest_s = longest_s
        self._release_s = release_s
        self._messages = messages_of(history.posts, history.drops)
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
        self._takings: dict[str, list[Taking]] = defaultdict(list)
        self._lent: dict[str, list[Loan]] = defaultdict(list)
        # By the lease's name and the message's id.
        self._borrowed: dict[tuple[str, str], list[Loan]] = defaultdict(list)
        for read in history.reads:
            for message_id, text in read.messages:
                sent = self._messages.get(text)
                if sent is not None and (sent.remade or not sent.ids or message_id in sent.ids):
                    self._by_id.setdefault(message_id, sent)
                    self._take(read, message_id, sent)
        for message_id, revocations in self._revocations.items():
            done = [each for each in revocations if each.status == "revoked"]
            sent = self._by_id.get(message_id)
            if done and sent is not None:
                first = min(done, key=lambda each: each.ended)
                began = min(each.began for each in revocations)
                taking = Taking(began, first.ended, math.inf, first)
                self._takings[sent.text].append(taking)

    def _take(self, read: Got, message_id: str, sent: Sent) -> None:
        began = earliest(read, self._longest_s)
        if read.lease:
            loan = self._loans.loan(read, message_id, sent)
            self._lent[sent.text].append(loan)
            self._borrowed[name_of(read.lease), message_id].append(loan)
            self._takings[sent.text].append(Taking(began, read.ended, loan.free_from, read))
            return
        if read.key:
            for other in self._takings[sent.text]:
                if isinstance(other.what, Got) and other.what.key == read.key:
                    return
            # From the first try on it may have been kept for the key.
            began = min(each.began for each in self._keyed[read.key])
        self._takings[sent.text].append(Taking(began, read.ended, math.inf, read))

    def _may_have_kept(self, read: Got) -> bool:
        """Whether what a read without messages took may be gone for good."""
        if read.lease:
            return False
        if read.key:
            # A twin that was sent before this one ended may have been answered before it took any.
            return self._answered.get(read.key, -math.inf) < read.ended
        return read.outcome == "cut" or any(
            read.began <= killed <= read.ended + self._release_s for killed in self._history.kills
        )

    def _unread_until(self, sent: Sent, but: Got | None = None) -> float:
        """Up to when a message is unread for certain, if it is not for this read."""
        taken = [each.began for each in self._takings.get(sent.text, ()) if each.what is not but]
        for each in sent.ids:
            taken += [revocation.began for revocation in self._revocations.get(each, ())]
        return min([*taken, sent.dies_from - self._late_s])

    def _is_dropped_between(self, one: Taking, other: Taking) -> bool:
        """Whether a message that was taken may have been dropped, and stored anew for its key."""
        first, last = sorted((one, other), key=lambda taking: taking.began)
        return any(
            first.began < drop.ended and last.taken_upto > drop.began
            for drop in self._history.drops
        )

    def _stored(self) -> dict[str, list[Sent]]:
        stored: dict[str, list[Sent]] = defaultdict(list)
        for sent in self._messages.values():
            if sent.outcome == "ok":
                stored[sent.user].append(sent)
        return stored

    def _may_be_dead(self, text: str, moment: float) -> bool:
        sent = self._messages.get(text)
        return sent is None or moment > sent.dies_from - self._late_s

    def _may_be_held(self, sent: Sent, began: float, ended: float) -> bool:
        """Whether reads without messages may have kept it from one that took that time."""
        is_taken = bool(self._takings.get(sent.text))
        return any(
            silent.began < ended
            and silent.ended >= sent.began
            and (
                (not is_taken and self._may_have_kept(silent))
                or began <= silent.ended + silent.ttl_s + self._release_s
            )
            for silent in self._silent[sent.user]
        )
