"""The parts that everything in a pool shares. Made once by `workers.pool`."""

from dataclasses import dataclass

from workers.circuit_breaker import CircuitBreaker
from workers.claim_rollback import ClaimRollback
from workers.clock import DatabaseClock
from workers.metrics import WorkerMetrics
from workers.store.base import Store
from workers.tracing import Tracer
from workers.waiters import Waiters


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The store, and what the shards and the maintenance jobs of one pool know in common."""

    store: Store
    clock: DatabaseClock
    metrics: WorkerMetrics
    breaker: CircuitBreaker
    rollback: ClaimRollback
    waiters: Waiters
    tracer: Tracer
