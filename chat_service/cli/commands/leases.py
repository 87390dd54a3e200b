"""`chat lease`, `ack`, `release` and `extend`: leases that other processes can settle."""

from shlex import quote

import click

from chat_inbox import Lease, LeaseOver
from chat_service.cli.exit_codes import CommandError, ExitCode, OutputError
from chat_service.cli.output import fields_of, format_duration
from chat_service.cli.param_types import Duration, NonEmptyText, Text
from chat_service.cli.session import Session, wait_option, with_session


@click.command()
@click.argument("name", type=NonEmptyText())
@click.option(
    "--ttl",
    type=Duration(),
    metavar="TIME",
    default=30.0,
    help="Duration of the lease, unless it is extended; 30s by default.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Lease at most the N oldest.")
@wait_option
@with_session
def lease(session: Session, name: str, ttl: float, limit: int | None, wait: float) -> int:
    """Lease the unread messages in the inbox NAME, at most 1000.

    Messages that are not acknowledged in time become unread again. Exits with 1 if there are no
    messages.

    \b
    Examples:
      chat lease bob --ttl 2m --limit 10
      lease=$(chat lease bob | jq -r .lease); chat ack bob $lease
    """
    taken = session.run(session.chat.lease(name, ttl, limit, wait))
    if taken.name is None:
        session.out.note("no unread messages")
        return ExitCode.NOTHING
    try:
        _show(session, name, taken)
        session.out.sync()
    except OutputError as failure:
        raise failure.with_advice(
            f"the lease ends in {format_duration(taken.ttl_s)}; to make its messages unread again "
            f"now: chat release {quote(name)} {taken.name}"
        ) from None
    return ExitCode.DONE


def _show(session: Session, name: str, taken: Lease) -> None:
    """Print the leased messages, and the lease."""
    if session.out.is_json:
        messages = [fields_of(message) for message in taken.messages]
        session.out.record(
            "", lease=taken.name, ttl=taken.ttl_s, more=taken.more, messages=messages
        )
        return
    for message in taken.messages:
        session.out.message(message)
    session.out.record(f"lease {taken.name}")
    session.out.note(
        f"ends in {format_duration(taken.ttl_s)}; to acknowledge: "
        f"chat ack {quote(name)} {taken.name}"
    )


@click.command()
@click.argument("name", type=NonEmptyText())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.argument("ids", type=Text(), nargs=-1, metavar="[ID]...")
@with_session
def ack(session: Session, name: str, lease: str, ids: tuple[str, ...]) -> int:
    """Acknowledge all messages of a lease, or those with the given IDs. They are read then.

    If the lease of a message has already ended, that message cannot be acknowledged and the command
    exits with 1. The other messages are acknowledged all the same.

    \b
    Examples:
      chat ack bob cddd139d4bd3a8bddd89fd598357ed28
      chat ack bob cddd139d4bd3a8bddd89fd598357ed28 01a20bdacd390000b765d1a0c4bde3d1
    """
    try:
        count = session.run(session.chat.acknowledge(name, lease, ids or None))
    except LeaseOver as over:
        if not over.acknowledged:
            raise
        lost = f"the lease of these messages had ended: {' '.join(over.lost)}"
        done = len(over.acknowledged)
        raise CommandError(ExitCode.NOTHING, f"{lost}; {done} acknowledged") from None
    session.out.record(f"acknowledged {count}", acknowledged=count)
    return ExitCode.DONE


@click.command()
@click.argument("name", type=NonEmptyText())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.argument("ids", type=Text(), nargs=-1, metavar="[ID]...")
@click.option(
    "--in",
    "delay",
    type=Duration(),
    metavar="TIME",
    help="Make the messages unread after this time, such as 30s, 1.5h or 7d, and not at once.",
)
@with_session
def release(
    session: Session, name: str, lease: str, ids: tuple[str, ...], delay: float | None
) -> int:
    """Release all messages of a lease, or those with the given IDs. They are unread at once, or
    after the time of --in.

    Prints how many of the messages are unread afterwards, also in a repeat. Exits with 1 if none
    are, because the lease has ended and other readers have received the messages. With --in, nobody
    can read the messages before that time has passed, and a message may expire meanwhile.

    \b
    Examples:
      chat release bob cddd139d4bd3a8bddd89fd598357ed28
      chat release bob cddd139d4bd3a8bddd89fd598357ed28 01a20bdacd390000b765d1a0c4bde3d1
      chat release bob cddd139d4bd3a8bddd89fd598357ed28 --in 10m
    """
    count = session.run(session.chat.release(name, lease, ids or None, delay_s=delay))
    if not count:
        raise CommandError(
            ExitCode.NOTHING,
            "the lease has ended or belongs to another inbox; there is nothing to release",
        )
    session.out.record(f"released {count}", released=count)
    return ExitCode.DONE


@click.command()
@click.argument("name", type=NonEmptyText())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.option(
    "--ttl", type=Duration(), metavar="TIME", required=True, help="Time from now: 30s, 10m."
)
@with_session
def extend(session: Session, name: str, lease: str, ttl: float) -> int:
    """Prolong a lease to the given time from now.

    \b
    Examples:
      chat extend bob cddd139d4bd3a8bddd89fd598357ed28 --ttl 5m
      chat extend bob $lease --ttl 30
    """
    granted = session.run(session.chat.extend(name, lease, ttl))
    session.out.record(f"ends in {format_duration(granted)}", ttl=granted)
    return ExitCode.DONE
