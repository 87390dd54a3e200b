"""Where a message is found: the filters and indexes that depend on the schema version.

In schema 2, each message has the route of its inbox, and the indexes of an inbox begin with it.
Routes spread inboxes evenly, so a collection can be sharded by them. In schema 1, messages of
earlier versions have no route. This version always writes it, and finds messages without it, too.

The indexes of both schemas have different names and can exist at the same time. So a database
changes its schema while it is used: see `workers.store.schema_version`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.ids import route_in
from workers.routing import route_of
from workers.store.driver import Document


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one schema version.

    `inbox_index` and `key_index` are names of indexes, and `indexes` are the definitions of those
    that other schemas do not have. `sort` is the order of the inbox index.
    """

    version: int
    inbox_index: str
    key_index: str
    has_route: bool
    indexes: Mapping[str, Mapping[str, Any]]
    sort: Sequence[tuple[str, int]]

    def inbox(self, username: str) -> Document:
        """Return the filter for the messages of an inbox."""
        if self.has_route:
            return {"route": route_of(username), "username": username}
        return {"username": username}

    def inboxes(self, usernames: Sequence[str]) -> Document:
        """Return the filter for the messages of several inboxes."""
        if len(usernames) == 1:
            return self.inbox(usernames[0])
        names = {"$in": list(usernames)}
        if self.has_route:
            return {"route": {"$in": [route_of(each) for each in usernames]}, "username": names}
        return {"username": names}

    def key(self, username: str, key_hash: str) -> Document:
        """Return the filter for the message with an idempotency key in an inbox.

        In schema 1, a key belongs to all inboxes.
        """
        if self.has_route:
            return {**self.inbox(username), "key.hash": key_hash}
        return {"key.hash": key_hash}

    def keys(self, keys: Iterable[tuple[str, str]]) -> Document:
        """Return the filter for the messages with these keys: pairs of an inbox and a hash.

        It also finds a message whose inbox is that of one pair and whose key that of another.
        """
        pairs = list(keys)
        hashes: Document = {"key.hash": {"$in": [key_hash for _, key_hash in pairs]}}
        if self.has_route:
            return {**self.inboxes([username for username, _ in pairs]), **hashes}
        return hashes

    def key_of(self, username: str, key_hash: str) -> tuple[str, str]:
        """Return what identifies a key: keys with the same identity store one message."""
        return (username if self.has_route else "", key_hash)

    def message(self, message_id: str) -> Document:
        """Return the filter for one message whose inbox is unknown."""
        route = route_in(message_id) if self.has_route else None
        return {"_id": message_id} if route is None else {"_id": message_id, "route": route}

    def rank(self, username: str) -> tuple[int, str]:
        """Return a key that sorts inboxes in the order of the inbox index.

        Code points sort like MongoDB's UTF-8 bytes.
        """
        return (route_of(username) if self.has_route else 0, username)


_UNREAD = {"unread": True}
_HAS_KEY = {"key.hash": {"$exists": True}}

# The inbox indexes have all fields that a count needs, so that a count reads no document. Not even
# `unread` can be left out: the planner does not conclude from the partial filter that it is true.
LAYOUT_1 = Layout(
    version=1,
    inbox_index="inbox",
    key_index="idempotency",
    has_route=False,
    indexes={
        "inbox": {
            "key": {"username": 1, "_id": 1, "unread": 1, "expires_at": 1},
            "partialFilterExpression": _UNREAD,
        },
        "idempotency": {
            "key": {"key.hash": 1},
            "unique": True,
            "partialFilterExpression": _HAS_KEY,
        },
    },
    sort=[("username", 1), ("_id", 1)],
)
LAYOUT_2 = Layout(
    version=2,
    inbox_index="inbox_by_route",
    key_index="idempotency_by_inbox",
    has_route=True,
    indexes={
        "inbox_by_route": {
            "key": {"route": 1, "username": 1, "_id": 1, "unread": 1, "expires_at": 1},
            "partialFilterExpression": _UNREAD,
        },
        "idempotency_by_inbox": {
            "key": {"route": 1, "username": 1, "key.hash": 1},
            "unique": True,
            "partialFilterExpression": _HAS_KEY,
        },
    },
    sort=[("route", 1), ("username", 1), ("_id", 1)],
)

#: The layouts that this version works with, by schema version.
LAYOUTS: Mapping[int, Layout] = {each.version: each for each in (LAYOUT_1, LAYOUT_2)}
#: The layout of a new database.
NEWEST = LAYOUT_2
