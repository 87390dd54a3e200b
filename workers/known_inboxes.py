"""What a shard knows of its inboxes without a search: the messages that it stored itself.

A read takes two steps, a search and a claim of what was found. The shard claims messages that it
knows at once, while the search looks for others (see `workers.early_claim`).

An inbox is known from a read that emptied it. Messages that this process stores are noted, until a
read takes them. What others do remains unknown, so all of this may be wrong: a claim takes only
what is unread, and the search finds the rest. Nothing but time depends on it.
"""

from collections.abc import Collection, Sequence

from workers.commands import Message, Post, Unread

#: Bounds of one inbox. One with more is not known any more: its reads take several slices.
INBOX_MESSAGES, INBOX_CHARS = 16, 64 << 10
#: Bounds of all inboxes of a shard together, in inboxes and in code points of text.
INBOXES, CHARS = 10_000, 2 << 20
#: After other processes changed a known inbox, no messages are taken for this long, in ms.
PAUSE_MS = 1000


class KnownInboxes:
    """The known inboxes of a shard, and their unread messages."""

    def __init__(self) -> None:
        # The inbox that was emptied first comes first.
        self._unread: dict[str, tuple[Unread, ...]] = {}
        self._chars = 0
        self._resumes_ms = 0
        # The inboxes that got messages since the search began, which are not noted.
        self._missed: set[str] = set()
        # The ids and the inboxes of the posts in flight.
        self._posting: tuple[Collection[str], Collection[str]] = (), ()

    def posting(self, posts: Sequence[Post]) -> None:
        """Set the posts in flight. A search may find their messages before they are answered."""
        self._posting = {post.id for post in posts}, {post.username for post in posts}

    def __contains__(self, username: object) -> bool:
        """Whether an inbox is known."""
        return username in self._unread

    def searching(self) -> None:
        """Note that a search begins."""
        self._missed.clear()

    def emptied(self, username: str) -> None:
        """Note that a read left nothing in an inbox, as far as the last search could tell."""
        if (
            username not in self._unread
            and username not in self._missed
            and username not in self._posting[1]
        ):
            self._unread[username] = ()
            self._shrink()

    def forget(self, username: str) -> None:
        """Note that an inbox has, or had, other messages than those that are known."""
        for unread in self._unread.pop(username, ()):
            self._chars -= len(unread.message.text)

    def stored(self, post: Post) -> None:
        """Note a message that is stored and unread."""
        username, text = post.username, post.text
        known = self._unread.get(username)
        if known is None:
            self._missed.add(username)
            return
        chars = len(text) + sum([len(each.message.text) for each in known])
        if len(known) == INBOX_MESSAGES or chars > INBOX_CHARS:
            self.forget(username)
            self._missed.add(username)
            return
        self._unread[username] = (*known, Unread(Message(text, post.id), post.expires_ms))
        self._chars += len(text)
        self._shrink()

    def take(self, username: str, now_ms: int) -> Sequence[Unread]:
        """Return the messages of an inbox, and note that they are about to be read."""
        known = self._unread.get(username)
        if not known:
            return ()
        self.forget(username)
        if now_ms < self._resumes_ms or min([each.expires_ms for each in known]) <= now_ms:
            return ()
        self._unread[username] = ()
        return known

    def are_newer(self, username: str, others: Sequence[Unread]) -> bool:
        """Return whether these messages in an inbox are all from this process, and were stored
        after its messages were taken, or are being stored.

        They were not answered before the read that took the messages came, so it need not get them.
        """
        if not others:
            return True
        ids = {each.message.id for each in self._unread.get(username, ())}
        return all(each.message.id in ids or each.message.id in self._posting[0] for each in others)

    def pause(self, now_ms: int) -> None:
        """Note that another process stores to these inboxes, or reads them."""
        self._resumes_ms = now_ms + PAUSE_MS

    def _shrink(self) -> None:
        while len(self._unread) > INBOXES or self._chars > CHARS:
            self.forget(next(iter(self._unread)))
