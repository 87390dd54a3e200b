"""Judges a history: were the promises kept to those who asked?

Complete for what an inbox is: texts are unique and an inbox is a set, so that every broken
promise shows as one of the kinds below. Linear in the length of the history but for reads that
came to nothing.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.history import Got, History, Posted


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


def check(history: History, *, late_s: float, longest_s: float, release_s: float) -> Verdict:
    """Judge a whole run.

    `late_s` is how far clocks and measurements may be apart, `longest_s` the longest that any
    request may take, `release_s` the time in which a read that was answered `unknown` has given
    back what it took.

    unexpected: read, never posted, or altered      duplicated: in two reads
    crossed: in another inbox                       lost: acknowledged, alive, in no read
    late: read after its lifetime                   missed: not in a read that had to hold it
    disordered: not in the order it was sent        phantom: refused, and yet read
    endless: a request past its time                unaccounted: the sums do not add up

    A message that was acknowledged and is in no read is `undelivered`, and not lost, where a
    read of its inbox got no answer, and may have taken it. An answer that says `unknown` is no
    excuse, unless its server was killed before it could give back what it took.
    """
    return _Checker(history, late_s, longest_s, release_s).verdict()


class _Checker:
    def __init__(self, history: History, late_s: float, longest_s: float, release_s: float) -> None:
        self._history = history
        self._late_s = late_s
        self._longest_s = longest_s
        self._release_s = release_s
        self._posts = {post.text: post for post in history.posts}
        self._taken: dict[str, Got] = {}
        self._counts: Counter[str] = Counter()
        # Reads of an inbox that may have taken something that nobody saw.
        self._silent: dict[str, list[Got]] = defaultdict(list)
        for read in history.reads:
            if read.outcome in ("unknown", "cut"):
                self._silent[read.user].append(read)

    def verdict(self) -> Verdict:
        violations = [
            *self._returned(),
            *self._missing(),
            *self._missed(),
            *self._endless(),
        ]
        counts = self._counts
        for post in self._history.posts:
            counts[f"posts {post.outcome}"] += 1
        for read in self._history.reads:
            counts[f"reads {read.outcome}"] += 1
        fates = ("read", "expired", "undelivered", "lost")
        if counts["posts ok"] != sum(counts[fate] for fate in fates):
            violations.append(Violation("unaccounted", str(dict(counts))))
        return Verdict(violations, counts)

    def _returned(self) -> Iterator[Violation]:
        """What each read returned, one by one."""
        for read in self._history.reads:
            newest: dict[str, Posted] = {}
            for message_id, text in read.messages:
                post = self._posts.get(text)
                if post is None or (post.id and post.id != message_id):
                    yield Violation("unexpected", f"{text} {message_id} in {read.user}: {post}")
                    continue
                if text in self._taken:
                    yield Violation("duplicated", f"{post}: {self._taken[text]} and {read}")
                    continue
                self._taken[text] = read
                if post.user != read.user:
                    yield Violation("crossed", f"{post} in {read.user}")
                if post.outcome == "refused":
                    yield Violation("phantom", f"{post} in {read}")
                if post.outcome != "ok":
                    self._counts["recovered"] += 1
                if read.began > post.ended + post.lifetime_s + self._late_s:
                    yield Violation("late", f"{post} at {read.began}")
                before = newest.get(post.sender)
                if before is not None and before.began > post.began:
                    yield Violation("disordered", f"{before.text} before {text} in {read.user}")
                newest[post.sender] = post

    def _missing(self) -> Iterator[Violation]:
        """What became of each acknowledged message."""
        last_read = {read.user: read.began for read in self._history.reads if read.outcome == "ok"}
        for post in self._history.posts:
            if post.outcome != "ok":
                continue
            if post.text in self._taken:
                self._counts["read"] += 1
            elif last_read.get(post.user, 0.0) > post.began + post.lifetime_s - self._late_s:
                self._counts["expired"] += 1
            elif any(
                read.ended >= post.began and self._may_have_kept(read)
                for read in self._silent[post.user]
            ):
                self._counts["undelivered"] += 1
            else:
                self._counts["lost"] += 1
                yield Violation("lost", str(post))

    def _may_have_kept(self, read: Got) -> bool:
        """Whether what a read without messages took may be gone for good."""
        return read.outcome == "cut" or any(
            read.began <= killed <= read.ended + self._release_s for killed in self._history.kills
        )

    def _missed(self) -> Iterator[Violation]:
        """Reads that did not hold what was certainly unread all the time that they took."""
        posts: dict[str, list[Posted]] = defaultdict(list)
        for post in self._history.posts:
            if post.outcome == "ok":
                posts[post.user].append(post)
        for reads in self._complete_reads():
            ends = [read.ended for read in reads]
            for post in posts[reads[0].user]:
                taker = self._taken.get(post.text)
                until = min(
                    taker.began if taker is not None else math.inf,
                    post.began + post.lifetime_s - self._late_s,
                )
                missed = _first_between(reads, ends, post.ended, until)
                if missed is not None and not any(
                    silent.began < missed.ended
                    and silent.ended >= post.began
                    and self._may_hold(silent, missed, taker)
                    for silent in self._silent[missed.user]
                ):
                    yield Violation("missed", f"{post}: not in {missed}, but in {taker}")

    def _may_hold(self, silent: Got, missed: Got, taker: Got | None) -> bool:
        """Whether a read without messages may have kept from another what was read at last."""
        if taker is None and self._may_have_kept(silent):
            return True
        return missed.began <= silent.ended + self._release_s

    def _complete_reads(self) -> Iterator[list[Got]]:
        by_user: dict[str, list[Got]] = defaultdict(list)
        for read in self._history.reads:
            if read.outcome == "ok" and read.is_all:
                by_user[read.user].append(read)
        for reads in by_user.values():
            yield sorted(reads, key=lambda read: read.ended)

    def _endless(self) -> Iterator[Violation]:
        requests: tuple[Posted | Got, ...] = (*self._history.posts, *self._history.reads)
        for request in requests:
            if request.ended - request.began > self._longest_s:
                yield Violation("endless", str(request)[:300])


def _first_between(reads: list[Got], ends: list[float], after: float, before: float) -> Got | None:
    """The first read that began after one moment and ended before another."""
    position = bisect_right(ends, after)
    while position < len(reads) and reads[position].ended < before:
        if reads[position].began > after:
            return reads[position]
        position += 1
    return None
