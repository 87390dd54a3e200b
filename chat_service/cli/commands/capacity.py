"""`chat capacity`: what a load needs, and what is full first."""

import math
from typing import Any

import click

from chat_service.capacity import report
from chat_service.capacity.model import GRACE_S, Demand, limits, plan
from chat_service.cli.exit_codes import ExitCode
from chat_service.cli.output import Output
from chat_service.cli.param_types import Duration

_PERCENT = click.IntRange(0, 100)
_MS = click.FloatRange(0, 1000)


@click.command()
@click.option(
    "--requests",
    type=click.FloatRange(1, 1e8),
    required=True,
    metavar="R",
    help="Requests per second: posts and reads.",
)
@click.option("--lifetime", type=Duration(), required=True, metavar="TIME", help="Of a message.")
@click.option(
    "--size",
    type=click.IntRange(0, 1 << 20),
    required=True,
    metavar="BYTES",
    help="Size of a text.",
)
@click.option("--posts", type=_PERCENT, default=50, show_default=True, help="Percent of requests.")
@click.option(
    "--read",
    type=_PERCENT,
    default=90,
    show_default=True,
    help="Percent of messages that are read before they expire.",
)
@click.option(
    "--read-after",
    type=Duration(),
    metavar="TIME",
    help="How long these are unread on average; half the lifetime by default.",
)
@click.option(
    "--nodes", type=click.IntRange(1), metavar="N", help="Nodes; as few as suffice by default."
)
@click.option(
    "--clients",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Connections that clients keep open.",
)
@click.option("--waiting", is_flag=True, help="Clients wait for messages at every node.")
@click.option(
    "--members",
    type=click.IntRange(1, 7),
    default=3,
    show_default=True,
    metavar="N",
    help="Members of the replica set that have data.",
)
@click.option(
    "--primary-cores",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Cores of the primary.",
)
@click.option(
    "--latency",
    type=_MS,
    default=0.5,
    show_default=True,
    metavar="MS",
    help="Round trip from a node to the primary, in ms.",
)
@click.option(
    "--members-latency",
    type=_MS,
    default=1.0,
    show_default=True,
    metavar="MS",
    help="Round trip between members, in ms.",
)
@click.option(
    "--grace",
    type=click.IntRange(200, 86400),
    default=GRACE_S,
    show_default=True,
    metavar="SECONDS",
    help="The setting purge_grace_s.",
)
@click.option(
    "--oplog-window",
    type=Duration(),
    default=86400.0,
    metavar="TIME",
    help="How long a member may be away; 24h by default.",
)
@click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
def capacity(is_json: bool | None, **given: Any) -> int:
    """Compute what a load needs, and what is full first.

    Nothing is measured: the model is that of docs/capacity.md, with its limits. Exits with 1 if one
    replica set, or the given --nodes, do not carry the load.

    \b
    Examples:
      chat capacity --requests 10000 --lifetime 1h --size 300
      chat capacity --requests 2000 --lifetime 1d --size 100 --waiting --clients 50000
    """
    if not math.isfinite(given["requests"]):
        raise click.UsageError("--requests must be a number.")
    if not given["lifetime"]:
        raise click.UsageError("--lifetime must be more than 0.")
    if (given["read_after"] or 0) > given["lifetime"]:
        raise click.UsageError("--read-after must not be longer than --lifetime.")
    demand = Demand(
        requests=given["requests"],
        lifetime_s=given["lifetime"],
        size=given["size"],
        posts=given["posts"] / 100,
        read=given["read"] / 100,
        read_after_s=given["read_after"],
        nodes=given["nodes"],
        clients=given["clients"],
        is_waiting=given["waiting"],
        members=given["members"],
        primary_cores=given["primary_cores"],
        latency_s=given["latency"] / 1000,
        members_latency_s=given["members_latency"] / 1000,
        grace_s=given["grace"],
        oplog_window_s=given["oplog_window"],
    )
    planned, full = plan(demand), limits(demand)
    out = Output(is_json)
    if out.is_json:
        out.record("", **report.fields(planned, full))
    else:
        for name, text in report.lines(planned, full):
            out.record(f"{name:<12} {text}")
    if excess := report.advice(planned, full):
        out.note(excess)
        return ExitCode.NOTHING
    return ExitCode.DONE
