"""The leader lease in MongoDB: it decides which node does the work for the whole database.

The collection `fleet` has a document for the leader, and may have others for nodes:

    {_id: "leader", node, token, since, until, pending, counted_at, pending_until}

and one with the key of `log_key`:

    {_id: "log-names", key}

No guarantee depends on it. If two nodes lead at once, or none, each message is still counted once,
since the updates of the sweeps are atomic. Its writes are therefore acknowledged by the primary
alone: if a failover takes one back, the nodes elect a leader again.
"""

import secrets

import structlog
from bson.datetime_ms import DatetimeMS
from pymongo import ReturnDocument
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from workers.store.base import LEADER_LEASE_S, SOLE_LEASE_S, Leader, PendingCount
from workers.store.driver import TIMES_IN_MS, Document
from workers.store.driver_errors import NOT_ALLOWED, read_errors
from workers.store.node_history import NodeHistory
from workers.store.schema import FLEET, LEADER, LOG_KEY

log = structlog.get_logger(__name__)

_ON_PRIMARY = WriteConcern(w=1)
#: Longest time to ask for the lease, and to give it up, in seconds.
_ASK_S, _RESIGN_S = 2.0, 1.0
#: Documents of nodes are deleted this long after their time `at`, in ms.
_FORGET_AFTER_MS = 3600_000


class Fleet(NodeHistory):
    """The part of `workers.store.base.Store` for the leader."""

    async def lead(self, pending: PendingCount | None) -> Leader:
        """See `workers.store.base.Store.lead`."""
        assert self._client is not None
        database = self._client[self._options.database]
        with self._operation("lead", min(_ASK_S, self._timeout_s)), read_errors():
            try:
                # As a command, the driver does not repeat it, which would cost the database a
                # record of each. A lost reply only delays the renewal.
                answer = await database.command(
                    {
                        "findAndModify": FLEET,
                        "query": {"_id": LEADER},
                        "update": [{"$replaceWith": self._lease(pending)}],
                        "upsert": True,
                        "new": True,
                        "writeConcern": _ON_PRIMARY.document,
                    },
                    codec_options=TIMES_IN_MS,
                )
            except OperationFailure as error:
                if error.code not in NOT_ALLOWED:
                    raise
                return self._lead_alone()
        return self._leader_of(answer["value"])

    async def resign(self) -> None:
        """See `workers.store.base.Store.resign`."""
        assert self._client is not None
        fleet = self._client[self._options.database].get_collection(
            FLEET, write_concern=_ON_PRIMARY
        )
        with self._operation("lead", _RESIGN_S), read_errors():
            await fleet.update_one(
                {"_id": LEADER, "token": self._token}, {"$set": {"until": DatetimeMS(0)}}
            )

    async def forget_nodes(self, now_ms: int) -> None:
        """See `workers.store.base.Store.forget_nodes`."""
        await self._forget_histories(now_ms)
        if self._is_fleet_hidden:
            return
        assert self._client is not None
        fleet = self._client[self._options.database].get_collection(
            FLEET, write_concern=_ON_PRIMARY
        )
        with self._operation("lead"), read_errors():
            await fleet.delete_many({"at": {"$lt": DatetimeMS(now_ms - _FORGET_AFTER_MS)}})

    async def log_key(self) -> str | None:
        """Return the key with which all nodes hash the names of inboxes in their logs.

        The first node makes it. Returns None if the user may not use the collection. Raises
        `StoreUnavailable`.
        """
        assert self._client is not None
        fleet = self._client[self._options.database][FLEET]
        with self._operation("lead"), read_errors():
            try:
                document = await fleet.find_one_and_update(
                    {"_id": LOG_KEY},
                    {"$setOnInsert": {"key": secrets.token_hex(16)}},
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
            except OperationFailure as error:
                if error.code not in NOT_ALLOWED:
                    raise
                return None
        assert document is not None
        return str(document["key"])

    def _lease(self, pending: PendingCount | None) -> Document:
        """Return the expression for the new document, which is the old one if another node leads.

        An update that changes nothing is not written to the journal or the oplog. A process that
        has the database alone takes the lease at once: who has it was killed.
        """
        is_sole = self._options.is_sole
        lease_s = SOLE_LEASE_S if is_sole else LEADER_LEASE_S
        is_own = {"$eq": ["$token", self._token]}
        # Also true if there is no lease yet, or if the database's clock was set back since: nobody
        # would lead until it shows the old time again.
        latest = {"$add": ["$$NOW", int(2 * LEADER_LEASE_S * 1000)]}
        lasts = {"$and": [{"$gt": ["$until", "$$NOW"]}, {"$lte": ["$until", latest]}]}
        is_over = {"$not": [lasts]}
        mine: Document = {
            "node": {"$literal": self._node},
            "token": self._token,
            "since": {"$cond": [is_own, "$since", "$$NOW"]},
            "until": {"$add": ["$$NOW", int(lease_s * 1000)]},
        }
        if pending is not None:
            mine["pending"] = pending.messages
            mine["counted_at"] = DatetimeMS(pending.counted_ms)
            mine["pending_until"] = DatetimeMS(pending.valid_until_ms)
        renewed = {"$mergeObjects": ["$$ROOT", mine]}
        return {"$cond": [{"$or": [is_own, is_over, is_sole]}, renewed, "$$ROOT"]}

    def _leader_of(self, document: Document) -> Leader:
        pending = PendingCount(
            document.get("pending"),
            int(document.get("counted_at", 0)),
            int(document.get("pending_until", 0)),
        )
        is_own = document["token"] == self._token
        until_ms = int(document["until"])
        return Leader(document["node"], is_own, until_ms, pending, self._options.is_sole)

    def _lead_alone(self) -> Leader:
        """Return a lease for this node, since the database's user may not use the collection.

        Every node of such a fleet does the work of the leader.
        """
        if not self._is_fleet_hidden:
            self._is_fleet_hidden = True
            log.warning(
                "the nodes cannot agree on a leader, so each of them does its work; grant the "
                "service the actions find, insert, update and remove on the collection fleet, or "
                "the role readWrite on its database"
            )
        until_ms = self._clock.now_ms() + int(LEADER_LEASE_S * 1000)
        return Leader(self._node, True, until_ms, PendingCount(None, 0, 0))
