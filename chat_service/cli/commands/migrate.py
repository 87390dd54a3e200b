"""`chat migrate`: changes the schema of a database while nodes use it."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from typing import Any

import click

from chat_service.cli.commands.probes import find_uri
from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.options import EPILOG, with_settings
from chat_service.cli.output import Output
from config import Settings
from workers.errors import StoreUnavailable
from workers.store.driver import BadConnectionString, Client, close_client, open_client
from workers.store.driver_errors import read_errors
from workers.store.index_keeper import CHECK_EVERY_S, READ_VERSION_EVERY_S
from workers.store.layout import LAYOUTS, NEWEST
from workers.store.migration import STEPS, Migration
from workers.store.migration_plan import Plan, make_plan
from workers.store.migration_record import MigrationRefused
from workers.store.schema_version import UnknownSchema

_LABELS = {
    "fill": "giving each message its route",
    "index": "building indexes",
    "nodes": "looking for nodes of older versions",
    "guard": "refusing messages without a route",
    "check": "looking for messages without a route",
    "switch": "switching all nodes",
    "drop": "dropping indexes",
    "unguard": "accepting messages without a route",
}
_GUARDS = {1: "accept messages without a route", 2: "refuse messages without a route"}
_LABEL_WIDTH = max(map(len, _LABELS.values()))
#: The least columns for a bar, the time that is left, and the number of the step.
_BAR_WIDTH = 36
#: How often a step that takes long is reported if there is no terminal, in seconds.
_LINE_EVERY_S = 10.0


@click.command(epilog=EPILOG)
@click.option("--apply", is_flag=True, help="Migrate. Without it, only show what would be done.")
@click.option(
    "--to",
    type=click.Choice([str(version) for version in LAYOUTS]),
    default=str(NEWEST.version),
    show_default=True,
    help="The schema version.",
)
@click.option(
    "--no-old-nodes",
    is_flag=True,
    help="Confirm that no node runs an older version. Only needed if the database's user may not "
    "see that.",
)
@click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
@with_settings
def migrate(
    settings: Settings, apply: bool, to: str, no_old_nodes: bool, is_json: bool | None
) -> int:
    """Change the schema of the database while nodes use it.

    Without --apply it changes nothing, and shows what it would do and what stands in its way. It
    can be interrupted at any time; run it again to go on. Exits with 1 if something stands in its
    way.

    \b
    Examples:
      chat migrate
      chat migrate --apply
      chat migrate --to 1 --apply        back, before older nodes are started
      chat migrate --mongo-uri 'mongodb://db1,db2,db3/?replicaSet=rs0'
    """
    out = Output(is_json)
    return asyncio.run(_cancel_on_sigterm(out, settings, int(to), apply, no_old_nodes))


async def _cancel_on_sigterm(out: Output, *arguments: Any) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")
    try:
        return await _migrate(out, *arguments)
    except asyncio.CancelledError as cancelled:
        out.note("interrupted; run the same command again to go on")
        if "SIGTERM" in cancelled.args:
            raise CommandError(ExitCode.TERMINATED) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _migrate(out: Output, settings: Settings, to: int, apply: bool, no_old: bool) -> int:
    try:
        client = open_client(settings.mongo_driver, find_uri(settings))
    except BadConnectionString as error:
        raise CommandError(ExitCode.DATABASE, f"{error}; correct --mongo-uri") from None
    try:
        with read_errors():
            plan = await make_plan(client, settings.mongo_database, to, are_nodes_new=no_old)
            if plan.is_done or not apply:
                return _show_plan(out, plan)
            return await _apply(out, client, settings, to, no_old)
    except MigrationRefused as refused:
        raise CommandError(ExitCode.NOTHING, str(refused)) from None
    except (StoreUnavailable, UnknownSchema) as error:
        raise CommandError(ExitCode.DATABASE, str(error)) from None
    finally:
        await close_client(client)


def _show_plan(out: Output, plan: Plan) -> int:
    """Show what would be done. Return the exit code."""
    fields = {**plan._asdict(), "is_done": plan.is_done}
    if out.is_json:
        out.record("", **fields)
        return ExitCode.NOTHING if plan.obstacles else ExitCode.DONE
    if plan.is_done:
        out.record(f"the database has schema {plan.to}: nothing is left to do")
        return ExitCode.DONE
    is_rest = plan.version == plan.to
    out.title(
        f"The rest of the change to schema {plan.to}"
        if is_rest
        else f"From schema {plan.version} to schema {plan.to}"
    )
    for name, text in (
        ("messages", f"{plan.messages:,}"),
        ("no route", _count(plan.without_route)),
        ("old ids", f"{_count(plan.old_ids)}; they stay as they are"),
        ("build", ", ".join(plan.build) or "no index"),
        ("drop", ", ".join(plan.drop) or "no index"),
        ("disk", f"{_mib(plan.index_bytes)} more until the old indexes are dropped"),
        ("time", f"about {_duration(plan.seconds)} while the service is not busy"),
        ("guard", "" if plan.is_guard_right else _GUARDS[plan.to]),
        ("begun", f"interrupted at the step {plan.step!r}" if plan.step else ""),
    ):
        if text:
            out.record(f"  {name:<9} {text}")
    for mark, color, lines in (("fail", "31", plan.obstacles), ("warn", "33", plan.warnings)):
        for line in lines:
            out.record(f"  {out.color(f'{mark:<9}', color)} {line}")
    out.note("nothing was changed; to migrate, add --apply")
    return ExitCode.NOTHING if plan.obstacles else ExitCode.DONE


async def _apply(out: Output, client: Client, settings: Settings, to: int, no_old: bool) -> int:
    node = f"{socket.gethostname()}/{os.getpid()}"
    is_live = sys.stderr.isatty() and not out.is_json
    report: _Bars | _Lines = _Bars(out, to) if is_live else _Lines(out, to)
    try:
        await Migration(
            client,
            settings.mongo_database,
            to,
            node,
            report,
            are_nodes_new=no_old,
            # A node's check may have to wait for an answer.
            notice_s=READ_VERSION_EVERY_S + CHECK_EVERY_S + settings.mongo_timeout_s + 1,
        ).run()
    finally:
        report.close()
    out.record(f"the database has schema {to}", version=to, is_done=True)
    return ExitCode.DONE


class _Lines:
    """Reports progress as lines: the start and end of each step, and every ten seconds."""

    def __init__(self, out: Output, to: int) -> None:
        self._out = out
        self._steps = STEPS[to]
        self._shown = ("", 0.0)

    def progress(self, step: str, done: float, total: float) -> None:
        now = time.monotonic()
        shown_step, shown_at = self._shown
        if step == shown_step and done < total and now < shown_at + _LINE_EVERY_S:
            return
        self._shown = (step, now)
        self._out.record(
            f"{_heading(self._steps, step)} {done / total:4.0%}",
            step=step,
            done=round(done / total, 3),
        )

    def note(self, text: str) -> None:
        self._out.record(text, note=text)

    def close(self) -> None:
        pass


class _Bars:
    """Reports progress on a terminal, as a bar for each step."""

    def __init__(self, out: Output, to: int) -> None:
        self._out = out
        self._steps = STEPS[to]
        self._step = ""
        self._bar: Any = None

    def progress(self, step: str, done: float, total: float) -> None:
        if step != self._step:
            self.close()
            self._step = step
            # A line that wraps would be repeated with each change instead of replaced.
            if shutil.get_terminal_size().columns >= _LABEL_WIDTH + _BAR_WIDTH:
                label = f"{_heading(self._steps, step):<{_LABEL_WIDTH + 6}}"
            else:
                label = f"{self._steps.index(step) + 1}/{len(self._steps)} {step:<6}"
            self._bar = click.progressbar(length=1000, label=label, file=sys.stderr, width=0)
            self._bar.__enter__()
        if self._bar is not None:
            self._bar.update(int(done / total * 1000) - self._bar.pos)
            if done >= total:
                self.close()

    def note(self, text: str) -> None:
        if self._bar is not None:
            sys.stderr.write("\n")
        self._out.note(text)

    def close(self) -> None:
        """End the bar of the step."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _heading(steps: tuple[str, ...], step: str) -> str:
    return f"{steps.index(step) + 1}/{len(steps)} {_LABELS[step]}"


def _count(number: int | None) -> str:
    return "not counted, it takes too long" if number is None else f"{number:,}"


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / (1 << 20):,.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
