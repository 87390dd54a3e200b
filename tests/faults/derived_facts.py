"""Facts about each message and each lease, derived from a history for `tests.faults.checker`.

If a moment is not known exactly, the earliest and the latest possible moments are given, in seconds
of the history's clock.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.faults.history import CollectionDrop, LeaseOperation, Outcome, PostRecord, ReadRecord


class MessageRecord(NamedTuple):
    """One message, combined from all its posts. It is stored after `began`, and can be read after
    `earliest_due`, and certainly from `readable` on. It expires between `earliest_expiry` and
    `latest_expiry`. An operator may have dropped it from `dropped_from` on. A keyed message may be
    stored again after each of `recreated` drops. A scheduled message `is_delayed`.
    """

    sender: str
    user: str
    text: str
    began: float
    readable: float
    earliest_expiry: float
    latest_expiry: float
    outcome: Outcome
    ids: frozenset[str]
    key: str
    dropped_from: float
    recreated: int
    earliest_due: float
    latest_due: float
    is_delayed: bool = False


def messages_of(
    posts: Iterable[PostRecord],
    drops: Sequence[CollectionDrop] = (),
    faults: Sequence[tuple[float, float]] = (),
    due_s: float = 0.0,
    lead_s: float = 0.0,
) -> dict[str, MessageRecord]:
    """Return the messages by their texts.

    A scheduled message can be read within `due_s` of its due time, unless a fault ended less than
    `lead_s` before: the time until a node leads again.
    """
    attempts: dict[str, list[PostRecord]] = defaultdict(list)
    for post in posts:
        attempts[post.text].append(post)
    messages = {text: _message_of(each, drops) for text, each in attempts.items()}
    for text, sent in messages.items():
        if sent.is_delayed:
            readable = readable_by(sent.readable, faults, due_s, lead_s)
            messages[text] = sent._replace(readable=readable)
    return messages


def readable_by(
    due: float, faults: Sequence[tuple[float, float]], due_s: float, lead_s: float
) -> float:
    """Return when a message whose delay ended by `due` can certainly be read."""
    readable = due + due_s
    for began, ended in sorted(faults):
        if began < readable and ended + lead_s > due:
            readable = max(readable, ended + lead_s + due_s)
    return readable


def _message_of(posts: Sequence[PostRecord], drops: Sequence[CollectionDrop]) -> MessageRecord:
    first = posts[0]
    began = min(post.began for post in posts)
    answered = [post.ended for post in posts if post.outcome == "ok"]
    outcomes = {post.outcome for post in posts}
    outcome: Outcome = "ok" if answered else "refused" if outcomes == {"refused"} else "unknown"
    if len(posts) == 1:
        outcome = first.outcome
    # A drop removes only messages that may have been stored before it.
    dropped_from = min((drop.began for drop in drops if began < drop.ended), default=math.inf)
    ended = max(post.ended for post in posts)
    recreated = sum(began < drop.ended and ended > drop.began for drop in drops)
    # Any attempt with a key may be the one that was stored.
    stored, latest_due = min(answered, default=ended), ended + first.delay_s
    is_delayed = first.delay_s > 0
    return MessageRecord(
        *(first.sender, first.user, first.text, began),
        latest_due if is_delayed else stored,
        min(began + first.delay_s + first.lifetime_s, dropped_from),
        latest_due + first.lifetime_s,
        outcome,
        frozenset(post.id for post in posts if post.id),
        first.key,
        dropped_from,
        recreated if first.key else 0,
        began + first.delay_s,
        latest_due,
        is_delayed,
    )


class LeaseRecord(NamedTuple):
    """One lease of one message. Others may take the message from `free_from` on, or never if it was
    certainly acknowledged. The consumer certainly holds it until `held_until`, and certainly no
    longer after `ended_by`. It is perhaps no delivery from `undone_from` on, and certainly none
    from `undone_by` on. If it was certainly released with a delay, before `delayed_by`, the delay
    is over by `due_by`. It may be scheduled until `scheduled_until`.
    """

    read: ReadRecord
    free_from: float
    held_until: float
    ended_by: float
    may_be_read: bool
    undone_from: float
    undone_by: float
    delayed_by: float = math.inf
    due_by: float = math.inf
    scheduled_until: float = 0.0

    @property
    def ends_from(self) -> float:
        """When the message may become a dead letter, or be revoked. A delay does not matter."""
        return math.inf if self.free_from == math.inf else self.held_until


class LeaseRecords:
    """All leases of a history."""

    def __init__(
        self,
        reads: Iterable[ReadRecord],
        lease_operations: Iterable[LeaseOperation],
        longest_s: float,
        late_s: float,
    ) -> None:
        self._longest_s, self._late_s = longest_s, late_s
        # By the lease's name.
        self._reads: dict[str, list[ReadRecord]] = defaultdict(list)
        self._operations: dict[str, list[LeaseOperation]] = defaultdict(list)
        for read in reads:
            if read.lease and read.messages:
                self._reads[name_of(read.lease)].append(read)
        for each in lease_operations:
            self._operations[each.lease].append(each)
        for name in self._operations:
            self._operations[name].sort(key=lambda each: each.began)

    def deliveries(self, lease: str) -> Sequence[ReadRecord]:
        """Return the reads that delivered under a lease, in order."""
        return sorted(self._reads[lease], key=lambda read: read.lease)

    def holder(self, operation: LeaseOperation, message_id: str) -> ReadRecord | None:
        """Return the delivery of a message that an operation refers to: the last one before it."""
        before = [
            read
            for read in self._reads[operation.lease]
            if read.ended <= operation.began
            and any(message_id == each for each, _ in read.messages)
        ]
        return before[-1] if before else None

    def affected(self, operation: LeaseOperation) -> set[str]:
        """Return the ids of the messages that an operation refers to."""
        if operation.what == "resume":
            return self._upto(operation)
        if operation.ids is not None:
            return set(operation.ids)
        return {
            message_id
            for read in self._reads[operation.lease]
            if read.ended <= operation.began
            for message_id, _ in read.messages
        }

    def _upto(self, operation: LeaseOperation) -> set[str]:
        """Return the messages that the stream delivered up to the last one its client names."""
        order = [
            message_id
            for read in self.deliveries(operation.lease)
            for message_id, _ in read.messages
        ]
        if operation.last not in order:
            return set()
        return set(order[: len(order) - order[::-1].index(operation.last)])

    def resumed(self) -> Iterator[tuple[str, float]]:
        """Yield the ids of messages that resumed streams certainly acknowledged, and when."""
        for lease_operations in self._operations.values():
            for each in lease_operations:
                if each.what == "resume" and each.outcome == "ok" and each.messages:
                    ids = self.affected(each)
                    if each.messages >= len(ids):
                        yield from ((message_id, each.ended) for message_id in ids)

    def maybe_resumed(self, operation: LeaseOperation) -> set[str]:
        """Return the ids of messages that resumed streams may have acknowledged before."""
        return {
            message_id
            for lease_operations in self._operations.values()
            for each in lease_operations
            if each.what == "resume" and each.began < operation.ended and each.outcome != "refused"
            for message_id in self.affected(each)
        }

    def acknowledged_before(self, operation: LeaseOperation) -> set[str]:
        """Return the ids of messages that may have been acknowledged before under this lease."""
        return {
            message_id
            for each in self._operations[operation.lease]
            if each.began < operation.began
            and each.what in ("acknowledge", "resume")
            and each.outcome != "refused"
            for message_id in self.affected(each)
        }

    def released_before(self, operation: LeaseOperation) -> set[str]:
        """Return the ids of messages that may have been released before under this lease."""
        return {
            message_id
            for each in self._operations[operation.lease]
            if each.began < operation.ended and each.what == "release" and each.outcome != "refused"
            for message_id in self.affected(each)
        }

    def may_be_released(self, lease: str, before: float) -> bool:
        """Return whether the lease with this token may have been released as a whole by then."""
        return any(
            each.what == "release"
            and each.ids is None
            and each.began < before
            and each.outcome != "refused"
            for each in self._operations.get(name_of(lease), ())
        )

    def _is_reported_read(self, operation: LeaseOperation, message_id: str) -> bool:
        """Return whether the answer says that this message is acknowledged."""
        if operation.outcome != "ok":
            return False
        if message_id in operation.acknowledged:
            return True
        return bool(operation.is_all) and message_id not in self.released_before(operation)

    def record(self, read: ReadRecord, message_id: str, message: MessageRecord) -> LeaseRecord:
        """Return what became of one message of a delivery."""
        free_from = earliest(read, self._longest_s) + read.ttl_s
        ended_by = read.ended + read.ttl_s
        # An extension without an answer may take effect after those that follow it.
        unknown_end = undone_from = undone_by = math.inf
        # When it may have been released with a delay, and when that delay may end.
        put_off_from = due_from = delayed_by = due_by = math.inf
        scheduled_until = 0.0
        is_read = may_be_read = may_be_returned = False
        for each in self._operations[name_of(read.lease)]:
            affected = self.affected(each)
            if message_id not in affected or self.holder(each, message_id) is not read:
                continue
            if each.outcome == "refused":
                continue
            is_whole = each.outcome == "ok" and each.messages >= len(affected)
            match each.what:
                case "acknowledge":
                    is_read |= is_whole or self._is_reported_read(each, message_id)
                    is_partial = each.outcome == "ok" and each.is_all is False
                    some = is_read if is_partial else each.messages > 0
                    may_be_read |= each.outcome != "ok" or some
                case "resume":
                    may_be_read = may_be_read or each.outcome != "ok" or each.messages > 0
                case "release":
                    if not each.is_delivered and each.began <= ended_by + self._late_s:
                        undone_from = min(undone_from, each.began)
                    # Its answer counts messages, too, that were unread before.
                    is_sure = is_whole and each.ended + self._late_s < free_from
                    if is_sure and not each.is_delivered and not may_be_returned:
                        undone_by = min(undone_by, each.ended)
                    may_be_returned |= each.is_delivered
                    if not each.delay_s:
                        free_from = min(free_from, each.began)
                        continue
                    put_off_from = min(put_off_from, each.began)
                    due_from = min(due_from, each.began + each.delay_s)
                    scheduled_until = max(scheduled_until, each.ended + each.delay_s)
                    if is_sure:
                        delayed_by = min(delayed_by, each.ended)
                        due_by = min(due_by, each.ended + each.delay_s)
                        ended_by = min(ended_by, each.ended)
                    # The first release counts; a repeat does not change the delay.
                    free_from = due_from if due_by < math.inf else min(free_from, due_from)
                case "extend" if delayed_by > each.began:
                    end = each.began + each.ttl_s
                    free_from = end if is_whole else min(free_from, end)
                    if each.outcome != "ok":
                        unknown_end = min(unknown_end, end)
                    if each.outcome != "ok" or each.messages:
                        ended_by = max(ended_by, each.ended + each.ttl_s)
        free_from = min(free_from, unknown_end, message.earliest_expiry)
        return LeaseRecord(
            read,
            math.inf if is_read else free_from,
            min(free_from, put_off_from),
            min(ended_by, message.latest_expiry),
            may_be_read,
            undone_from,
            undone_by,
            delayed_by,
            due_by,
            scheduled_until,
        )


def name_of(lease: str) -> str:
    """Return the name of a lease from its token."""
    return lease.partition(".")[0]


def earliest(read: ReadRecord, longest_s: float) -> float:
    """Return the earliest moment at which a read, which may have waited, took its messages."""
    return max(read.began, read.ended - longest_s) if read.wait_s else read.began
