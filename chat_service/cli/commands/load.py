"""`chat load`: presses a service with posts and reads and says how it did."""

import asyncio
import ipaddress
import secrets
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import uvloop

from chat_service.cli.exit_codes import ExitCode, Failed
from chat_service.cli.param_types import Duration
from chat_service.cli.session import Session, with_session
from chat_service.loadgen import report
from chat_service.loadgen.generator import Load, LoadGenerator, reads_of
from chat_service.loadgen.stats import LoadStats
from chat_service.server.listener import use_all_descriptors

#: The inboxes are emptied within this, in seconds; what is left then counts as missing.
_SWEEP_S = 60.0
#: What a program has open besides.
_SPARE_DESCRIPTORS = 32


class _Done(NamedTuple):
    """A load that is over: what it counted, for how long, and whether by Ctrl-C."""

    stats: LoadStats
    seconds: float
    was_interrupted: bool


@click.command()
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Requests a second, sent at their moments (an open loop); without it, each "
    "connection sends its next request once the last is answered.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 10000),
    default=64,
    metavar="N",
    show_default=True,
    help="Connections at the same time.",
)
@click.option("--duration", type=Duration(), default=10.0, metavar="TIME", help="How long: 10s.")
@click.option(
    "--inboxes",
    type=click.IntRange(1),
    default=1000,
    metavar="N",
    show_default=True,
    help="Inboxes, taken at random; their names begin with a random word.",
)
@click.option(
    "--mix",
    type=click.IntRange(0, 100),
    default=50,
    metavar="PERCENT",
    show_default=True,
    help="Share of posts; the rest are reads.",
)
@click.option(
    "--yes", is_flag=True, help="LoadGenerator a service that is not on this machine, too."
)
@with_session
def load(
    session: Session,
    rate: float | None,
    connections: int,
    duration: float,
    inboxes: int,
    mix: int,
    yes: bool,
) -> int:
    """LoadGenerator a service with posts and reads, and say how it did.

    Its inboxes are its own, and empty at the end. A latency counts from the moment at which the
    request was due: with --rate, a stall counts for all that it held up. Exits with 1 where a
    request failed or a message is missing.

    \b
    Examples:
      chat load
      chat load --rate 1000 --duration 1m
      chat load --connections 256 --mix 10 --json
    """
    if duration < 1:
        raise click.UsageError("--duration must be 1s at least.")
    parts = urlsplit(session.url)
    host = parts.hostname or ""
    if not yes and not _is_this_machine(host):
        raise Failed(
            ExitCode.REFUSED,
            f"{host} is not this machine: --yes presses it all the same, if it is yours to press",
        )
    if parts.path.strip("/"):
        raise Failed(ExitCode.REFUSED, "load presses a service itself: an address without a path")
    is_tls = parts.scheme == "https"
    wanted = Load(
        port=parts.port or (443 if is_tls else 80),
        connections=connections,
        seconds=duration,
        warm_up_s=0,
        posts=mix / 100,
        users=inboxes,
        prefix=f"load-{secrets.token_hex(8)}",
        rate=rate or 0,
        host=host,
        tls=is_tls,
    )
    descriptors = use_all_descriptors()
    if connections > descriptors - _SPARE_DESCRIPTORS:
        raise Failed(
            ExitCode.REFUSED,
            f"this machine lets a program have {descriptors} open files: use fewer connections, or "
            "raise the hard limit (ulimit -Hn)",
        )
    is_live = sys.stderr.isatty()
    try:
        done = uvloop.run(_press(wanted, is_live))
    except OSError as error:
        raise Failed(ExitCode.UNREACHABLE, f"no answer from {session.url}: {error}") from None
    if session.out.is_json:
        session.out.record("", **_figures(wanted, done))
    else:
        for line in report.report(done.stats, done.seconds):
            session.out.record(line)
    if done.was_interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.NOTHING if done.stats.errors or done.stats.missing else ExitCode.DONE


async def _press(wanted: Load, is_live: bool) -> _Done:
    """LoadGenerator, empty the inboxes, and give what was counted."""
    stats = LoadStats(0)
    press = LoadGenerator(wanted, stats.count)
    watching: asyncio.Task[None] | None = None
    was_interrupted = False
    try:
        await press.connect()
        stats.began = time.perf_counter()
        if is_live:
            watching = asyncio.create_task(_show(stats), name="progress")
        pressing = asyncio.create_task(press.run(stats.began, wanted.seconds), name="press")
        try:
            await asyncio.shield(pressing)
        except asyncio.CancelledError:
            # Ctrl-C: what there is by now is still told.
            was_interrupted = True
            pressing.cancel()
            await asyncio.gather(pressing, return_exceptions=True)
            await press.finish()
        seconds = min(time.perf_counter() - stats.began, wanted.seconds)
        stats.is_sweeping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_SWEEP_S):
                await press.ask(reads_of(wanted))
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await press.close()
    return _Done(stats, seconds, was_interrupted)


async def _show(stats: LoadStats) -> None:
    """One line on the terminal, each second anew; wiped at the end."""
    try:
        while True:
            await asyncio.sleep(1)
            whole = min(int(time.perf_counter() - stats.began), len(stats.seconds))
            if whole:
                errors = sum(stats.errors.values())
                line = report.progress(stats.seconds[whole - 1], whole, errors)
                sys.stderr.write(f"\r\x1b[K{line}")
                sys.stderr.flush()
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _figures(wanted: Load, done: _Done) -> dict[str, Any]:
    """The whole as fields."""
    stats, latencies = done.stats, done.stats.all
    return {
        "connections": wanted.connections,
        "inboxes": wanted.users,
        "rate": wanted.rate or None,
        "seconds": round(done.seconds, 3),
        "requests": latencies.count,
        "requests_per_s": round(latencies.count / done.seconds, 1),
        "latency_ms": {
            **{
                name: round(latencies.rank_ms(share), 3)
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))
            },
            "longest": round(latencies.worst_s * 1000, 3),
        },
        "accepted": stats.accepted,
        "read": stats.read,
        "swept": stats.swept,
        "missing": stats.missing,
        "errors": {str(status or "lost"): count for status, count in stats.errors.items()},
        "per_second": [
            {
                "requests": each.latencies.count,
                "p99_ms": round(each.latencies.rank_ms(0.99), 3),
                "errors": each.errors,
            }
            for each in stats.seconds
        ],
    }


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
