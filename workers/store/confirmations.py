"""Confirmations in MongoDB: that the member which answers searches is the primary, and no other.

A linearizable search would say the same, but not in which term it was confirmed. A primary that was
deposed, and elected again later, could confirm what it had found before it learned of the messages
in between. The reply to a write has the term, and costs the database as much: a linearizable read
also waits until a majority has accepted an entry of the log.

In `fleet`, a document for each process that confirms:

    {_id: name of the process, confirmations, at}

The leader deletes those of dead processes.
"""

import math
from contextlib import suppress
from typing import NamedTuple

import pymongo
import structlog

from workers.errors import StoreUnavailable
from workers.store.base import Term
from workers.store.connection import PING_S, Connection
from workers.store.driver_errors import StoreRefused, read_errors
from workers.store.schema import FLEET

log = structlog.get_logger(__name__)


class Primary(NamedTuple):
    """The primary as the driver knows it: a member, and the term in which it was elected."""

    address: tuple[str, int | None]
    term: Term


class Confirmations(Connection):
    """The part of `workers.store.base.Store` that confirms searches."""

    #: Whether the database can confirm a term.
    _can_confirm = True

    async def open(self, within_s: float = math.inf) -> None:
        """See `Connection.open`. Also learns whether the database confirms, before a read does."""
        await super().open(within_s)
        assert self._client is not None
        self._fleet = self._client[self._options.database][FLEET]
        self._can_confirm = True
        with suppress(StoreUnavailable), pymongo.timeout(PING_S):
            await self.confirm()

    @property
    def has_terms(self) -> bool:
        """See `workers.store.base.Store.has_terms`."""
        return self._primary() is not None

    async def confirm(self) -> Term | None:
        """See `workers.store.base.Store.confirm`."""
        if self._primary() is None:
            return None
        with self._operation("confirm"):
            try:
                with read_errors():
                    # Each write must change something. The database answers a write that changes
                    # nothing without asking a majority.
                    result = await self._fleet.update_one(
                        {"_id": self._node},
                        {"$inc": {"confirmations": 1}, "$currentDate": {"at": True}},
                        upsert=True,
                    )
            except StoreRefused as error:
                self._confirm_no_more(str(error))
                return None
        term = (result.raw_result or {}).get("electionId")
        if term is None:
            self._confirm_no_more("its replies have no electionId")
            return None
        return str(term)

    def _primary(self) -> Primary | None:
        """Return the primary that the driver would choose now, if it can confirm a search.

        Returns None if the database cannot confirm, or if there is nothing to confirm because the
        replica set has one member.
        """
        if not self._has_peers() or not self._can_confirm:
            return None
        assert self._client is not None
        topology = self._client.topology_description
        # With a direct connection, the driver would also accept the answer of a secondary.
        if topology.topology_type_name != "ReplicaSetWithPrimary":
            return None
        for address, server in topology.server_descriptions().items():
            if server.election_id is not None:
                return Primary(address, str(server.election_id))
        return None

    def _confirm_no_more(self, reason: str) -> None:
        self._can_confirm = False
        log.warning(
            "reads take longer, because the database does not confirm them separately",
            reason=reason,
        )
