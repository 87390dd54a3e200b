"""`chat status` and `chat revoke`: for the sender of a message that has its receipt."""

import time

import click

from chat_service.cli.exit_codes import End, Failed
from chat_service.cli.output import ago
from chat_service.cli.param_types import Text
from chat_service.cli.session import Talk, talking

#: One in 64 receipts begins with a hyphen.
_RECEIPT_LIKE_OPTION = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@talking
def status(talk: Talk, message_id: str, receipt: str) -> int:
    """Say what became of a message: pending, leased, read, expired or revoked.

    ID and RECEIPT are what `chat send --receipt` printed.

    \b
    Examples:
      chat status 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat status $id $receipt
    """
    fate = talk.run(talk.chat.status(message_id, receipt))
    at, when = None, ""
    if fate.at is not None:
        at = fate.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        since = ago(time.time() - fate.at.timestamp())
        when = talk.out.dim(f"  {since}, at {fate.at.astimezone():%Y-%m-%d %H:%M:%S}")
    talk.out.record(fate.status + when, id=message_id, status=fate.status, at=at)
    return End.DONE


@click.command(context_settings=_RECEIPT_LIKE_OPTION)
@click.argument("message_id", type=Text(), metavar="ID")
@click.argument("receipt", type=Text())
@talking
def revoke(talk: Talk, message_id: str, receipt: str) -> int:
    """Take a message back while it is unread.

    Exits with 1 where it is too late: the message is read, on loan or expired.

    \b
    Examples:
      chat revoke 01a21188198a0000fc0036e2bba73123 ws5yGDMRspPrnW4OOFGpEqlMMuEQHPW_
      chat revoke $id $receipt
    """
    if not talk.run(talk.chat.revoke(message_id, receipt)):
        fate = talk.run(talk.chat.status(message_id, receipt))
        raise Failed(End.NOTHING, f"too late: the message is {fate.status}")
    talk.out.record("revoked", id=message_id, status="revoked")
    return End.DONE
