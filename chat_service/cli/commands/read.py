"""`chat read` and `chat count`: take what is unread, or only say how much it is."""

import secrets
import shlex

import click

from chat_service.cli.exit_codes import ExitCode, Unwritten, say
from chat_service.cli.param_types import Duration, NotEmpty
from chat_service.cli.session import Session, with_session
from chat_service.client import Message
from chat_service.client.chat import COUNT_MAX


@click.command()
@click.argument("name", type=NotEmpty())
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take at most the N oldest.")
@click.option(
    "--wait",
    type=Duration(),
    metavar="TIME",
    default=0.0,
    help="Wait so long for a first one: 5, 30s, 10m.",
)
@click.option(
    "--key",
    type=NotEmpty(),
    help="22 random characters or more: for a minute, a repeat with this key "
    "gets the same messages again.",
)
@with_session
def read(session: Session, name: str, limit: int | None, wait: float, key: str | None) -> int:
    """Take what is unread in the inbox NAME, oldest first. It is read then, and never given again.

    Exits with 1 where there is nothing. With --key it takes one batch, of 1000 messages at most;
    else all there are.

    \b
    Examples:
      chat read bob
      chat read bob --limit 10 --wait 5m
      chat read bob | jq -r .text
      key=$(uuidgen); chat read bob --key $key || chat read bob --key $key
    """
    taken_with = key or secrets.token_urlsafe(24)
    messages = session.run(session.chat.wait(name, wait, limit, key=taken_with))
    found = bool(messages)
    left = limit
    while messages:
        _show(session, name, messages, taken_with)
        left = None if left is None else left - len(messages)
        if key or left == 0:
            break
        taken_with = secrets.token_urlsafe(24)
        messages = session.run(session.chat.read(name, left, key=taken_with))
    if not found:
        session.out.note("nothing is unread")
    return ExitCode.DONE if found else ExitCode.NOTHING


def _show(session: Session, name: str, messages: list[Message], key: str) -> None:
    """Print what was taken; where that is cut off, say how the rest is still to be had."""
    left = len(messages)
    try:
        for message in messages:
            session.out.message(message)
            left -= 1
        session.out.settle()
    except Unwritten as unwritten:
        raise unwritten.told(_advice(left, name, key)) from None
    except KeyboardInterrupt:
        say(_advice(left, name, key))
        raise


def _advice(left: int, name: str, key: str) -> str:
    what = f"{left} of the messages that were taken are not shown; " if left else ""
    again = f"chat read {shlex.quote(name)} --key {shlex.quote(key)}"
    return f"{what}for a minute all of them are given again to: {again}"


@click.command()
@click.argument("name", type=NotEmpty())
@with_session
def count(session: Session, name: str) -> int:
    """Say how many messages are unread in the inbox NAME. Changes nothing.

    Counts up to 10,000, and says so where there are more.

    \b
    Examples:
      chat count bob
      watch chat count bob --text
    """
    unread = session.run(session.chat.count(name))
    if unread > COUNT_MAX:
        session.out.record(f">{COUNT_MAX}", unread=COUNT_MAX, more=True)
    else:
        session.out.record(str(unread), unread=unread)
    return ExitCode.DONE
