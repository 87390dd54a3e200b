"""A Python shell with the collections of the service, for scripts/mongo-shell without mongosh.

It needs nothing but the packages of the service. `client`, `db`, `messages`, `reads` and `fleet`
are PyMongo's objects, `inbox("bob")` is the filter for an inbox, and `route("bob")` its route.
"""

import code
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pprint import pformat
from typing import Any

import click
from pymongo import MongoClient
from pymongo.command_cursor import CommandCursor
from pymongo.cursor import Cursor
from pymongo.errors import PyMongoError

from chat_service.cli.commands.probes import find_uri
from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.options import with_settings
from config import Settings
from workers.routing import route_of
from workers.store.layout import LAYOUT_1, LAYOUT_2

#: Documents of a cursor that are shown.
_SHOWN_MAX = 20
_BANNER = """\
Python {version} on the database {database}. mongosh is not on the PATH; --npx fetches it.
db, messages, reads, fleet: collections. inbox("bob"), route("bob"): how to find an inbox.
Texts are confidential: messages.find(inbox("bob"), {{"text": 0}})"""


@click.command()
@click.option("--eval", "program", metavar="CODE", help="Run Python code, show its value, and end.")
@click.option("--quiet", is_flag=True, help="Show no banner.")
@with_settings
def shell(settings: Settings, program: str | None, quiet: bool) -> int:
    """Open a Python shell on the database of the service, or run some Python code."""
    uri = find_uri(settings)
    # An operator wants to know soon that a database does not answer.
    client: MongoClient[dict[str, Any]] = MongoClient(
        uri, tz_aware=True, serverSelectionTimeoutMS=3000, appname="mongo-shell"
    )
    try:
        client.admin.command("ping")
        names = _names(client, settings.mongo_database)
        if program is None:
            banner = _BANNER.format(
                version=sys.version.split()[0], database=settings.mongo_database
            )
            _interact(names, "" if quiet else banner)
        else:
            _run(program, names)
    except PyMongoError as error:
        # Behind the reason is the whole reply of the server.
        raise CommandError(ExitCode.DATABASE, str(error).partition(", full error:")[0]) from None
    except Exception as error:
        # Mostly JavaScript for mongosh. The line names what Python does not understand.
        absent = "" if shutil.which("mongosh") else " (no mongosh on the PATH)"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "JavaScript needs mongosh, which --npx fetches; docs/operations.md has both forms"
        detail = f"this is the Python shell{absent}: {reason}; {advice}"
        raise CommandError(ExitCode.REFUSED, detail) from None
    finally:
        client.close()
    return ExitCode.DONE


def _names(client: MongoClient[dict[str, Any]], database: str) -> dict[str, Any]:
    db = client[database]
    indexes = db["messages"].index_information()
    is_routed = "inbox_by_route" in indexes and "inbox" not in indexes
    layout = LAYOUT_2 if is_routed else LAYOUT_1
    return {
        "client": client,
        "db": db,
        **{name: db[name] for name in ("messages", "reads", "fleet")},
        "inbox": layout.inbox,
        "route": route_of,
    }


def _run(program: str, names: dict[str, Any]) -> None:
    """Run code, and show its value if it is an expression."""
    try:
        expression = compile(program, "--eval", "eval")
    except SyntaxError:
        exec(compile(program, "--eval", "exec"), names)
        return
    _show(eval(expression, names))


def _interact(names: dict[str, Any], banner: str) -> None:
    with suppress(ImportError):
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    sys.displayhook = _show
    code.interact(banner, local=names, exitmsg="")


def _show(value: Any) -> None:
    """Write a value for people; of a cursor, the first documents."""
    if isinstance(value, (Cursor, CommandCursor)):
        found = list(islice(value, _SHOWN_MAX + 1))
        for document in found[:_SHOWN_MAX]:
            _write(document)
        if len(found) > _SHOWN_MAX:
            sys.stdout.write("... and more; list(...) has all\n")
    elif value is not None:
        _write(value)


def _write(value: Any) -> None:
    text = value if isinstance(value, str) else pformat(_readable(value), width=110)
    sys.stdout.write(f"{text}\n")


def _readable(value: Any) -> Any:
    """Return a value with its times in ISO 8601."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list) else value


def main() -> int:
    """Run the shell and return the exit code."""
    try:
        return int(shell.main(prog_name="scripts/mongo-shell", standalone_mode=False) or 0)
    except (CommandError, click.UsageError) as error:
        lines = error.lines if isinstance(error, CommandError) else [error.format_message()]
        for line in lines:
            sys.stderr.write(f"scripts/mongo-shell: {line}\n")
        return error.code if isinstance(error, CommandError) else ExitCode.REFUSED


if __name__ == "__main__":
    sys.exit(main())
