"""The decisions of a shard, without any waiting: which items go together, who gets what.

Pure functions over lists, called by `workers.shard` between its awaits.

Everything in a queue is unanswered, hence concurrent: any order of its items is one that
could have happened. Two rules remain. A read that stands behind a post to the same inbox
waits for the next batch, so that it finds the message; and of the reads of one inbox the
earlier gets the older messages.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from workers.commands import Count, Post, Read, Unread
from workers.work_item import WorkItem

#: Code points of text that one read is given at once: what a slow reader holds in memory.
SHARE_CHARS_MAX = 256 << 10


class Batch(NamedTuple):
    """What one round of a shard carries out, each list in order of arrival."""

    posts: list[WorkItem]
    reads: list[WorkItem]
    counts: list[WorkItem]
    single_calls: list[WorkItem]
    deferred: list[WorkItem]


def plan(items: Iterable[WorkItem]) -> Batch:
    """Sort the open items by kind; carry over the reads that stand behind a post."""
    batch = Batch([], [], [], [], [])
    posted: set[str] = set()
    for item in items:
        if not item.is_open:
            continue
        command = item.command
        if isinstance(command, Post):
            posted.add(command.username)
            batch.posts.append(item)
        elif not isinstance(command, Read | Count):
            batch.single_calls.append(item)
        elif command.username in posted:
            batch.deferred.append(item)
        elif isinstance(command, Read):
            batch.reads.append(item)
        else:
            batch.counts.append(item)
    return batch


class Lookup(NamedTuple):
    """One search of the store: the unread of these inboxes, `limit` messages in all."""

    usernames: list[str]
    limit: int


def lookups(reads: Iterable[WorkItem], slice_max: int, singles_max: int) -> list[Lookup]:
    """The searches that serve these reads: one for all plain reads, one for each limited inbox.

    A limited read, or one that goes on with a long inbox, gets a search of its own, or an inbox
    that is deeper than the limit would hide the others behind it. At most `singles_max` of
    those; what is left out is not in any lookup, and is served in a later round.
    """
    shared: dict[str, None] = {}
    single: dict[str, int] = {}
    for item in reads:
        command = item.command
        assert isinstance(command, Read)
        wanted = slice_max if command.limit is None else command.limit
        if command.username in single or command.limit is not None or command.upto is not None:
            shared.pop(command.username, None)
            single[command.username] = min(single.get(command.username, 0) + wanted, slice_max)
        else:
            shared[command.username] = None
    found = [Lookup([username], limit) for username, limit in single.items()][:singles_max]
    if shared:
        found.insert(0, Lookup(list(shared), slice_max))
    return found


class Share(NamedTuple):
    """What one read is to claim; `more` where unread messages may be left behind it."""

    item: WorkItem
    messages: tuple[Unread, ...]
    more: bool


def share_out(
    reads: Sequence[WorkItem],
    found: Mapping[str, Sequence[Unread]],
    complete: Collection[str],
) -> tuple[list[Share], list[WorkItem]]:
    """Deal the messages found to the reads, in order of arrival: the shares, and who goes on.

    `found` holds an inbox's unread messages, oldest first; `complete` names the inboxes of
    which that is all there is. A read that came away empty from an inbox that is not known to
    be exhausted must be tried again: an empty answer would be false. No share is longer than
    `SHARE_CHARS_MAX`, or one message.
    """
    dealt: dict[str, int] = {}
    # Inboxes with a share in a claim of its own, and with one in that of the plain reads. Claims
    # fail alone, and what a key gets may be decided elsewhere: then what was dealt stays unread.
    own: set[str] = set()
    plain: set[str] = set()
    shares: list[Share] = []
    again: list[WorkItem] = []
    for item in reads:
        command = item.command
        assert isinstance(command, Read)
        messages = found.get(command.username, ())
        start = dealt.get(command.username, 0)
        end = len(messages) if command.limit is None else start + command.limit
        end = start + _fitting(messages[start:end])
        share = tuple(messages[start:end])
        exhausted = command.username in complete and start + len(share) >= len(messages)
        is_own = command.lease is not None or bool(command.key)
        depends = command.username in own or (is_own and command.username in plain)
        exhausted = exhausted and not depends
        if command.upto is not None:
            upto = command.upto
            share = tuple(unread for unread in share if unread.message.id <= upto)
            exhausted = exhausted or start + len(share) < min(end, len(messages))
        dealt[command.username] = start + len(share)
        if share:
            (own if is_own else plain).add(command.username)
        if share or exhausted:
            shares.append(Share(item, share, not exhausted))
        else:
            again.append(item)
    return shares, again


def _fitting(messages: Sequence[Unread]) -> int:
    """How many of these are one share."""
    chars = 0
    for count, unread in enumerate(messages):
        chars += len(unread.message.text)
        if chars > SHARE_CHARS_MAX and count:
            return count
    return len(messages)
