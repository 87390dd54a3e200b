"""`chat inspect`: what the database knows of one inbox, for operators. It shows no text."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import click
import structlog

from chat_service.api.log_lines import hash_name
from chat_service.cli.doctor.neighbor import other_service
from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.options import EPILOG, address_of_directory, with_settings
from chat_service.cli.output import Output, format_age, format_duration, format_in
from chat_service.cli.param_types import NonEmptyText
from chat_service.wiring import dead_letters_of
from config import Settings
from workers.commands import COUNT_MAX
from workers.errors import IndexMissing, StoreUnavailable
from workers.mongod.embedded import (
    DataDirectoryUnusable,
    EmbeddedError,
    EmbeddedMongod,
    owner_of,
    socket_path,
    uri_of,
)
from workers.store.connection import CLAIMED_GRACE_MIN_S
from workers.store.driver import BadConnectionString, close_client, open_client
from workers.store.inspection import LOOKED_MAX, Inspected, inspect_inbox, read_log_key
from workers.store.schema_version import UnknownSchema

_LEADERLESS = ": no node leads; see docs/operations.md#leader-missing"


@click.command(epilog=EPILOG)
@click.argument("name", type=NonEmptyText())
@click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
@with_settings
def inspect(settings: Settings, name: str, is_json: bool | None) -> int:
    """Show the state of the inbox NAME, and its hash in the logs. Never shows a text.

    It asks the database, so it works while the service is down. Give it the settings of the
    service. It changes no message, and its cost is bounded.

    \b
    Examples:
      chat inspect bob
      chat inspect bob --data-dir /var/lib/chat-inbox
      chat inspect bob --mongo-uri 'mongodb://db1,db2,db3/?replicaSet=rs0' --json
    """
    return asyncio.run(_inspect(Output(is_json), settings, name))


async def _inspect(out: Output, settings: Settings, name: str) -> int:
    dead_inbox = dead_letters_of(settings).inbox_of(name)
    try:
        async with _database(out, settings) as uri:
            client = open_client(settings.mongo_driver, uri)
            try:
                database, within_s = settings.mongo_database, settings.mongo_timeout_s
                found = await inspect_inbox(
                    client,
                    database,
                    name,
                    dead_inbox,
                    has_bytes=settings.inbox_bytes_max > 0,
                    kept_s=max(settings.purge_grace_s // 2, CLAIMED_GRACE_MIN_S),
                    within_s=within_s,
                )
                key = settings.log_username_key
                key = key or await read_log_key(client, database, within_s) or ""
            finally:
                await close_client(client)
    except BadConnectionString as error:
        raise CommandError(ExitCode.DATABASE, f"{error}; correct --mongo-uri") from None
    except IndexMissing:
        advice = "start the service, which makes it, and look at docs/operations.md#indexes-missing"
        detail = f"an index is missing, and without it this would read every message; {advice}"
        raise CommandError(ExitCode.DATABASE, detail) from None
    except (StoreUnavailable, UnknownSchema) as error:
        raise CommandError(ExitCode.DATABASE, str(error)) from None
    except DataDirectoryUnusable as error:
        raise CommandError(ExitCode.DATA_DIR, str(error)) from None
    except EmbeddedError as error:
        raise CommandError(ExitCode.DATABASE, str(error)) from None
    if found is None:
        detail = f"no service has used the database {settings.mongo_database!r} yet"
        raise CommandError(ExitCode.NOTHING, f"{detail}; check the settings")
    log_name = hash_name(name, key) if key else None
    if out.is_json:
        out.record("", **_fields(settings, name, dead_inbox, found, log_name))
    else:
        out.title(f"Inbox {name}")
        for label, text in _lines(settings, dead_inbox, found):
            out.title(f"  {label:<10} {text}")
        out.title(f"  {'in the log':<10} {_in_log(settings, log_name)}")
    return ExitCode.DONE


@asynccontextmanager
async def _database(out: Output, settings: Settings) -> AsyncIterator[str]:
    """Yield the connection string of the service's database.

    If it is an embedded one that does not run, it runs within the block. Raises `EmbeddedError`.
    """
    if uri := settings.mongo_uri or await _running(settings):
        yield uri
        return
    out.note("the service is not running; starting its MongoDB to look at it")
    # Its lines would be about a server, and there is none.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    mongod = EmbeddedMongod(settings.data_dir, settings.mongod)
    try:
        yield await mongod.start()
    finally:
        await mongod.stop()


async def _running(settings: Settings) -> str:
    """Return the connection string of the mongod that runs on the data directory, or an empty one.

    Raises `CommandError` if there is no database, or none yet, or if the service that runs uses
    another one.
    """
    data_dir = settings.data_dir.absolute()
    owner = owner_of(data_dir)
    if wrong := await other_service(data_dir, owner, *address_of_directory(settings)):
        raise CommandError(ExitCode.DATABASE, wrong)
    if owner is None:
        if (data_dir / "WiredTiger").exists():
            return ""
        advice = "name the service's directory with --data-dir, or its database with --mongo-uri"
        raise CommandError(ExitCode.DATABASE, f"there is no database in {data_dir}; {advice}")
    if not socket_path(data_dir).exists():
        detail = f"process {owner} has not started its MongoDB in {data_dir} yet; see its log"
        raise CommandError(ExitCode.DATABASE, detail)
    return uri_of(data_dir)


def _lines(settings: Settings, dead_inbox: str, found: Inspected) -> list[tuple[str, str]]:
    """Return what people should know: pairs of a label and a text."""

    def ago(moment_ms: int) -> str:
        return format_age((found.now_ms - moment_ms) / 1000)

    def to_come(moment_ms: int) -> str:
        return format_in((moment_ms - found.now_ms) / 1000)

    unread = _number(found.unread)
    if found.oldest_ms is not None and found.next_expiry_ms is not None:
        of = " of the oldest 10,000" if found.unread > COUNT_MAX else ""
        unread += f"; the oldest came {ago(found.oldest_ms)}"
        unread += f"; the next{of} expires {to_come(found.next_expiry_ms)}"
    lines = [("unread", unread), *_of_others(found, to_come)]
    shared = "" if "{username}" in settings.dead_letter_inbox else ", which all inboxes share"
    lines.append(("dead", f"{_number(found.dead_letters)} unread in {dead_inbox}{shared}"))
    if found.reads is None:
        lines.append(("read", "unknown: looking took too long"))
    else:
        span = format_duration((found.now_ms - found.reads.since_ms) / 1000)
        read = f"{found.reads.messages:,} in the last {span}"
        if found.reads.last_ms is not None:
            nodes = ", ".join(f"{name} ({count:,})" for name, count in found.reads.nodes.items())
            read += f", the last {ago(found.reads.last_ms)}, through {nodes}"
        lines.append(("read", read))
    lines.append(("quota", _quota(settings, found)))
    return lines


def _of_others(found: Inspected, to_come: Any) -> list[tuple[str, str]]:
    others = found.others
    if others is None:
        unknown = "unknown: looking took too long"
        return [("leased", unknown), ("scheduled", unknown)]
    more = "" if others.is_whole else f" or more: only {LOOKED_MAX:,} of all inboxes were looked at"
    leased, scheduled = f"{others.leased:,}{more}", f"{others.scheduled:,}{more}"
    if others.first_end_ms is not None and others.last_end_ms is not None:
        leased += f"; the first lease ends {to_come(others.first_end_ms)}"
        if others.last_end_ms != others.first_end_ms:
            leased += f", the last {to_come(others.last_end_ms)}"
    if others.next_due_ms is not None:
        scheduled += f"; the next is due {to_come(others.next_due_ms)}"
    lines = [("leased", leased), ("scheduled", scheduled)]
    if others.overdue:
        lines.append(("overdue", f"{others.overdue:,} should be unread by now{_LEADERLESS}"))
    return lines


def _quota(settings: Settings, found: Inspected) -> str:
    messages, size = settings.inbox_messages_max, settings.inbox_bytes_max
    if not messages and not size:
        return "none"
    parts = [f"{_number(found.unread)} of {messages:,} messages"] if messages else []
    used = "an unknown number" if found.bytes is None else f"{found.bytes:,}"
    parts += [f"{used} of {size:,} bytes"] if size else []
    end = {
        True: "; posts to it get 429 (inbox-full)",
        False: "",
        None: "; whether it is full is unknown, since counting it would take too long",
    }[_is_full(settings, found)]
    return f"{' and '.join(parts)}{end}"


def _is_full(settings: Settings, found: Inspected) -> bool | None:
    """Return whether the inbox is over its quota, or None if it was not counted so far."""
    messages, size = settings.inbox_messages_max, settings.inbox_bytes_max
    if 0 < messages <= found.unread or 0 < size <= (found.bytes or 0):
        return True
    is_counted = not messages or found.unread <= COUNT_MAX
    is_measured = not size or found.bytes is not None
    return False if is_counted and is_measured else None


def _in_log(settings: Settings, log_name: str | None) -> str:
    if settings.log_usernames == "clear":
        return "by its name (log_usernames=clear)"
    if settings.log_usernames == "off":
        return "nothing (log_usernames=off)"
    if log_name is None:
        return "unknown: the nodes could not share their key in the database; set log_username_key"
    return f"inbox={log_name}"


def _number(count: int) -> str:
    return f"more than {COUNT_MAX:,}" if count > COUNT_MAX else f"{count:,}"


def _fields(
    settings: Settings, name: str, dead_inbox: str, found: Inspected, log_name: str | None
) -> dict[str, Any]:
    """Return what programs get. Times are in ISO 8601, and what is unknown is null."""
    others, reads = found.others, found.reads
    return {
        "username": name,
        "at": _iso(found.now_ms),
        "schema": found.schema,
        "unread": min(found.unread, COUNT_MAX),
        "is_more": found.unread > COUNT_MAX,
        "oldest": _iso(found.oldest_ms),
        "next_expiry": _iso(found.next_expiry_ms),
        "leased": others and others.leased,
        "first_lease_ends": others and _iso(others.first_end_ms),
        "last_lease_ends": others and _iso(others.last_end_ms),
        "scheduled": others and others.scheduled,
        "next_due": others and _iso(others.next_due_ms),
        "overdue": others and others.overdue,
        "is_whole": others and others.is_whole,
        "dead_letter_inbox": dead_inbox,
        "dead_letters": min(found.dead_letters, COUNT_MAX),
        "read": reads and reads.messages,
        "last_read": reads and _iso(reads.last_ms),
        "read_by": reads and dict(reads.nodes),
        "bytes": found.bytes,
        "is_full": _is_full(settings, found),
        "log_name": log_name,
    }


def _iso(moment_ms: int | None) -> str | None:
    if moment_ms is None:
        return None
    moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
