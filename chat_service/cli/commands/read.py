"""`chat read` and `chat count`: consume or count unread messages."""

import secrets
import shlex

import click

from chat_inbox import COUNT_MAX, Message
from chat_service.cli.exit_codes import ExitCode, OutputError, print_error
from chat_service.cli.param_types import NonEmptyText
from chat_service.cli.session import Session, wait_option, with_session


@click.command()
@click.argument("name", type=NonEmptyText())
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Read at most the N oldest.")
@wait_option
@click.option(
    "--key",
    type=NonEmptyText(),
    help="At least 22 random characters. For a minute, a repeat with this key returns the same "
    "messages.",
)
@with_session
def read(session: Session, name: str, limit: int | None, wait: float, key: str | None) -> int:
    """Read the unread messages in the inbox NAME, oldest first. This consumes them.

    Reads all messages or, with --key, one batch of at most 1000. Exits with 1 if there are none.

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
        session.out.note("no unread messages")
    return ExitCode.DONE if found else ExitCode.NOTHING


def _show(session: Session, name: str, messages: list[Message], key: str) -> None:
    """Print messages. If the output fails or Ctrl-C interrupts it, say how to get them again."""
    left = len(messages)
    try:
        for message in messages:
            session.out.message(message)
            left -= 1
        session.out.sync()
    except OutputError as failure:
        raise failure.with_advice(_advice(left, name, key)) from None
    except KeyboardInterrupt:
        print_error(_advice(left, name, key))
        raise


def _advice(left: int, name: str, key: str) -> str:
    lost = f"{left} of the messages were not shown; " if left else ""
    again = f"chat read {shlex.quote(name)} --key {shlex.quote(key)}"
    return f"{lost}to get all of them again within a minute: {again}"


@click.command()
@click.argument("name", type=NonEmptyText())
@with_session
def count(session: Session, name: str) -> int:
    """Count the unread messages in the inbox NAME. Changes nothing.

    Counts up to 10,000. If there are more, prints >10000.

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
