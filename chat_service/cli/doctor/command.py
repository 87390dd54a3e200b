"""`chat doctor`: checks everything that a service needs, and advises. Changes nothing."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click

from chat_service.cli.credentials import UserToken, find_token
from chat_service.cli.doctor import access, host, service
from chat_service.cli.doctor.keys import check_keys
from chat_service.cli.doctor.neighbor import other_service
from chat_service.cli.doctor.runbook import DOCUMENT, entry_of
from chat_service.cli.exit_codes import ExitCode
from chat_service.cli.options import EPILOG, address_of_directory, settings_from, with_options
from chat_service.cli.output import Output
from chat_service.cli.param_types import Url
from chat_service.cli.session import insecure_option, without_credentials
from chat_service.server.listener import NAMES, OPS_NAMES
from chat_service.wiring import pool_limits_of
from config import Settings, SettingsError
from config.environment import setting_variables, unknown_variables
from workers.mongod.embedded import EmbeddedError, owner_of, socket_path, uri_of
from workers.store.diagnostics import examine
from workers.store.finding import Finding

#: The settings that limit each client, apart from those that are on by default.
_CLIENT_LIMITS = [name for name in Settings.__struct_fields__ if name.startswith("client_")]
_COLORS = {"ok": "32", "warn": "33", "fail": "31"}


@click.command(epilog=EPILOG)
@with_options
@click.option(
    "--url", type=Url(), envvar="CHAT_URL", help="Also check a running service (CHAT_URL)."
)
@insecure_option
@click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
def doctor(url: str | None, insecure: bool, is_json: bool | None, **given: Any) -> int:
    """Check the settings, machine, port and database; report ok, warn or fail for each.

    Changes nothing and starts nothing. Exits with 1 if a check fails.

    \b
    Examples:
      chat doctor
      chat doctor --mongo-uri 'mongodb://db1,db2,db3/?replicaSet=rs0'
      chat doctor --url http://127.0.0.1:8080
    """
    token = find_token(os.environ) if url else None
    if token is not None and url is not None:
        token.check_address(url, insecure)
    return asyncio.run(_run_checks(Output(is_json), given, url, token))


async def _run_checks(
    out: Output, given: dict[str, str | None], url: str | None, token: UserToken | None
) -> int:
    sections = {"Starting a service here": _check_start(given, may_run=url is not None)}
    if url is not None:
        sections[f"The service at {without_credentials(url)}"] = service.check_service(
            url, token and token.value
        )
    failed = count = 0
    for title, findings in sections.items():
        out.title(title)
        async for finding in findings:
            check, state, detail, _ = finding
            mark = out.color(f"{state:<4}", _COLORS[state])
            fields = {"check": check, "state": state, "detail": detail}
            text = f"  {mark}  {check:<13}  {detail}"
            if entry := entry_of(finding):
                fields["runbook"] = f"{DOCUMENT}#{entry}"
                text += f"\n{'':23}{out.dim(fields['runbook'])}"
            out.record(text, **fields)
            count += 1
            failed += state == "fail"
    out.note(f"{failed} of {count} checks failed" if failed else f"{count} checks, none failed")
    if url is None:
        out.note("to check a running service, too, add --url URL")
    return ExitCode.NOTHING if failed else ExitCode.DONE


async def _check_start(given: dict[str, str | None], may_run: bool) -> AsyncIterator[Finding]:
    """Check what `chat serve` with these options needs, in the order in which it needs it.

    With `may_run`, a running service may already hold the port and the data directory. Without it,
    that is a failure, because a second service could not start.
    """
    for finding in host.check_installation():
        yield finding
    for line in unknown_variables(os.environ):
        yield Finding("environment", "warn", line)
    try:
        settings = settings_from(given)
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", "fail", problem)
    else:
        yield _sources(given)
        if settings.telemetry == "otlp":
            yield host.check_telemetry()
        for finding in _check_access(settings):
            yield finding
        if settings.access in ("jwt", "both"):
            yield await check_keys(settings.jwt_issuer, settings.jwt_keys)
        if settings.tls_certificate:
            yield host.check_tls(settings.tls_certificate, settings.tls_key)
        for address in (
            (settings.host, settings.port, NAMES),
            *([(settings.ops_host, settings.ops_port, OPS_NAMES)] if settings.ops_port else []),
        ):
            yield await service.check_port(*address, scheme=settings.scheme, may_serve=may_run)
        async for finding in _check_database(settings, may_run):
            yield finding


def _check_access(settings: Settings) -> Iterator[Finding]:
    """Check who may use the service, and that its limits count clients."""
    if settings.access == "off":
        yield access.check_open(settings.host)
    if settings.access_file:
        yield from access.check_file(Path(settings.access_file))
    limits = (getattr(settings, name) for name in _CLIENT_LIMITS)
    has_proxies = bool(settings.trusted_proxies)
    yield from access.check_limits(any(limits), settings.host, settings.public_url, has_proxies)


def _sources(given: dict[str, str | None]) -> Finding:
    """Report where the settings, which are valid, come from."""
    sources = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    sources += ["CHAT_CONFIG"] if os.environ.get("CHAT_CONFIG") else []
    sources += setting_variables(os.environ)
    return Finding("settings", "ok", f"from {', '.join(sources)}" if sources else "all defaults")


async def _check_database(settings: Settings, may_run: bool) -> AsyncIterator[Finding]:
    """Check the configured database or, without one, the embedded MongoDB."""
    uri = settings.mongo_uri
    if not uri:
        yield await host.check_mongod(settings.mongod)
        data_dir = settings.data_dir.absolute()
        try:
            owner = owner_of(data_dir)
        except EmbeddedError as error:
            yield Finding("data", "fail", str(error))
            return
        if wrong := await other_service(data_dir, owner, *address_of_directory(settings)):
            yield Finding("data", "fail", wrong)
            return
        yield host.check_disk(data_dir, pool_limits_of(settings).storage)
        if data_dir.exists():
            yield host.check_files(data_dir)
        if owner is None:
            yield host.check_data_dir(data_dir)
            return
        state = f"{data_dir} is in use by process {owner}"
        if may_run:
            yield Finding("data", "ok", state)
        else:
            advice = (
                "stop it, choose another directory with --data-dir, or check the running service "
                "with --url"
            )
            yield Finding("data", "fail", f"{state}, so a second service cannot start; {advice}")
        if not socket_path(data_dir).exists():
            detail = f"process {owner} has not started its mongod yet; see its log"
            yield Finding("database", "warn", detail)
            return
        uri = uri_of(data_dir)
    found = examine(uri, settings.mongo_driver, settings.mongo_database, settings.mongo_timeout_s)
    async for finding in found:
        yield finding
