"""`chat lease`, `ack`, `release`, `extend`: messages on loan, from one program to the next."""

from shlex import quote

import click

from chat_service.cli.exit_codes import ExitCode, Failed, Unwritten
from chat_service.cli.output import span
from chat_service.cli.param_types import Duration, NotEmpty, Text
from chat_service.cli.session import Session, with_session
from chat_service.client import Lease, LeaseOver


@click.command()
@click.argument("name", type=NotEmpty())
@click.option(
    "--ttl",
    type=Duration(),
    metavar="TIME",
    default=30.0,
    help="How long the loan lasts, unless extended; 30s if not named.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take at most the N oldest.")
@click.option(
    "--wait",
    type=Duration(),
    metavar="TIME",
    default=0.0,
    help="Wait so long for a first one: 5, 30s, 10m.",
)
@with_session
def lease(session: Session, name: str, ttl: float, limit: int | None, wait: float) -> int:
    """Take what is unread in the inbox NAME on loan: unread again unless acknowledged in time.

    At most 1000 messages. Exits with 1 where there is nothing.

    \b
    Examples:
      chat lease bob --ttl 2m --limit 10
      lease=$(chat lease bob | jq -r .lease); chat ack bob $lease
    """
    taken = session.run(session.chat.wait_lease(name, wait, ttl, limit))
    if taken.name is None:
        session.out.note("nothing is unread")
        return ExitCode.NOTHING
    try:
        _show(session, name, taken)
        session.out.settle()
    except Unwritten as unwritten:
        raise unwritten.told(
            f"the lease ends in {span(taken.ttl_s)}; to have its messages unread again now: "
            f"chat release {quote(name)} {taken.name}"
        ) from None
    return ExitCode.DONE


def _show(session: Session, name: str, taken: Lease) -> None:
    """Print what was leased, and the lease."""
    if session.out.is_json:
        messages = [message._asdict() for message in taken.messages]
        session.out.record(
            "", lease=taken.name, ttl=taken.ttl_s, more=taken.more, messages=messages
        )
        return
    for message in taken.messages:
        session.out.message(message)
    session.out.record(f"lease {taken.name}")
    session.out.note(f"ends in {span(taken.ttl_s)}; before: chat ack {quote(name)} {taken.name}")


@click.command()
@click.argument("name", type=NotEmpty())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.argument("ids", type=Text(), nargs=-1, metavar="[ID]...")
@with_session
def ack(session: Session, name: str, lease: str, ids: tuple[str, ...]) -> int:
    """Acknowledge messages of a lease, all of them or those named: they are read, and gone.

    Exits with 1 if any of them could not be acknowledged, because the lease of it was over: it is
    unread again, or read. The others are acknowledged all the same.

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
        lost = f"the lease of these messages was over: {' '.join(over.lost)}"
        done = len(over.acknowledged)
        raise Failed(ExitCode.NOTHING, f"{lost}; {done} acknowledged") from None
    session.out.record(f"acknowledged {count}", acknowledged=count)
    return ExitCode.DONE


@click.command()
@click.argument("name", type=NotEmpty())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.argument("ids", type=Text(), nargs=-1, metavar="[ID]...")
@with_session
def release(session: Session, name: str, lease: str, ids: tuple[str, ...]) -> int:
    """Give messages of a lease back, all of them or those named: they are unread again at once.

    Says how many are unread then, and so says a repeat. Exits with 1 where there are none: the
    lease is over, and others have taken them since.

    \b
    Examples:
      chat release bob cddd139d4bd3a8bddd89fd598357ed28
      chat release bob cddd139d4bd3a8bddd89fd598357ed28 01a20bdacd390000b765d1a0c4bde3d1
    """
    count = session.run(session.chat.release(name, lease, ids or None))
    if not count:
        raise Failed(
            ExitCode.NOTHING, "the lease is over, or is not this inbox's: nothing to release"
        )
    session.out.record(f"released {count}", released=count)
    return ExitCode.DONE


@click.command()
@click.argument("name", type=NotEmpty())
@click.argument("lease", type=Text(), metavar="LEASE")
@click.option(
    "--ttl", type=Duration(), metavar="TIME", required=True, help="How long from now: 30s, 10m."
)
@with_session
def extend(session: Session, name: str, lease: str, ttl: float) -> int:
    """Have a lease end later: so long from now.

    \b
    Examples:
      chat extend bob cddd139d4bd3a8bddd89fd598357ed28 --ttl 5m
      chat extend bob $lease --ttl 30
    """
    granted = session.run(session.chat.extend(name, lease, ttl))
    session.out.record(f"ends in {span(granted)}", ttl=granted)
    return ExitCode.DONE
