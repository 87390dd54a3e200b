"""The progress of a migration, and the lease of the process that carries it out.

Both are in the document with the schema version (see `workers.store.schema_version`):

    {_id: "schema", version: 1,
     migration: {to: 2, step: "fill", after: id, done: 5000, node, token, until}}

Nobody but the owner of `token` changes `migration` or `version`. A process takes the lease if the
one that had it has not renewed it in time. So two migrations at once exclude each other, and one
that was killed is continued a few seconds later.
"""

import asyncio
import secrets
from typing import NoReturn

import pymongo
from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from workers.store.driver import TIMES_IN_MS, Document
from workers.store.schema import FLEET
from workers.store.schema_version import SCHEMA

#: How long a lease lasts without a renewal, how often it is renewed, and how often a process that
#: waits for it looks again, in seconds.
LEASE_S, RENEW_EVERY_S, LOOK_EVERY_S = 10.0, 2.0, 0.5
#: Longest time for a command, in seconds.
_ANSWER_S = 30.0


class MigrationRefused(Exception):
    """Raised if a migration cannot begin or continue. The message says why, and what to do."""


class MigrationRecord:
    """The record of a migration to one version. Not safe for concurrent use."""

    def __init__(self, database: AsyncDatabase[Document], to: int, node: str) -> None:
        self._fleet = database.get_collection(FLEET, codec_options=TIMES_IN_MS)
        self._to = to
        self._node = node
        self._token = secrets.token_hex(8)
        #: The step to go on with. For "fill", also the id up to which it is done, and the number
        #: of messages up to there.
        self.step = self.after = ""
        self.done = 0

    async def take(self, version: int) -> None:
        """Take the lease. `version` is written if the database does not carry one yet.

        Waits for the lease of a process that does not renew it. Raises `MigrationRefused` if the
        other one does.
        """
        seen: Document | None = None
        while True:
            found = await self._try_to_take(version)
            migration = found["migration"]
            if migration["token"] == self._token:
                self.step, self.after = migration["step"], migration["after"]
                self.done = migration["done"]
                return
            if seen is not None and seen["until"] != migration["until"]:
                raise MigrationRefused(
                    f"{migration['node']} migrates this database to schema {migration['to']} now; "
                    "wait until it is done, or stop it"
                )
            seen = migration
            await asyncio.sleep(LOOK_EVERY_S)

    async def _try_to_take(self, version: int) -> Document:
        until = {"$ifNull": ["$migration.until", 0]}
        # Also free if the database's clock was set back since.
        latest = {"$add": ["$$NOW", int(2 * LEASE_S * 1000)]}
        is_free = {"$or": [{"$lte": [until, "$$NOW"]}, {"$gt": [until, latest]}]}
        is_same = {"$eq": ["$migration.to", self._to]}
        mine = {
            "to": self._to,
            "step": {"$cond": [is_same, "$migration.step", ""]},
            "after": {"$cond": [is_same, "$migration.after", ""]},
            "done": {"$cond": [is_same, "$migration.done", 0]},
            "node": {"$literal": self._node},
            "token": self._token,
            "until": {"$add": ["$$NOW", int(LEASE_S * 1000)]},
        }
        document = await self._fleet.find_one_and_update(
            {"_id": SCHEMA},
            [
                {
                    "$set": {
                        "version": {"$ifNull": ["$version", version]},
                        "migration": {"$cond": [is_free, mine, "$migration"]},
                    }
                }
            ],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        # It is inserted if there is none.
        assert document is not None
        return document

    async def keep(self) -> NoReturn:
        """Renew the lease until cancelled. Raises `MigrationRefused` if another process took it.

        While the database does not answer, nobody else can take it either.
        """
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self._change([{"$set": {"migration.until": _in_ms(LEASE_S)}}])
            except PyMongoError:
                continue

    async def save(self, step: str, after: str = "", done: int = 0) -> None:
        """Record how far the migration has come."""
        self.step, self.after, self.done = step, after, done
        saved = {"migration.step": step, "migration.after": after, "migration.done": done}
        await self._change({"$set": saved})

    async def switch(self) -> None:
        """Write the new version, which all nodes then follow."""
        await self._change({"$set": {"version": self._to}})

    async def finish(self) -> None:
        """Remove the record of the migration, and its lease. Safe to repeat."""
        own = {"$eq": ["$migration.token", self._token]}
        left = {"$cond": [own, "$$REMOVE", "$migration"]}
        with pymongo.timeout(_ANSWER_S):
            await self._fleet.update_one({"_id": SCHEMA}, [{"$set": {"migration": left}}])

    async def let_go(self) -> None:
        """End the lease, so that another process can continue at once."""
        await self._fleet.update_one(
            {"_id": SCHEMA, "migration.token": self._token},
            [{"$set": {"migration.until": "$$NOW"}}],
        )

    async def _change(self, change: Document | list[Document]) -> None:
        """Change the document, acknowledged by a majority, if the lease is still this one's."""
        with pymongo.timeout(_ANSWER_S):
            result = await self._fleet.update_one(
                {"_id": SCHEMA, "migration.token": self._token}, change
            )
        if not result.matched_count:
            raise MigrationRefused(
                "another process has taken over this migration, because this one paused for too "
                "long; look at its output"
            )


def _in_ms(seconds: float) -> Document:
    return {"$add": ["$$NOW", int(seconds * 1000)]}
