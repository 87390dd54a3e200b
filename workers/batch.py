"""The decisions of a shard: what a batch does, and which read gets which message.

Pure functions over lists, without any waiting. `workers.shard` calls them between its awaits.

All items in a queue are unanswered and therefore concurrent, so any order of them is valid. Two
rules remain. A read queued behind a post to the same inbox waits until that post is answered, so
that it finds the message. Among reads of the same inbox, the earlier read gets the older messages.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from workers.commands import Count, Post, Read, Unread
from workers.work_item import WorkItem

#: Most code points of text in one slice. This bounds the memory that a slow reader holds.
SHARE_CHARS_MAX = 256 << 10


class PostBatch(NamedTuple):
    """The posts of one batch and their inboxes, and the reads that came with them.

    Those that are `free` were behind posts that are answered now. Those `behind` come after a post
    of this batch to their inbox, and wait for it. Each list is in order of arrival.
    """

    posts: list[WorkItem]
    posted: set[str]
    free: list[WorkItem]
    behind: list[WorkItem]


def plan(items: Iterable[WorkItem]) -> PostBatch:
    """Sort the open items from the lane of the posts."""
    batch = PostBatch([], set(), [], [])
    for item in items:
        if not item.is_open:
            continue
        username = item.command.username
        if isinstance(item.command, Post):
            batch.posted.add(username)
            batch.posts.append(item)
        elif username in batch.posted:
            batch.behind.append(item)
        else:
            batch.free.append(item)
    return batch


class ReadBatch(NamedTuple):
    """The items of one batch by kind, in order of arrival."""

    reads: list[WorkItem]
    counts: list[WorkItem]
    single_calls: list[WorkItem]


def sort(items: Iterable[WorkItem]) -> ReadBatch:
    """Sort the open items from the lane of the reads."""
    batch = ReadBatch([], [], [])
    for item in items:
        if not item.is_open:
            continue
        if isinstance(item.command, Read):
            batch.reads.append(item)
        elif isinstance(item.command, Count):
            batch.counts.append(item)
        else:
            batch.single_calls.append(item)
    return batch


class Lookup(NamedTuple):
    """One search of the store: at most `limit` unread messages of these inboxes in total."""

    usernames: list[str]
    limit: int


class LookupLimits(NamedTuple):
    """The most messages of one search, and for the searches of one inbox in one round: their
    number, and how many such searches' worth of messages they may return.
    """

    slice: int
    singles: int
    slices: int


def lookups(reads: Iterable[WorkItem], limits: LookupLimits) -> list[Lookup]:
    """Return the searches for these reads: one shared search, and one for each limited inbox.

    A limited read, or one that continues a long inbox, gets a search of its own: in a shared
    search, an inbox with more messages than the limit would hide the inboxes behind it. The reads
    that do not fit into the limits are served in a later round.
    """
    slice_max = limits.slice
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
    found: list[Lookup] = []
    left = limits.slices * slice_max
    for username, limit in single.items():
        left -= limit
        if left < 0 or len(found) == limits.singles:
            break
        found.append(Lookup([username], limit))
    if shared:
        found.insert(0, Lookup(list(shared), slice_max))
    return found


class Share(NamedTuple):
    """The messages that one read is to claim. `more` is set if unread messages may be left."""

    item: WorkItem
    messages: tuple[Unread, ...]
    more: bool


def share_out(
    reads: Sequence[WorkItem],
    found: Mapping[str, Sequence[Unread]],
    complete: Collection[str],
) -> tuple[list[Share], list[WorkItem]]:
    """Distribute messages over reads in order of arrival: the shares, and the reads to retry.

    `found` has the unread messages of each inbox, oldest first. `complete` names the inboxes for
    which these are all unread messages. A read that gets nothing from any other inbox is retried,
    since an empty result might be false. A share has at most `SHARE_CHARS_MAX` code points, or one
    longer message.
    """
    dealt: dict[str, int] = {}
    # Inboxes with a share in a separate claim, and those with a share in the claim of the plain
    # reads. One claim may fail alone, and another process may have chosen the messages for a key:
    # the messages distributed here then stay unread.
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
    """Return how many of these messages fit into one share."""
    chars = 0
    for count, unread in enumerate(messages):
        chars += len(unread.message.text)
        if chars > SHARE_CHARS_MAX and count:
            return count
    return len(messages)
