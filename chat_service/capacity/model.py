"""Computes what a load needs. Pure: nothing is measured or read here.

A node sends its posts and its reads in batches. So what a request costs depends on how many share a
batch, and thereby on the nodes among which the load is divided and on the time of a round trip.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

from chat_service.capacity import coefficients as known
from chat_service.capacity.coefficients import MEASURED, Coefficients

#: Settings of the service and its defaults that the model knows. A test compares them.
BATCH_INTERVAL_S, BATCH_MAX, BATCH_ENOUGH, GRACE_S = 0.02, 500, 32, 300
_STEPS = 40


@dataclass(frozen=True)
class Demand:
    """A load, and where it runs. Times are in seconds."""

    requests: float
    lifetime_s: float
    size: int
    #: The share of requests that are posts, and of messages that are read before they expire.
    posts: float = 0.5
    read: float = 0.9
    #: How long a message is unread if it is read; None for half its lifetime.
    read_after_s: float | None = None
    #: The number of nodes; None for as few as carry the load.
    nodes: int | None = None
    clients: int = 0
    #: Whether clients wait for messages, in long polls and streams.
    is_waiting: bool = False
    members: int = 3
    latency_s: float = 0.0005
    members_latency_s: float = 0.001
    primary_cores: int = 8
    grace_s: int = GRACE_S
    oplog_window_s: float = 86_400

    @property
    def messages(self) -> float:
        """The messages posted per second."""
        return self.requests * self.posts


@dataclass(frozen=True)
class Batches:
    """The batches of one node. The first two are requests in a batch."""

    posts: float
    reads: float
    post_batches_per_s: float
    read_batches_per_s: float
    claims_per_s: float
    commands_per_s: float
    #: The share of what a lane of posts or reads can carry with the longest batches.
    lane_share: float


@dataclass(frozen=True)
class Limit:
    """Something that only one process or thread can do: how much of it the load takes."""

    name: str
    used: float
    #: The load at which it is full, in requests per second.
    full_at: float
    then: str


@dataclass(frozen=True)
class Plan:
    """What a load needs. Rates are per second, sizes in bytes."""

    demand: Demand
    nodes: int
    node_cores: float
    node_memory: float
    batches: Batches
    commands_per_request: float
    commands: float
    primary_cores: float
    oplog: float
    oplog_window: float
    unread: float
    stored: float
    documents: float
    indexes: float
    purges: float
    purge_thread: float
    client_connections: float
    database_connections: float
    client_network: float
    primary_network: float


def plan(demand: Demand, costs: Coefficients = MEASURED) -> Plan:
    """Return what this load needs."""
    nodes = demand.nodes or _fewest_nodes(demand, costs)
    each = _batches(demand, nodes)
    commands = each.commands_per_s * nodes
    claimed = demand.messages * demand.read
    unread_s = _unread_s(demand)
    unread = demand.messages * unread_s
    read_kept = claimed * demand.grace_s / 2
    expired_kept = (demand.messages - claimed) * demand.grace_s
    document = costs.document + demand.size
    oplog = _oplog(demand, nodes, each, costs)
    connections = nodes * (known.POOL + known.WATCHERS)
    text = demand.size * (demand.messages + claimed)
    return Plan(
        demand=demand,
        nodes=nodes,
        node_cores=_node_cores(demand, nodes, each, costs),
        node_memory=50 * 2**20
        + demand.clients
        / nodes
        * (known.WAITING_BYTES if demand.is_waiting else known.CONNECTION_BYTES),
        batches=each,
        commands_per_request=commands / demand.requests,
        commands=commands,
        primary_cores=_primary_cores(demand, nodes, each, costs),
        oplog=oplog,
        oplog_window=oplog * demand.oplog_window_s,
        unread=unread,
        stored=unread + read_kept + expired_kept,
        documents=document * (unread + (read_kept + expired_kept) * costs.rewritten),
        indexes=costs.index_unread * unread + costs.index_claimed * (read_kept + expired_kept),
        purges=demand.messages,
        purge_thread=demand.messages / costs.purges_per_s,
        client_connections=float(demand.clients),
        database_connections=float(connections),
        client_network=demand.messages * known.POST_HTTP
        + (demand.requests - demand.messages) * known.READ_HTTP
        + claimed * known.MESSAGE_HTTP
        + text,
        primary_network=oplog * demand.members + text,
    )


def _primary_used(it: Plan) -> float:
    return it.primary_cores / (it.demand.primary_cores * known.PRIMARY_FULL)


def _thread_used(it: Plan) -> float:
    return it.purge_thread / known.THREAD_FULL


def _nodes_used(it: Plan) -> float:
    return max(it.node_cores / known.NODE_FULL, it.batches.lane_share)


_Limits = tuple[tuple[str, Callable[[Plan], float], str], ...]
#: What cannot be added by adding nodes: its name, how full it is, and what to do about it.
_LIMITS: _Limits = (
    ("the primary's cores", _primary_used, "take a larger primary, or several databases"),
    ("the TTL thread", _thread_used, "take several databases"),
)
NODES = "the nodes"
_NODES: _Limits = ((NODES, _nodes_used, "take more nodes"),)


def limits(demand: Demand, costs: Coefficients = MEASURED) -> list[Limit]:
    """Return what cannot be added by adding nodes, the first to be full first.

    If the number of nodes is given, they are a limit, too. What the load does not use is none.
    """
    now = plan(demand, costs)
    found = []
    for name, used, then in _LIMITS + (_NODES if demand.nodes else ()):
        if not used(now):
            continue
        low, high = 0.0, demand.requests
        while used(plan(replace(demand, requests=high), costs)) < 1:
            low, high = high, high * 2
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if used(plan(replace(demand, requests=middle), costs)) < 1:
                low = middle
            else:
                high = middle
        found.append(Limit(name, used(now), low, then))
    return sorted(found, key=lambda limit: limit.full_at)


def _fewest_nodes(demand: Demand, costs: Coefficients) -> int:
    """Return the fewest nodes of which none is too busy. Two at least: one may fail."""

    def suffice(nodes: int) -> bool:
        each = _batches(demand, nodes)
        cores = _node_cores(demand, nodes, each, costs)
        return cores <= known.NODE_FULL and each.lane_share < 1

    most = 2
    while not suffice(most):
        most *= 2
    return bisect_left(range(most), True, lo=2, key=suffice)


def _batches(demand: Demand, nodes: int) -> Batches:
    """Return the batches of one of so many nodes: see `workers.batch_pacing`."""
    posts, reads = demand.messages / nodes, (demand.requests - demand.messages) / nodes
    has_members = demand.members > 1
    majority_s = 2 * demand.members_latency_s * has_members
    post_s = known.POST_S + demand.latency_s + majority_s
    read_s = known.READ_S + 2 * demand.latency_s + majority_s
    interval_s = BATCH_INTERVAL_S * known.PAUSED * min((posts + reads) / known.AWAKE_RATE, 1)
    post_batches, post_share = _lane(posts, post_s, interval_s)
    read_batches, read_share = _lane(reads, read_s, interval_s)
    # A batch of reads that finds nothing claims nothing.
    found = posts * demand.read
    claims = read_batches * -math.expm1(-found / read_batches) if read_batches else 0.0
    commands = post_batches + read_batches * (1 + has_members) + claims + known.IDLE_COMMANDS
    return Batches(
        posts=posts / post_batches if post_batches else 0.0,
        reads=reads / read_batches if read_batches else 0.0,
        post_batches_per_s=post_batches,
        read_batches_per_s=read_batches,
        claims_per_s=claims,
        commands_per_s=commands,
        lane_share=max(post_share, read_share),
    )


def _lane(rate: float, shortest_s: float, interval_s: float) -> tuple[float, float]:
    """Return the batches per second of a lane with so many requests per second, and how full it is.

    A batch takes `shortest_s`, and longer with each of its requests. The next one begins after that
    or after the interval, or at once if enough requests have come.
    """
    if not rate:
        return 0.0, 0.0
    in_batches = rate * known.BATCHED_S
    if in_batches >= 1:
        return rate / BATCH_MAX, math.inf
    busy_s = shortest_s / (1 - in_batches)
    period_s = max(busy_s, min(interval_s, BATCH_ENOUGH / rate))
    # A batch has one request at least.
    batches = rate / (rate * period_s + math.exp(-rate * period_s))
    return batches, rate * (shortest_s / BATCH_MAX + known.BATCHED_S)


def _unread_s(demand: Demand) -> float:
    """Return how long a message is unread on average."""
    read_s = demand.lifetime_s / 2 if demand.read_after_s is None else demand.read_after_s
    return demand.read * min(read_s, demand.lifetime_s) + (1 - demand.read) * demand.lifetime_s


def _awake(requests: float) -> float:
    """Return which share of the time a process is awake."""
    return min(requests / known.AWAKE_RATE, 1)


def _node_cores(demand: Demand, nodes: int, each: Batches, costs: Coefficients) -> float:
    requests = demand.requests / nodes
    text_kib = demand.size / 1024 * demand.messages / nodes * (1 + demand.read)
    return (
        costs.node_awake * _awake(requests)
        + costs.node_request * requests
        + costs.node_command * each.commands_per_s
        + costs.node_text_kib * text_kib
    ) / 1e6


def _primary_cores(demand: Demand, nodes: int, each: Batches, costs: Coefficients) -> float:
    messages, claimed = demand.messages, demand.messages * demand.read
    reads = demand.requests - messages
    changes = messages + claimed + messages
    readers = nodes if demand.is_waiting else 0
    confirmations = each.read_batches_per_s if demand.members > 1 else 0
    writes = (each.post_batches_per_s + confirmations + each.claims_per_s) * nodes
    return (
        costs.database_awake * _awake(demand.requests)
        + costs.insert_command * each.post_batches_per_s * nodes
        + costs.insert_message * messages
        + costs.search_command * (each.read_batches_per_s + known.IDLE_COMMANDS) * nodes
        + costs.search_inbox * reads
        + costs.insert_command * confirmations * nodes
        + costs.claim_command * each.claims_per_s * nodes
        + costs.claim_message * claimed
        + costs.purge_message * messages
        + costs.database_text_kib * demand.size / 1024 * (messages + claimed)
        + costs.replicated_command * min(writes, known.FETCHES_PER_S) * (demand.members - 1)
        + costs.change_stream * changes * readers
    ) / 1e6


def _oplog(demand: Demand, nodes: int, each: Batches, costs: Coefficients) -> float:
    """Return the bytes per second that the oplog gets."""
    confirmations = each.read_batches_per_s * nodes if demand.members > 1 else 0
    return (
        demand.messages * (costs.oplog_insert + demand.size + costs.oplog_delete)
        # An expired message is marked, which takes about as much as a claim.
        + demand.messages * costs.oplog_claim
        + confirmations * costs.oplog_confirmation
    )
