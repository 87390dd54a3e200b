"""`chat status` and `chat revoke`: for the sender of a message that has its receipt."""

import time

import click

from chat_service.cli.exit_codes import ExitCode, Failed
from chat_service.cli.output import ago
from chat_service.cli.param_types import Text
from chat_service.cli.session import Session, with_session

#: One in 64 receipts begins with a hyphen.
_RECEIPT_LIKE_OPTION = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@with_session
def status(session: Session, message_id: str, receipt: str) -> int:
    """Say what became of a message: pending, leased, read, expired or revoked.

    ID and RECEIPT are what `chat send --receipt` printed.

    \b
    Examples:
      chat status 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat status $id $receipt
    """
    fate = session.run(session.chat.status(message_id, receipt))
    at, when = None, ""
    if fate.at is not None:
        at = fate.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        since = ago(time.time() - fate.at.timestamp())
        when = session.out.dim(f"  {since}, at {fate.at.astimezone():%Y-%m-%d %H:%M:%S}")
    session.out.record(fate.status + when, id=message_id, status=fate.status, at=at)
    return ExitCode.DONE


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@with_session
def revoke(session: Session, message_id: str, receipt: str) -> int:
    """Take a message back while it is unread.

    Exits with 1 where it is too late: the message is read, on loan or expired.

    \b
    Examples:
      chat revoke 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat revoke $id $receipt
    """
    if not session.run(session.chat.revoke(message_id, receipt)):
        fate = session.run(session.chat.status(message_id, receipt))
        raise Failed(ExitCode.NOTHING, f"too late: the message is {fate.status}")
    session.out.record("revoked", id=message_id, status="revoked")
    return ExitCode.DONE
