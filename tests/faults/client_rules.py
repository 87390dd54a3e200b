"""Rules of `tests.faults.checker` for several clients: fairness, quotas, and keys of others."""

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.history import PostRecord
from tests.faults.history_index import HistoryIndex, Violation


class ClientRules(HistoryIndex):
    """What one client may not do to another."""

    def _foreign_keys(self) -> Iterator[Violation]:
        """Find posts that were refused because another identity had used their key."""
        texts: dict[str, set[str]] = defaultdict(set)
        for post in self._history.posts:
            texts[post.key].add(post.text)
        for post in self._history.posts:
            if post.is_reused and len(texts[post.key]) < 2:
                yield Violation("foreign key", str(post))

    def _overfull(self) -> Iterator[Violation]:
        """Find inboxes that exceeded their quota by more than each process may add."""
        for user, posts in self._history.overruns.items():
            if posts > self._history.overrun_max:
                yield Violation(
                    "overfull", f"{posts} posts were stored in {user} while it was full"
                )

    def _starved(self) -> Iterator[Violation]:
        """Find requests that were refused, or that waited too long, because of another client."""
        if (overtaken_max := self._history.overtaken_max) is None:
            return
        posts: dict[str, list[PostRecord]] = defaultdict(list)
        for post in self._history.posts:
            posts[post.queue].append(post)
        for read in self._history.reads:
            # It waits in a lane of its own, so posts of others that overtake it do no harm.
            if read.client == "light" and read.outcome != "ok":
                yield Violation("starved", str(read))
        for request in self._history.posts:
            if request.client != "light":
                continue
            overtaking = [
                post
                for post in posts[request.queue]
                if post.client != request.client
                and post.outcome == "ok"
                and request.began < post.ended < request.ended
            ]
            if request.outcome != "ok" or len(overtaking) > overtaken_max:
                yield Violation("starved", f"{len(overtaking)} posts overtook {request}")

    def _ahead(self) -> Iterator[Violation]:
        """Find reads that came behind a post of their client to the same inbox, and missed it."""
        posts: dict[tuple[str, str], list[PostRecord]] = defaultdict(list)
        for post in self._history.posts:
            if post.queue and post.outcome == "ok":
                posts[post.user, post.queue].append(post)
        for read in self._history.reads:
            if read.outcome != "ok" or not read.is_all:
                continue
            for post in posts[read.user, read.queue]:
                is_ahead = post.client == read.client and post.began < read.began < post.ended
                if is_ahead and self._unread_until(self._messages[post.text]) >= read.ended:
                    yield Violation("ahead", f"{read} overtook {post}")
