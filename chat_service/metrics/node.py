"""The facts about this node: its name, versions, leader, database and disk.

Each process observes them for itself. Made by `chat_service.metrics.history`, kept up to date by
`chat_service.service`.
"""

import platform
import time
from typing import Any

from chat_service import __version__
from chat_service.metrics.conditions import Database, Disk, Facts
from chat_service.metrics.http import TlsMetrics
from workers.pool import WorkerPool
from workers.storage import StorageReserve

_UNKNOWN = Facts(Database("available", "replica set", None, None), None, "")


class Node:
    """What is known about this node."""

    def __init__(self) -> None:
        self._led_at = time.monotonic()
        #: The host and port, which are the same after a restart. Empty before the start.
        self.name = ""
        self.facts = _UNKNOWN

    def observe(self, pool: WorkerPool, database: Database, certificate: TlsMetrics | None) -> None:
        """Update the facts from the pool, the database and the certificate, if there is one."""
        now = time.monotonic()
        if pool.leader:
            self._led_at = now
        self.facts = self.facts._replace(
            database=database,
            disk=_disk_of(pool.reserve),
            leader=pool.leader,
            leaderless_s=now - self._led_at,
            certificate_ends=None if certificate is None else certificate.ends,
            is_certificate_refused=certificate is not None and certificate.is_refused,
        )

    def document(
        self, now: float, started: float, processes: int, oldest: float | None
    ) -> dict[str, Any]:
        """Return the facts as JSON has them.

        `started` is the start of the node, and `oldest` the time of the oldest sample, both in
        seconds since 1970.
        """
        facts = self.facts
        return {
            "name": self.name or None,
            "version": __version__,
            "python": platform.python_version(),
            "started": started,
            "uptime_s": now - started,
            "processes": processes,
            "leader": facts.leader or None,
            "database": facts.database._asdict(),
            "disk": None if facts.disk is None else facts.disk._asdict(),
            "oldest_sample": oldest,
        }


def _disk_of(reserve: StorageReserve) -> Disk | None:
    seen, limits = reserve.seen, reserve.limits
    if seen is None:
        return None
    # A database that reports no disk reports 0 bytes.
    has_disk = seen.total > 0
    return Disk(
        seen.free if has_disk else None,
        seen.total or None,
        seen.reusable,
        seen.used,
        (limits.reserve_of(seen.total) or None) if has_disk else None,
        limits.used_max_bytes or None,
    )
