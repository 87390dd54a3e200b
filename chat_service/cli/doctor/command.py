"""`chat doctor`: looks at everything that a service needs, and says what to do. Changes nothing."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import click

from chat_service.cli.doctor import host, service
from chat_service.cli.exit_codes import ExitCode
from chat_service.cli.options import EPILOG, settings_of, with_options
from chat_service.cli.output import Output
from chat_service.cli.param_types import Url
from chat_service.cli.session import bare
from chat_service.server.listener import OPS_NAMES
from chat_service.wiring import pool_limits_of
from config import Settings, SettingsError
from config.environment import setting_variables, unknown_variables
from workers.mongod.embedded import EmbeddedError, owner_of, socket_path, uri_of
from workers.store.diagnostics import Finding, examine

_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


@click.command(epilog=EPILOG)
@with_options
@click.option(
    "--url", type=Url(), envvar="CHAT_URL", help="Look at a running service, too (CHAT_URL)."
)
@click.option("--json/--text", "is_json", default=None, help="For programs, or for people.")
def doctor(url: str | None, is_json: bool | None, **given: Any) -> int:
    """Look at settings, host, port and database, and say of each: ok, warn or fail.

    Changes nothing and starts nothing. Exits with 1 where something fails.

    \b
    Examples:
      chat doctor
      chat doctor --mongo-uri 'mongodb://db1,db2,db3/?replicaSet=rs0'
      chat doctor --url http://127.0.0.1:8080
    """
    return asyncio.run(_look(Output(is_json), given, url))


async def _look(out: Output, given: dict[str, str | None], url: str | None) -> int:
    parts = {"A start here": _for_a_start(given, may_run=url is not None)}
    if url is not None:
        parts[f"The service at {bare(url)}"] = service.service(url)
    failed = count = 0
    for title, findings in parts.items():
        out.title(title)
        async for what, state, detail in findings:
            mark = out.colour(f"{state:<4}", _COLOURS[state])
            out.record(f"  {mark}  {what:<13}  {detail}", check=what, state=state, detail=detail)
            count += 1
            failed += state == "fail"
    out.note(f"{failed} of {count} checks failed" if failed else f"{count} checks, none failed")
    if url is None:
        out.note("--url URL looks at a running service, too")
    return ExitCode.NOTHING if failed else ExitCode.DONE


async def _for_a_start(given: dict[str, str | None], may_run: bool) -> AsyncIterator[Finding]:
    """Everything that `chat serve` with these options needs, in the order in which it would.

    With `may_run` a service may have it already; otherwise that keeps another from starting.
    """
    for finding in host.findings():
        yield finding
    for line in unknown_variables(os.environ):
        yield Finding("environment", "warn", line)
    try:
        settings = settings_of(given)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", "fail", problem)
    else:
        yield _sources(given)
        if settings.telemetry == "otlp":
            yield host.telemetry()
        yield await service.port(settings.host, settings.port, may_serve=may_run)
        if settings.ops_port:
            ops = settings.ops_host, settings.ops_port, OPS_NAMES
            yield await service.port(*ops, may_serve=may_run)
        async for finding in _database(settings, may_run):
            yield finding


def _sources(given: dict[str, str | None]) -> Finding:
    """Where the settings come from; they are good."""
    words = [f"--{name.replace('_', '-')}" for name, word in given.items() if word is not None]
    words += ["CHAT_CONFIG"] if os.environ.get("CHAT_CONFIG") else []
    words += setting_variables(os.environ)
    return Finding("settings", "ok", f"from {', '.join(words)}" if words else "all as by default")


async def _database(settings: Settings, may_run: bool) -> AsyncIterator[Finding]:
    """The database that is named; or the private one, where a service runs it."""
    uri = settings.mongo_uri
    if not uri:
        yield await host.mongod(settings.mongod)
        data_dir = settings.data_dir.absolute()
        try:
            owner = owner_of(data_dir)
        except EmbeddedError as error:
            yield Finding("data", "fail", str(error))
            return
        yield host.disk(data_dir, pool_limits_of(settings).storage)
        if owner is None:
            yield host.place(data_dir)
            return
        said = f"{data_dir} is in use by process {owner}"
        if may_run:
            yield Finding("data", "ok", said)
        else:
            advice = (
                "stop it, name another with --data-dir, or look at the one that runs with --url"
            )
            yield Finding("data", "fail", f"{said}, so another cannot start; {advice}")
        if not socket_path(data_dir).exists():
            detail = f"process {owner} has no mongod running yet; see its log"
            yield Finding("database", "warn", detail)
            return
        uri = uri_of(data_dir)
    found = examine(uri, settings.mongo_driver, settings.mongo_database, settings.mongo_timeout_s)
    async for finding in found:
        yield finding
