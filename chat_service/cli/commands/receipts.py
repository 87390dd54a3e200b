"""`chat status` and `chat revoke`: for senders who hold the receipt of a message."""

import time

import click

from chat_service.cli.exit_codes import CommandError, ExitCode
from chat_service.cli.output import format_age, format_in
from chat_service.cli.param_types import Text
from chat_service.cli.session import Session, with_session

#: One in 64 receipts begins with a hyphen, so unknown options are taken as arguments.
_RECEIPT_LIKE_OPTION = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@with_session
def status(session: Session, message_id: str, receipt: str) -> int:
    """Print the status of a message: scheduled, pending, leased, read, expired, revoked or dead.

    For a scheduled message, also print when it can be read.

    `chat send --receipt` prints the ID and the RECEIPT.

    \b
    Examples:
      chat status 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat status $id $receipt
    """
    found = session.run(session.chat.status(message_id, receipt))
    at, when = None, ""
    if found.at is not None:
        at = found.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        age_s = time.time() - found.at.timestamp()
        age = format_in(-age_s) if found.status == "scheduled" else format_age(age_s)
        when = session.out.dim(f"  {age}, at {found.at.astimezone():%Y-%m-%d %H:%M:%S}")
    session.out.record(found.status + when, id=message_id, status=found.status, at=at)
    return ExitCode.DONE


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@with_session
def revoke(session: Session, message_id: str, receipt: str) -> int:
    """Revoke a message while it is scheduled or unread.

    Exits with 1 if it is too late, because the message is read, leased, expired or a dead letter.

    \b
    Examples:
      chat revoke 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat revoke $id $receipt
    """
    if not session.run(session.chat.revoke(message_id, receipt)):
        found = session.run(session.chat.status(message_id, receipt))
        raise CommandError(ExitCode.NOTHING, f"too late: the message is {found.status}")
    session.out.record("revoked", id=message_id, status="revoked")
    return ExitCode.DONE
