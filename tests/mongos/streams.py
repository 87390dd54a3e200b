"""A change stream of the emulated router, over all database shards."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.mongos.backend import Backend
from tests.mongos.writing import Refused
from workers.store.driver import Document


class MergedStream:
    """A cursor on each database shard, and the tokens at which they are."""

    def __init__(self, shards: Sequence[Backend], number: int) -> None:
        self._shards = shards
        self._number = number
        self._cursors: list[Any] = []
        self._tokens: list[Document] = []

    async def open(self, command: Document) -> Document:
        """Open the cursors. Returns the reply to the `aggregate`."""
        replies = []
        for number, shard in enumerate(self._shards):
            reply = await shard.run({**command, "pipeline": _pipeline_of(command, number)})
            if not reply["ok"]:
                return reply
            replies.append(reply)
        self._cursors = [reply["cursor"]["id"] for reply in replies]
        self._tokens = [{}] * len(replies)
        return self._merge(replies, "firstBatch")

    async def run(self, command: Document) -> Document:
        """Carry out `getMore` or `killCursors`.

        Waits for the answers of all database shards, as the real router does.
        """
        name = next(iter(command))
        parts: list[Document] = [
            {**command, "getMore": each} if name == "getMore" else {**command, "cursors": [each]}
            for each in self._cursors
        ]
        replies = await asyncio.gather(
            *(shard.run(part) for shard, part in zip(self._shards, parts, strict=True))
        )
        for reply in replies:
            if not reply["ok"]:
                return reply
        if name == "killCursors":
            return {"ok": 1.0, "cursorsKilled": [self._number]}
        return self._merge(replies, "nextBatch")

    def _merge(self, replies: Sequence[Document], batch: str) -> Document:
        """Return the events of all replies in the order of their times."""
        events = [
            (event["clusterTime"], number, event)
            for number, reply in enumerate(replies)
            for event in reply["cursor"][batch]
        ]
        events.sort(key=lambda each: each[:2])
        for _, number, event in events:
            self._tokens[number] = event["_id"]
            event["_id"] = self._token()
        self._tokens = [reply["cursor"]["postBatchResumeToken"] for reply in replies]
        cursor: Document = {"id": self._number, "ns": replies[0]["cursor"]["ns"]}
        cursor[batch] = [event for _, _, event in events]
        cursor["postBatchResumeToken"] = self._token()
        return {"cursor": cursor, "ok": 1.0}

    def _token(self) -> Document:
        return {"_data": "of the router", "of": list(self._tokens)}


def _pipeline_of(command: Document, number: int) -> list[Document]:
    """Return the pipeline for one database shard: where it begins differs."""
    first, *rest = command["pipeline"]
    options = dict(first["$changeStream"])
    for name in ("resumeAfter", "startAfter"):
        if name in options:
            if "of" not in options[name]:
                raise Refused(260, "this token is not from a router")
            options[name] = options[name]["of"][number]
    return [{"$changeStream": options}, *rest]
