"""`chat load`: load-tests a service with posts and reads."""

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

from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.param_types import Duration
from chat_service.cli.session import Session, with_session, without_credentials
from chat_service.loadgen import report
from chat_service.loadgen.generator import Load, LoadGenerator, reads_of
from chat_service.loadgen.stats import LoadStats
from chat_service.server.listener import use_all_descriptors

#: Time to empty the inboxes, in seconds. Messages left after that count as missing.
_SWEEP_S = 60.0
#: File descriptors that are not available for connections.
_SPARE_DESCRIPTORS = 32


class _Result(NamedTuple):
    """The result of a load test: its counts, its duration, and whether Ctrl-C ended it."""

    stats: LoadStats
    seconds: float
    was_interrupted: bool


@click.command()
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Requests per second, sent on schedule (open loop). Without it, each connection sends its "
    "next request when the previous one is answered (closed loop).",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 10000),
    default=64,
    metavar="N",
    show_default=True,
    help="Number of connections.",
)
@click.option(
    "--duration", type=Duration(), default=10.0, metavar="TIME", help="Duration; 10s by default."
)
@click.option(
    "--inboxes",
    type=click.IntRange(1),
    default=1000,
    metavar="N",
    show_default=True,
    help="Number of inboxes, chosen at random. Their names share a random prefix.",
)
@click.option(
    "--mix",
    type=click.IntRange(0, 100),
    default=50,
    metavar="PERCENT",
    show_default=True,
    help="Share of posts; the other requests are reads.",
)
@click.option("--yes", is_flag=True, help="Allow a service that is not on this machine.")
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
    """Load-test a service with posts and reads, and print a report.

    The test uses inboxes of its own and empties them at the end. Latency is measured from the time
    at which a request was due: with --rate, a stall counts for every request that it delayed. Exits
    with 1 if a request failed or a message is missing.

    \b
    Examples:
      chat load
      chat load --rate 1000 --duration 1m
      chat load --connections 256 --mix 10 --json
    """
    if duration < 1:
        raise click.UsageError("--duration must be at least 1s.")
    parts = urlsplit(session.url)
    host = parts.hostname or ""
    if not yes and not _is_this_machine(host):
        raise CommandError(
            ExitCode.REFUSED,
            f"{host} is not this machine; if you may load-test it, add --yes",
        )
    if parts.path.strip("/"):
        raise CommandError(
            ExitCode.REFUSED, "the address has a path; give the address of the service itself"
        )
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
        raise CommandError(
            ExitCode.REFUSED,
            f"a process may have at most {descriptors} open files here; use fewer connections, or "
            "raise the hard limit (ulimit -Hn)",
        )
    is_live = sys.stderr.isatty()
    try:
        # A load without access would measure refusals; this reports the reason instead.
        session.run(session.chat.count(f"{wanted.prefix}-0"))
        done = uvloop.run(_run_load(wanted, is_live, session.token and session.token.value))
    except OSError as error:
        address = without_credentials(session.url)
        raise CommandError(ExitCode.UNREACHABLE, f"no answer from {address}: {error}") from None
    if session.out.is_json:
        session.out.record("", **_as_fields(wanted, done))
    else:
        for line in report.report(done.stats, done.seconds):
            session.out.record(line)
    if done.was_interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.NOTHING if done.stats.errors or done.stats.missing else ExitCode.DONE


async def _run_load(wanted: Load, is_live: bool, token: str | None) -> _Result:
    """Run the load test, empty the inboxes, and return the result."""
    stats = LoadStats(0)
    generator = LoadGenerator(wanted, stats.count, token)
    watching: asyncio.Task[None] | None = None
    was_interrupted = False
    try:
        await generator.connect()
        stats.began = time.perf_counter()
        if is_live:
            watching = asyncio.create_task(_show_progress(stats), name="progress")
        running = asyncio.create_task(generator.run(stats.began, wanted.seconds), name="load")
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # After Ctrl-C, report the results so far.
            was_interrupted = True
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await generator.finish()
        seconds = min(time.perf_counter() - stats.began, wanted.seconds)
        stats.is_sweeping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_SWEEP_S):
                await generator.send_all(reads_of(wanted, token))
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await generator.close()
    return _Result(stats, seconds, was_interrupted)


async def _show_progress(stats: LoadStats) -> None:
    """Update a progress line on the terminal every second, and erase it at the end."""
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


def _as_fields(wanted: Load, done: _Result) -> dict[str, Any]:
    """Return the report as JSON fields."""
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
