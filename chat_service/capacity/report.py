"""The plan for a load as text for people, and as JSON fields."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from chat_service.capacity.coefficients import NODE_FULL, PRIMARY_FULL, THREAD_FULL
from chat_service.capacity.model import NODES, Limit, Plan


def lines(plan: Plan, limits: list[Limit]) -> Iterator[tuple[str, str]]:
    """Yield a name and a text for each part of the plan."""
    demand, each = plan.demand, plan.batches
    hours = demand.oplog_window_s / 3600
    yield (
        "nodes",
        f"{plan.nodes:,}, each {plan.node_cores:.2f} of a core (at most {NODE_FULL:g}) "
        f"and {size(plan.node_memory)} of memory",
    )
    yield (
        "batches",
        f"{each.posts:.1f} posts, {each.reads:.1f} reads; {plan.commands_per_request:.2f} commands "
        f"per request, {plan.commands:,.0f}/s in all",
    )
    yield (
        "primary",
        f"{plan.primary_cores:.1f} cores of {demand.primary_cores} "
        f"(at most {demand.primary_cores * PRIMARY_FULL:.1f})",
    )
    yield "oplog", f"{size(plan.oplog)}/s, {size(plan.oplog_window)} for {hours:g} hours"
    yield (
        "messages",
        f"{plan.unread:,.0f} unread, {plan.stored:,.0f} on disk until they are purged "
        f"({demand.grace_s:g} s after their end, or half of that after a read)",
    )
    yield (
        "disk",
        f"{size(plan.documents + plan.indexes)} on each of {demand.members} member(s): documents "
        f"{size(plan.documents)}, indexes {size(plan.indexes)}; and the oplog",
    )
    yield "memory", f"{size(plan.indexes)} of cache for the indexes on each member"
    yield (
        "TTL",
        f"{plan.purges:,.0f} deletes/s, {plan.purge_thread:.0%} of the thread for them "
        f"(at most {THREAD_FULL:.0%})",
    )
    yield (
        "connections",
        f"{plan.client_connections / plan.nodes:,.0f} clients at each node, at most "
        f"{plan.database_connections:,.0f} in all to the primary",
    )
    yield (
        "network",
        f"clients {size(plan.client_network)}/s, the primary {size(plan.primary_network)}/s",
    )
    for number, limit in enumerate(limits):
        name = "full first" if number == 0 else "then"
        yield name, f"{limit.name}, at {limit.full_at:,.0f} requests/s ({limit.used:.0%} now)"


def advice(plan: Plan, limits: list[Limit]) -> str:
    """Return a sentence if the load exceeds what one replica set or the nodes carry, or nothing."""
    over = [limit for limit in limits if limit.used > 1]
    if not over:
        return ""
    carriers = f"{plan.nodes} node(s) carry" if over[0].name == NODES else "one replica set carries"
    return (
        f"{carriers} {over[0].full_at:,.0f} of {plan.demand.requests:,.0f} requests/s:"
        f" {over[0].then}; see docs/capacity.md"
    )


def fields(plan: Plan, limits: list[Limit]) -> dict[str, Any]:
    """Return the plan as JSON fields; numbers have four significant digits."""
    rounded: dict[str, Any] = _rounded(asdict(plan) | {"limits": [asdict(it) for it in limits]})
    return rounded


def size(count: float) -> str:
    """Return bytes in the largest unit that leaves a whole digit, such as `4.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
