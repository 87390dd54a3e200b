"""`chat token`: makes tokens, and checks the access file with the service's own parser."""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import click

from chat_inbox.credentials import check_token
from chat_service.access.token_file import Grants, TokenFileInvalid, parse
from chat_service.api.identity import Identity
from chat_service.cli.access_entry import add_entry, entry_of, read_text
from chat_service.cli.exit_codes import (
    CommandError,
    ExitCode,
    OutputError,
    write_stderr,
    write_stdout,
)
from chat_service.cli.output import Output
from chat_service.cli.param_types import Moment, NonEmptyText
from chat_service.cli.terminal import escape_controls

#: What tokens begin with, so that scanners for leaked secrets find them.
_PREFIX = "cht_"
#: Random bytes of a token. It is not a password, so that its SHA-256 need not be slow.
_RANDOM_BYTES = 32
#: The longest token that is read, in characters.
_LONGEST = 1 << 16


@click.group()
def token() -> None:
    """Make tokens, and check the access file of a service."""


@token.command()
@click.argument("name", type=NonEmptyText())
@click.option(
    "--send",
    type=NonEmptyText(),
    multiple=True,
    metavar="PATTERN",
    help="Names that it may send to: a name, a beginning with a final *, or {sub}, which is NAME.",
)
@click.option(
    "--read", type=NonEmptyText(), multiple=True, metavar="PATTERN", help="Names that it may read."
)
@click.option("--ops", is_flag=True, help="Allow /ops and /metrics.")
@click.option(
    "--until", type=Moment(), metavar="DATE", help="Its end: 2027-01-01, a time, or 90d from now."
)
@click.option(
    "--add",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Add the entry to this access file.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the token into this new file, which only you can read, instead of printing it.",
)
def new(
    name: str,
    send: Sequence[str],
    read: Sequence[str],
    ops: bool,
    until: datetime | None,
    add: Path | None,
    out: Path | None,
) -> int:
    """Make a token for NAME, and print it: it is shown only now.

    With --out, the token goes into a file. A file that exists is refused, and if the entry is not
    added, there is no file.

    The entry for the access file goes to standard error, or into the file that --add names, in one
    step. It has the hash of the token and not the token.

    \b
    Examples:
      chat token new worker --send '*' --read 'jobs-*' --read '{sub}' --add access.toml
      chat token new prometheus --ops --until 90d --add access.toml | vault kv put ...
      chat token new me --read me --add access.toml --out ~/.config/chat/token
    """
    if not (send or read or ops):
        raise click.UsageError("Give it a right: --send, --read or --ops.")
    made = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    entry = entry_of(name, _digest(made), send, read, ops, until)
    _parse(entry, f"the entry for {name!r}")
    with nullcontext() if out is None else _kept(made, out):
        if add is not None:
            add_entry(add, entry, lambda text: _parse(text, str(add)))
    if out is None:
        try:
            write_stdout(lambda: sys.stdout.write(f"{made}\n"))
        except OutputError as failure:
            advice = "the token is lost" + (f"; delete its entry from {add}" if add else "")
            raise failure.with_advice(advice) from None
    if add is None:
        write_stderr(f"\n# For the access file of the service:\n{entry}".rstrip("\n"))
    return ExitCode.DONE


@token.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("stdin", type=click.Choice(["-"]), required=False, metavar="[-]")
@click.option("--json/--text", "is_json", default=None, help="Print JSON, or text for people.")
def check(file: Path, stdin: str | None, is_json: bool | None) -> int:
    """Check an access file, and list its tokens and their rights.

    With -, read a token from standard input, and tell whose it is and what it may do. Exits with 2
    if the service would refuse the file, and with 9 if the token is not valid.

    \b
    Examples:
      chat token check access.toml
      chat token check access.toml - < ~/.config/chat/token
    """
    out = Output(is_json)
    grants = _parse(read_text(file), str(file))
    if stdin is not None:
        identity = grants.tokens.get(bytes.fromhex(_digest(_given_token())))
        if identity is None:
            raise CommandError(ExitCode.NO_ACCESS, f"{file} does not have this token")
        _show(out, identity, grants)
        return ExitCode.NO_ACCESS if _fault(identity, grants) else ExitCode.DONE
    # While a token is being replaced, two tokens have one entry.
    for identity in {each.subject: each for each in grants.tokens.values()}.values():
        _show(out, identity, grants)
    _show(out, grants.anonymous, grants)
    return ExitCode.DONE


@token.command("hash")
def hash_() -> int:
    """Print the SHA-256 of a token.

    The token comes from standard input. An entry of the access file has this hash.

    \b
    Example:
      pass chat/worker | chat token hash
    """
    digest = _digest(_given_token())
    write_stdout(lambda: sys.stdout.write(f"{digest}\n"))
    return ExitCode.DONE


@contextmanager
def _kept(made: str, path: Path) -> Iterator[None]:
    """Write a token into a new file, which is removed if the body fails.

    The token is on the disk before its entry is: a full disk leaves no entry without a token.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        reason = f"{path} exists and may have a token: it is not overwritten"
        raise CommandError(ExitCode.REFUSED, reason) from None
    except OSError as error:
        raise CommandError(ExitCode.REFUSED, f"{path}: {error.strerror}") from None
    try:
        try:
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                stream.write(f"{made}\n")
                stream.flush()
                os.fsync(file)
        except OSError as error:
            raise CommandError(ExitCode.OUTPUT, f"{path}: {error.strerror}") from None
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _given_token() -> str:
    """Return the token on standard input; a terminal does not show what is typed."""
    try:
        if sys.stdin.isatty():
            text = click.prompt("Token", hide_input=True, err=True)
        else:
            text = sys.stdin.buffer.read(_LONGEST).decode("utf-8-sig", "replace")
        return check_token(text.strip())
    except OSError as error:
        reason = f"standard input cannot be read: {error.strerror}"
        raise CommandError(ExitCode.REFUSED, reason) from None
    except ValueError as error:
        raise CommandError(ExitCode.REFUSED, f"standard input: {error}") from None


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _parse(text: str, what: str) -> Grants:
    """Parse an access file as the service does. Raise `CommandError` if it breaks a rule."""
    try:
        return parse(text)
    except TokenFileInvalid as error:
        raise CommandError(ExitCode.REFUSED, f"{what}: {error}") from None


def _show(out: Output, identity: Identity, grants: Grants) -> None:
    """Print whose identity this is, and what it may do."""
    rights, fault = identity.rights, _fault(identity, grants)
    until = _written(identity.until) if identity.until else None
    words = [
        *(f"send {pattern}" for pattern in rights.send),
        *(f"read {pattern}" for pattern in rights.read),
        *(["ops"] if rights.ops else []),
    ]
    text = f"{identity.subject or '(no token)'}: {', '.join(words) or 'nothing'}"
    text += f"; {fault}" if fault else f"; until {until}" if until else ""
    out.record(
        escape_controls(text),
        name=identity.subject or None,
        send=list(rights.send),
        read=list(rights.read),
        ops=rights.ops,
        until=until,
        fault=fault or None,
    )


def _fault(identity: Identity, grants: Grants) -> str:
    """Return why the service refuses an identity, or an empty text."""
    if identity.until and identity.until <= time.time():
        return f"expired at {_written(identity.until)}"
    before = grants.revoked.get(identity.subject)
    return "revoked" if before is not None and identity.issued < before else ""


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
