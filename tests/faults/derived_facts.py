"""What follows from a history for each message and each lease: what `tests.faults.checker` judges.

Where something is not known for certain, it is said as the earliest and the latest moment, in
seconds of the history's clock.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.faults.history import Dropped, Got, Outcome, Posted, Settlement


class Sent(NamedTuple):
    """One message, by all its posts. It is there from `began` at the earliest and `stored` at the
    latest, and expires between `dies_from` and `dies_upto`. From `dropped_from` on an operator may
    have dropped it; with a key it may be stored anew after `remade` drops.
    """

    sender: str
    user: str
    text: str
    began: float
    stored: float
    dies_from: float
    dies_upto: float
    outcome: Outcome
    ids: frozenset[str]
    key: str
    dropped_from: float
    remade: int


def messages_of(posts: Iterable[Posted], drops: Sequence[Dropped] = ()) -> dict[str, Sent]:
    """The messages by their texts."""
    attempts: dict[str, list[Posted]] = defaultdict(list)
    for post in posts:
        attempts[post.text].append(post)
    return {text: _message_of(each, drops) for text, each in attempts.items()}


def _message_of(posts: Sequence[Posted], drops: Sequence[Dropped]) -> Sent:
    first = posts[0]
    began = min(post.began for post in posts)
    answered = [post.ended for post in posts if post.outcome == "ok"]
    outcomes = {post.outcome for post in posts}
    outcome: Outcome = "ok" if answered else "refused" if outcomes == {"refused"} else "unknown"
    if len(posts) == 1:
        outcome = first.outcome
    # Only what may have been stored before it.
    dropped_from = min((drop.began for drop in drops if began < drop.ended), default=math.inf)
    ended = max(post.ended for post in posts)
    remade = sum(began < drop.ended and ended > drop.began for drop in drops)
    return Sent(
        *(first.sender, first.user, first.text, began),
        min(answered, default=max(post.ended for post in posts)),
        min(began + first.lifetime_s, dropped_from),
        ended + first.lifetime_s,
        outcome,
        frozenset(post.id for post in posts if post.id),
        first.key,
        dropped_from,
        remade if first.key else 0,
    )


class Loan(NamedTuple):
    """A message that was given on loan. For others it is free from `free_from` at the earliest,
    never where it was acknowledged for certain. It is the consumer's up to `held_upto` for certain,
    and no more from `over_upto` on.
    """

    read: Got
    free_from: float
    held_upto: float
    over_upto: float
    may_be_read: bool


class Loans:
    """All leases of a history."""

    def __init__(
        self, reads: Iterable[Got], settlements: Iterable[Settlement], longest_s: float
    ) -> None:
        self._longest_s = longest_s
        # By the lease's name.
        self._reads: dict[str, list[Got]] = defaultdict(list)
        self._settlements: dict[str, list[Settlement]] = defaultdict(list)
        for read in reads:
            if read.lease and read.messages:
                self._reads[name_of(read.lease)].append(read)
        for each in settlements:
            self._settlements[each.lease].append(each)
        for name in self._settlements:
            self._settlements[name].sort(key=lambda each: each.began)

    def deliveries(self, lease: str) -> Sequence[Got]:
        """What was delivered under a lease, in that order."""
        return sorted(self._reads[lease], key=lambda read: read.lease)

    def holder(self, settlement: Settlement, message_id: str) -> Got | None:
        """The delivery of a message that a settlement is about: the last before it."""
        before = [
            read
            for read in self._reads[settlement.lease]
            if read.ended <= settlement.began
            and any(message_id == each for each, _ in read.messages)
        ]
        return before[-1] if before else None

    def concerned(self, settlement: Settlement) -> set[str]:
        """The ids of the messages that a settlement is about."""
        if settlement.what == "resume":
            return self._upto(settlement)
        if settlement.ids is not None:
            return set(settlement.ids)
        return {
            message_id
            for read in self._reads[settlement.lease]
            if read.ended <= settlement.began
            for message_id, _ in read.messages
        }

    def _upto(self, settlement: Settlement) -> set[str]:
        """What the stream delivered up to the last message that it knows of."""
        order = [
            message_id
            for read in self.deliveries(settlement.lease)
            for message_id, _ in read.messages
        ]
        if settlement.last not in order:
            return set()
        return set(order[: len(order) - order[::-1].index(settlement.last)])

    def resumed(self) -> Iterator[tuple[str, float]]:
        """Ids of messages that streams acknowledged for certain as they came again, and when."""
        for settlements in self._settlements.values():
            for each in settlements:
                if each.what == "resume" and each.outcome == "ok" and each.messages:
                    ids = self.concerned(each)
                    if each.messages >= len(ids):
                        yield from ((message_id, each.ended) for message_id in ids)

    def maybe_resumed(self, settlement: Settlement) -> set[str]:
        """What streams that came again may have acknowledged before."""
        return {
            message_id
            for settlements in self._settlements.values()
            for each in settlements
            if each.what == "resume" and each.began < settlement.ended and each.outcome != "refused"
            for message_id in self.concerned(each)
        }

    def settled_before(self, settlement: Settlement) -> set[str]:
        """What may have been acknowledged under this lease before."""
        return {
            message_id
            for each in self._settlements[settlement.lease]
            if each.began < settlement.began
            and each.what in ("acknowledge", "resume")
            and each.outcome != "refused"
            for message_id in self.concerned(each)
        }

    def returned_before(self, settlement: Settlement) -> set[str]:
        """What may have been given back under this lease before."""
        return {
            message_id
            for each in self._settlements[settlement.lease]
            if each.began < settlement.ended
            and each.what == "release"
            and each.outcome != "refused"
            for message_id in self.concerned(each)
        }

    def _is_said_to_be_read(self, settlement: Settlement, message_id: str) -> bool:
        """Whether the answer says that this message is acknowledged."""
        if settlement.outcome != "ok":
            return False
        if message_id in settlement.acknowledged:
            return True
        return bool(settlement.is_all) and message_id not in self.returned_before(settlement)

    def loan(self, read: Got, message_id: str, message: Sent) -> Loan:
        """What became of one message of a delivery."""
        free_from = earliest(read, self._longest_s) + read.ttl_s
        over_upto = read.ended + read.ttl_s
        # One that was not answered may come into force after those that follow it.
        unknown_end = math.inf
        is_read = may_be_read = False
        for each in self._settlements[name_of(read.lease)]:
            concerned = self.concerned(each)
            if message_id not in concerned or self.holder(each, message_id) is not read:
                continue
            if each.outcome == "refused":
                continue
            is_whole = each.outcome == "ok" and each.messages >= len(concerned)
            match each.what:
                case "acknowledge":
                    is_read |= is_whole or self._is_said_to_be_read(each, message_id)
                    is_told = each.outcome == "ok" and each.is_all is False
                    some = is_read if is_told else each.messages > 0
                    may_be_read |= each.outcome != "ok" or some
                case "resume":
                    may_be_read = may_be_read or each.outcome != "ok" or each.messages > 0
                case "release":
                    free_from = min(free_from, each.began)
                case "extend":
                    end = each.began + each.ttl_s
                    free_from = end if is_whole else min(free_from, end)
                    if each.outcome != "ok":
                        unknown_end = min(unknown_end, end)
                    if each.outcome != "ok" or each.messages:
                        over_upto = max(over_upto, each.ended + each.ttl_s)
        held_upto = min(free_from, unknown_end, message.dies_from)
        return Loan(
            read,
            math.inf if is_read else held_upto,
            held_upto,
            min(over_upto, message.dies_upto),
            may_be_read,
        )


def name_of(lease: str) -> str:
    """The name in a lease's token."""
    return lease.partition(".")[0]


def earliest(read: Got, longest_s: float) -> float:
    """The earliest moment at which a read has taken what it returned, if it has waited."""
    return max(read.began, read.ended - longest_s) if read.wait_s else read.began
