"""The engine's Prometheus metrics. `chat_service.service` creates them once per process.

No label holds a username, a message id, or any other value with many possibilities.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from workers.commands import Unread
from workers.ids import TIME_DIGITS

# Otherwise each counter would have a second series with the time of its creation.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: The counter of the restarts of the embedded mongod, and its text. A supervisor counts them in a
#: file.
MONGOD_RESTARTS = (
    "chat_mongod_restarts_total",
    "How often the embedded mongod ended unexpectedly and was restarted.",
)
#: How the lease of a message can end.
LEASE_ENDS = ("acknowledged", "released", "expired")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class WorkerMetrics:
    """Counters and histograms of the pool, its shards and the store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.accepted = Counter(
            "chat_messages_accepted_total", "Messages stored and acknowledged.", registry=registry
        )
        self.scheduled = Counter(
            "chat_messages_scheduled_total",
            "Accepted messages with a delay. They count as accepted, too.",
            registry=registry,
        )
        self._lateness = SizedHistogram(
            "chat_scheduled_lateness_seconds",
            "Time from when scheduled messages were due until they were readable. The leader "
            "records those of all nodes.",
            buckets=(0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )
        self.read = Counter(
            "chat_messages_read_total", "Messages delivered to a reader.", registry=registry
        )
        self.expired = Counter(
            "chat_messages_expired_unread_total",
            "Messages that expired before anybody read them. The leader counts those of all nodes.",
            registry=registry,
        )
        self.revoked = Counter(
            "chat_messages_revoked_total",
            "Messages that their senders revoked.",
            registry=registry,
        )
        self.dead = Counter(
            "chat_messages_dead_total",
            "Messages that moved to a dead-letter inbox. Each counts as accepted there. The leader "
            "counts those of all nodes.",
            registry=registry,
        )
        #: The counted events of a message: accepted = read + expired + revoked + dead + pending.
        self.lifecycle: Mapping[str, Counter] = {
            "accepted": self.accepted,
            "read": self.read,
            "expired": self.expired,
            "revoked": self.revoked,
            "dead": self.dead,
        }
        self.pending = Gauge(
            "chat_messages_pending",
            "Messages that are unread or leased, of all nodes, at the leader's last count; NaN "
            "while that is unknown.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.leader = Gauge(
            "chat_leader",
            "1 on the node that leads, which does the work for the database of all nodes.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.leased = Counter(
            "chat_messages_leased_total", "Messages leased to a reader.", registry=registry
        )
        self.lease_ends = Counter(
            "chat_lease_messages_total",
            "Leased messages by how their lease ended.",
            ["end"],
            registry=registry,
        )
        for end in LEASE_ENDS:
            self.lease_ends.labels(end)
        self.waiters = Gauge(
            "chat_waiters",
            "Long polls and streams that are waiting for a message.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._time_to_read = SizedHistogram(
            "chat_message_time_to_read_seconds",
            "Age of messages when they are delivered to a reader.",
            buckets=(0.005, 0.02, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 43200, 86400),
            registry=registry,
        )
        self._life_left = SizedHistogram(
            "chat_message_life_left_ratio",
            "Share of their lifetime that messages have left when they are delivered.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0),
            registry=registry,
        )
        self.undelivered = Counter(
            "chat_messages_undelivered_total",
            "Messages of reads whose client did not receive the response.",
            registry=registry,
        )
        self.released = Counter(
            "chat_messages_released_total",
            "Messages that became unread again because their read was not answered.",
            registry=registry,
        )
        self.database_away = Gauge(
            "chat_database_away",
            "1 while this node refuses requests because the database does not answer it.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.indexes_missing = Gauge(
            "chat_indexes_missing",
            "1 while an index of the database is missing or differs from its definition.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.unknown = Counter(
            "chat_outcomes_unknown_total",
            "Requests answered 503 because their outcome is unknown.",
            ["command"],
            registry=registry,
        )
        self.claim_conflicts = Counter(
            "chat_claim_conflicts_total",
            "Messages that were found unread, but that another node claimed first.",
            registry=registry,
        )
        self.claims_resolved = Counter(
            "chat_claims_resolved_total",
            "Claims whose reply was lost and whose messages were found by their token.",
            registry=registry,
        )
        self.inserts_resolved = Counter(
            "chat_inserts_resolved_total",
            "Messages that a repeated insert found already stored.",
            registry=registry,
        )
        self.refused = Counter(
            "chat_requests_refused_total",
            "Requests that were refused and never executed.",
            ["reason"],
            registry=registry,
        )
        for reason in (
            *("overloaded", "draining", "unavailable", "expired", "storage-full", "inbox-full"),
        ):
            self.refused.labels(reason)
        self.storage_free = Gauge(
            "chat_storage_free_bytes",
            "Free bytes on the disk of the database, for all nodes.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.storage_used = Gauge(
            "chat_storage_used_bytes",
            "Bytes that the messages and their indexes take up in the database, of all nodes.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.storage_reusable = Gauge(
            "chat_storage_reusable_bytes",
            "Free bytes inside the database's files, which new messages of all nodes can use.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.storage_full = Gauge(
            "chat_storage_full",
            "1 while this node refuses posts because the database's disk, or its limit, is full.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.restarts = Counter(
            "chat_worker_restarts_total", "Restarts of shards that died.", registry=registry
        )
        self.mongod_restarts = Counter(*MONGOD_RESTARTS, registry=registry)
        self.queue_wait = Histogram(
            "chat_queue_wait_seconds",
            "Queue wait of the oldest request in a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_requests = Histogram(
            "chat_batch_requests", "Requests in a batch.", buckets=_SIZES, registry=registry
        )
        self.batch_posts = Histogram(
            "chat_batch_posts", "Posts in a batch.", buckets=_SIZES, registry=registry
        )
        self.batch_reads = Histogram(
            "chat_batch_reads", "Reads in a batch.", buckets=_SIZES, registry=registry
        )
        self.store_seconds = Histogram(
            "chat_store_operation_seconds",
            "Duration of one database operation, including retries.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._seconds_of: dict[str, Histogram] = {}
        self.clock_offset = Gauge(
            "chat_clock_offset_seconds",
            "The database's clock minus this machine's clock.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.queued = Gauge(
            "chat_shard_queue_requests",
            "Requests in a shard's queue.",
            ["shard"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.queued_bytes = Gauge(
            "chat_shard_queue_bytes",
            "Bytes of text in a shard's queue.",
            ["shard"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    def operation_took(self, name: str, seconds: float) -> None:
        """Record the duration of one database operation."""
        histogram = self._seconds_of.get(name)
        if histogram is None:
            histogram = self._seconds_of[name] = self.store_seconds.labels(name)
        histogram.observe(seconds)

    def released_due(self, now_ms: int, due_ms: Sequence[int]) -> None:
        """Record the lateness of scheduled messages that are readable now."""
        self._lateness.observe_all([max(now_ms - each, 0) / 1000 for each in due_ms])

    def moved(self, messages: int) -> None:
        """Count messages that became dead letters: each ended, and its copy was accepted."""
        self.dead.inc(messages)
        self.accepted.inc(messages)

    def acknowledged(self, messages: int) -> None:
        """Count leased messages that were acknowledged."""
        self.read.inc(messages)
        self.lease_ends.labels("acknowledged").inc(messages)

    def given(self, now_ms: int, messages: Sequence[Unread]) -> None:
        """Record the ages of messages that are delivered to readers."""
        # Parsed inline, without a call for each id, since this runs for every message.
        made = [int(each.message.id[:TIME_DIGITS], 16) for each in messages]
        lives = [(each.expires_ms, ms) for each, ms in zip(messages, made, strict=True)]
        self._time_to_read.observe_all([(now_ms - ms) / 1000 for ms in made])
        # A lifetime of 0 would divide by zero.
        self._life_left.observe_all([(end - now_ms) / (end - ms or 1) for end, ms in lives])


class SizedHistogram(Histogram):
    """A histogram that records many values at once, since one call per value is too slow."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Record all of these values."""
        if len(values) == 1:
            self.observe(values[0])
            return
        bounds = self._upper_bounds
        self._sum.inc(sum(values))
        for bound, count in Counts([bisect_left(bounds, each) for each in values]).items():
            self._buckets[bound].inc(count)
