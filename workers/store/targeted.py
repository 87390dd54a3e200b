"""Updates of many messages, as a replica set needs them and as a mongos does.

On a replica set, one statement updates messages of any number of inboxes. A mongos sends such a
statement to all database shards, and past their filters of ownership. It would also change orphans:
copies of documents that were moved to another database shard, or are about to be. Then a claim
would own a message that another claim gets, too, and counters would count messages twice.

So behind a mongos there is a statement for each inbox, with equality on route and username, which
reaches the owner of the inbox alone. One command has them all. If an update does not know its
inboxes, a search finds its messages first: reads skip orphans.

If a chunk moves meanwhile, the mongos repeats a statement. Its filter no longer selects what the
first attempt changed, so nothing happens twice, but the number in the reply may be too small. What
must be exact is counted by a mark that the update leaves.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pymongo.asynchronous.database import AsyncDatabase

from workers.ids import route_in
from workers.routing import route_of
from workers.store.driver import Document
from workers.store.raw_commands import update
from workers.store.schema import COLLECTION

#: An update document, or a pipeline.
Change: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]

#: Most messages that are found and then updated at a time.
_FOUND_MAX = 5000


class Updates:
    """Updates of one collection. They raise the driver's errors.

    If a command with several statements fails, some of them may have taken effect.
    """

    def __init__(self, database: AsyncDatabase[Document], *, is_routed: bool) -> None:
        self._database = database
        self._messages = database[COLLECTION]
        self._is_routed = is_routed

    async def of_inboxes(
        self, selection: Document, change: Change, hint: str, deadline: float | None = None
    ) -> int:
        """Update the messages of some inboxes. Returns how many changed.

        `deadline` is that of `workers.store.raw_commands`.

        The filter comes from `Layout.inbox`, or from `Layout.inboxes` and then also has `_id` with
        `$in`.
        """
        if self._is_routed and isinstance(selection["username"], dict):
            return await self._update(by_inbox(selection), change, hint, deadline)
        return await self._update([selection], change, hint, deadline)

    async def of_found(
        self,
        documents: Sequence[Document],
        selection: Document,
        change: Change,
        mark: Document | None = None,
    ) -> int:
        """Update the documents that a search has found, if the filter still selects them.

        They have `_id` and `username`. Returns how many changed: exactly, if the update leaves a
        `mark` that no other one does.
        """
        if not documents:
            return 0
        ids = {"$in": [document["_id"] for document in documents]}
        if not self._is_routed:
            return await self._update([{**selection, "_id": ids}], change, "_id_")
        usernames = {document["username"] for document in documents}
        changed = await self._update(_by_inbox_of(documents, selection), change, "_id_")
        if mark is None:
            return changed
        routes = {"$in": [route_of(username) for username in usernames]}
        marked = {"route": routes, "username": {"$in": list(usernames)}, "_id": ids, **mark}
        return await self._messages.count_documents(marked, hint="_id_")

    async def everywhere(
        self, selection: Document, change: Change, hint: str, mark: Document | None = None
    ) -> int:
        """Update all messages that the filter selects. Returns how many, like `of_found`."""
        if not self._is_routed:
            return await self._update([selection], change, hint)
        total = 0
        # The cursor goes on behind what was updated, so nothing is searched twice.
        cursor = self._messages.find(
            selection, projection={"username": 1}, hint=hint, batch_size=_FOUND_MAX
        )
        try:
            while documents := await cursor.to_list(_FOUND_MAX):
                total += await self.of_found(documents, selection, change, mark)
        finally:
            await cursor.close()
        return total

    async def _update(
        self,
        selections: Iterable[Document],
        change: Change,
        hint: str,
        deadline: float | None = None,
    ) -> int:
        return await update(self._database, COLLECTION, selections, change, hint, deadline)


def by_inbox(selection: Document) -> Iterator[Document]:
    """Split a filter of `Layout.inboxes` with ids into one for each inbox.

    An id without a route may be of any inbox. Another inbox of the same route has the same ids, and
    the username tells them apart. There is at least one filter.
    """
    ids: defaultdict[int | None, list[str]] = defaultdict(list)
    for message_id in selection["_id"]["$in"]:
        ids[route_in(message_id)].append(message_id)
    for username in selection["username"]["$in"]:
        route = route_of(username)
        own = {"$in": [*ids.get(route, ()), *ids.get(None, ())]}
        yield {**selection, "route": route, "username": username, "_id": own}


def _by_inbox_of(documents: Iterable[Document], selection: Document) -> Iterator[Document]:
    """Return a filter for each inbox of these documents."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for document in documents:
        ids[document["username"]].append(document["_id"])
    for username, own in ids.items():
        inbox = {"route": route_of(username), "username": username, "_id": {"$in": own}}
        yield {**selection, **inbox}
